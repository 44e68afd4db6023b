"""The networks and metrics that ``python -m tests.benchmarks score`` measures side by side."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qualiclip_plugin.utils.errors import QualiCLIPError, WeightsError, first_line
from qualiclip_plugin.weights.loading import load_model, resolve
from tests.benchmarks.reference import pyiqa_class
from tests.benchmarks.untrained import write_official

Metric = Callable[[Tensor], Tensor]
"""RGB in [0, 1], (N, 3, H, W) -> scores (N, 1)."""
WAYS = {
    "cpu": (("eager", "fp32"), ("eager", "bf16"), ("openvino", "fp32"), ("openvino", "bf16")),
    "cuda": (("eager", "fp32"), ("eager", "fp16"), ("cuda", "fp32"), ("cuda", "fp16")),
}
"""Runtimes and precisions, by type of device."""
OTHERS = ("niqe", "brisque", "clipiqa")
REFERENCE = "pyiqa qualiclip"


@dataclass(frozen=True)
class Rival:
    """What is measured.

    Attributes:
        name: Its row.
        network: Rivals of the same network do the same arithmetic.
        precision: Of its convolutions.
        metric: Scores images.
        model: The same as one of ours, which files can be scored with.
    """

    name: str
    network: str
    precision: str
    metric: Metric
    model: nn.Module | None = None


def official_weights(folder: Path) -> tuple[Path, str]:
    """The official weights where they are at hand, else untrained ones of the same format written into ``folder``."""
    from skimage import data

    try:
        return resolve("official"), "official"
    except WeightsError:
        photos = [getattr(data, name)()[40:264, 100:324, :3].copy() for name in ("astronaut", "chelsea", "coffee")]
        images = torch.stack([torch.from_numpy(photo).permute(2, 0, 1) for photo in photos]).float() / 255
        write_official(folder / "QualiCLIP.pth", images)
        return folder / "QualiCLIP.pth", "untrained"


def build_rivals(official: Path, device: str) -> tuple[list[Rival], dict[str, str]]:
    """All rivals that start here, the reference first, and why the others do not, by name."""
    makers: dict[str, Callable[[], Rival]] = {REFERENCE: partial(_reference, official, device)}
    for network, weights in (("qualiclip", str(official)), ("qualiclip-lite", "lite")):
        for runtime, precision in WAYS[device]:
            name = f"{network}, {runtime} {precision}"
            makers[name] = partial(_ours, name, network, weights, device, runtime, precision)
    makers.update({name: partial(_other, name, device) for name in OTHERS})
    rivals, missing = [], {}
    for name, make in makers.items():
        try:
            rivals.append(make())
        except (QualiCLIPError, OSError, RuntimeError, ImportError, AssertionError) as error:
            missing[name] = first_line(error)
    return rivals, missing


def _reference(official: Path, device: str) -> Rival:
    return Rival(REFERENCE, "qualiclip, pyiqa", "fp32", pyiqa_class(official).to(device))


def _ours(name: str, network: str, weights: str, device: str, runtime: str, precision: str) -> Rival:
    model = load_model(weights, device=device, runtime=runtime, precision=precision)
    return Rival(name, network, precision, model, model)


def _other(name: str, device: str) -> Rival:
    import pyiqa

    with _quiet():
        metric: Any = pyiqa.create_metric(name, device=device)
    return Rival(name, name, "fp32", metric)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def memory_settings() -> dict[str, str]:
    """What the environment says about memory and threads."""
    return {name: value for name, value in os.environ.items() if name.startswith(("MALLOC_", "OMP_", "LD_PRELOAD"))}
