"""The identity of a score: weights, versions and devices. Stored scores of two identities never mix."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qualiclip_plugin.utils.atomic import sha256_file

if TYPE_CHECKING:
    from torch import nn

SCORES_VERSION = 1
"""Of the code that turns pixels into scores of this project's metrics. Raise it in the commit that moves a score of
unchanged weights by more than rounding: stored scores of the version before are then computed again.
``iqa-harness check`` and ``tests/test_results.py`` ask for it."""
READING_VERSION = 1
"""Of the code that turns bytes into pixels, in the same way."""
_RECORDED = ("qualiclip-plugin", "pyiqa", "torch", "numpy", "Pillow", "scipy", "datasets", "scikit-image")


def recorded_versions() -> dict[str, str]:
    """Versions of the packages that scores and figures may depend on."""
    return {package: metadata.version(package) for package in _RECORDED}


def code_hash(paths: Iterable[Path]) -> str:
    """SHA-256 over Python sources, the same in every Python; comments, docstrings and layout do not count."""
    digest = hashlib.sha256()
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body: Any = getattr(node, "body", None)
            first = body[0] if isinstance(body, list) and body else None
            if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
                body[:1] = [] if len(body) > 1 else [ast.Pass()]
        digest.update(_written(tree).encode())
    return digest.hexdigest()[:16]


def weights_hash(network: nn.Module) -> str:
    """SHA-256 over all tensors and arrays that a network holds, registered or not."""
    import numpy as np
    import torch

    digest = hashlib.sha256()
    for prefix, module in network.named_modules():
        held = {**module._parameters, **module._buffers, **vars(module)}
        for name in sorted(held):
            value = held[name]
            if isinstance(value, torch.Tensor):
                value = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            if isinstance(value, np.ndarray):
                digest.update(f"{prefix}.{name}".encode())
                digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:16]


def versions(*packages: str) -> dict[str, str]:
    """Versions of installed packages, of these and no others: each may change a score."""
    return {package: metadata.version(package) for package in packages}


def by_content(value: Any) -> Any:
    """A file by its content: its place is not part of a score."""
    return f"{Path(value).name} {sha256_file(value)}" if isinstance(value, str) and Path(value).is_file() else value


def device_name(device: str) -> str:
    """A device in words, for the record."""
    import platform

    import torch

    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)} (CUDA {torch.version.cuda})"
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def _written(part: object) -> str:
    """A part of a syntax tree as text, without what is empty: ``ast.dump`` differs there from Python to Python."""
    if isinstance(part, list):
        return f"[{','.join(map(_written, part))}]"
    if not isinstance(part, ast.AST):
        return repr(part)
    fields = ((name, value) for name, value in ast.iter_fields(part) if value is not None and value != [])
    return f"{type(part).__name__}({','.join(f'{name}={_written(value)}' for name, value in fields)})"
