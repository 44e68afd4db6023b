"""pyiqa's own QualiCLIP class with weights from a file: what this project is compared with."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn


def pyiqa_class(official: Path, model_type: str = "qualiclip", plus: Path | None = None) -> nn.Module:
    """Build pyiqa's own class from files instead of downloads.

    Args:
        official: Weights of QualiCLIP in the official format.
        model_type: As pyiqa names it.
        plus: Weights of QualiCLIP+, where ``model_type`` asks for them.

    Raises:
        ImportError: pyiqa's file cannot be imported (it needs setuptools < 81).
    """
    from pyiqa.archs import clip_model
    from pyiqa.archs import qualiclip_arch as own

    checkpoint = torch.load(official, weights_only=True)
    prefix = "clip_model."
    state = {key.removeprefix(prefix): value for key, value in checkpoint.items() if key.startswith(prefix)}
    with ExitStack() as stack:
        stack.enter_context(patch.object(own, "load", lambda *_: clip_model.build_model(dict(state)).float()))
        stack.enter_context(patch.object(own, "load_file_from_url", lambda _: str(official)))
        stack.enter_context(patch.dict(own.default_model_urls, {"qualiclip+": str(plus)}))
        return own.QualiCLIP(model_type=model_type).eval()
