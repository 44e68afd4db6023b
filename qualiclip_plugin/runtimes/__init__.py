"""What computes the convolutions of a scoring network; pooling and the score stay in torch, in fp32.

============  =====================================================================================================
``eager``     torch, one operator after another. The reference; needs nothing further.
``compiled``  the same operators through ``torch.compile``, one graph for all sizes. Made for GPUs; on a CPU it needs
              a C++ compiler and gains little.
``fused``     CLIP's ResNets on NVIDIA GPUs: everything between two convolutions inside them. The fastest there.
``openvino``  OpenVINO (extra ``openvino``). The fastest on CPUs, at any size, without a compiler.
============  =====================================================================================================

On a GPU ``compiled`` and ``fused`` replay a CUDA graph for sizes that come again. A runtime never changes the image:
no resizing, no padding to a size it would like better.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from qualiclip_plugin.errors import ConfigError
from qualiclip_plugin.inference import PRECISIONS, prepare_for_inference, round_kernels
from qualiclip_plugin.runtimes.compiled import CompiledPart
from qualiclip_plugin.runtimes.fused import FusedMap, Normalise
from qualiclip_plugin.runtimes.openvino import OpenVINOPart, check_openvino
from qualiclip_plugin.runtimes.part import FastPart, Part
from qualiclip_plugin.runtimes.replay import Recorder, Replayed
from qualiclip_plugin.towers import ConvTower, ResNetTower, StagePoolTower
from qualiclip_plugin.tracing import EXAMPLE_SIZE, for_graphs

if TYPE_CHECKING:
    from qualiclip_plugin.model import QualiCLIP

RUNTIMES = ("eager", "compiled", "fused", "openvino")
SERVED: dict[type, str] = {ConvTower: "convolutional towers", ResNetTower: "CLIP's ResNets"}

T = TypeVar("T")


def check_runtime(runtime: str) -> str:
    """Return ``runtime`` if it is one of ``RUNTIMES``; raise ``ConfigError`` otherwise."""
    if runtime not in RUNTIMES:
        raise ConfigError(f"unknown runtime {runtime!r}: choose one of {', '.join(RUNTIMES)}")
    return runtime


def prepare_for_scoring(model: QualiCLIP, runtime: str = "eager", device: str | torch.device = "cpu") -> QualiCLIP:
    """Make a model fast, in place, in its own precision; it can no longer be trained.

    Args:
        model: A plain network (``checkpoint.build_model``).
        runtime: One of ``RUNTIMES``.
        device: Where it will stay.

    Returns:
        ``model``.

    Raises:
        ConfigError: The runtime does not serve this network, device or precision, or something it needs is missing.
    """
    check_runtime(runtime)
    # OpenVINO takes weights in fp32 and rounds by itself, but not so that kernels keep their sums.
    prepare_for_inference(model, "fp32" if runtime == "openvino" else model.precision)
    model.to(device)
    if runtime != "eager":
        _USE[runtime](model)
    return model


def _use_openvino(model: QualiCLIP) -> None:
    tower = _tower(model, "openvino", ConvTower)
    check_openvino(model.precision, model.mean.device)
    round_kernels(tower, PRECISIONS[model.precision])
    if isinstance(tower, StagePoolTower):
        tower.tile_bytes = 400  # OpenVINO holds the widest map of these networks twice
    _replace_parts(tower, partial(OpenVINOPart, precision=model.precision))


def _use_compiled(model: QualiCLIP) -> None:
    _replace_parts(_tower(model, "compiled", ConvTower), CompiledPart)
    _use_graphs(model, "compiled")


def _use_fused(model: QualiCLIP) -> None:
    tower = _tower(model, "fused", ResNetTower)
    if not model.mean.is_cuda:
        raise ConfigError(f"the runtime 'fused' computes on NVIDIA GPUs, not on {model.mean.device}")
    tower.feature_map = FusedMap(tower)  # type: ignore[method-assign]
    model.normalise = Normalise(model.mean, model.std, PRECISIONS[model.precision])  # type: ignore[method-assign]
    _use_graphs(model, "fused")


_USE = {"openvino": _use_openvino, "compiled": _use_compiled, "fused": _use_fused}


def _tower(model: QualiCLIP, runtime: str, kind: type[T]) -> T:
    """The image tower, if it is of this kind."""
    tower = model.image_encoder
    if not isinstance(tower, kind):
        raise ConfigError(f"the runtime {runtime!r} serves {SERVED[kind]}, not {type(tower).__name__}")
    return tower


def _replace_parts(tower: ConvTower, make: Callable[[Part, Tensor], FastPart]) -> None:
    """Put what ``make`` makes of a part and an input of it in the place of each part, in place."""
    example = torch.rand(EXAMPLE_SIZE, device=next(tower.parameters()).device)
    example = example.contiguous(memory_format=torch.channels_last)
    traceable = for_graphs(tower)
    for name in tower.parts:
        plain = getattr(traceable, name)
        part = make(plain, example)
        with torch.no_grad():
            example = plain(example)
        setattr(tower, name, part)


def _use_graphs(model: QualiCLIP, runtime: str) -> None:
    if model.mean.is_cuda:
        model.similarities = Replayed(model.similarities, runtime, Recorder())  # type: ignore[method-assign]
