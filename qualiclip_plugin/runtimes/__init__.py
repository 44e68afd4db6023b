"""What computes the convolutions of a scoring network; pooling and the score stay in torch, in fp32.

============  =====================================================================================================
``eager``     torch, one operator after another. The reference; needs nothing further.
``openvino``  OpenVINO (extra ``openvino``). The fastest on CPUs, at any size, without a compiler.
``cuda``      CUDA graphs, which replay images of a size that comes again; in CLIP's ResNets all that stands between
              two convolutions is done inside them. The fastest for those on NVIDIA GPUs.
============  =====================================================================================================

A runtime never changes the image: no resizing, no padding to a size it would like better.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from qualiclip_plugin.models.conv_towers import ConvTower, ResNetTower, StagePoolTower
from qualiclip_plugin.models.precision import PRECISIONS, fp32_settings, prepare_for_inference, round_kernels
from qualiclip_plugin.models.tracing import EXAMPLE_SIZE, for_graphs
from qualiclip_plugin.runtimes.cuda_graphs import Recorder, Replayed
from qualiclip_plugin.runtimes.cuda_resnet import FusedMap, Normalise
from qualiclip_plugin.runtimes.openvino import OpenVINOPart, check_openvino
from qualiclip_plugin.utils.errors import ConfigError

if TYPE_CHECKING:
    from qualiclip_plugin.models.qualiclip import QualiCLIP

RUNTIMES = ("eager", "openvino", "cuda")
DEVICES = {"openvino": "cpu", "cuda": "cuda"}
"""The only type of device that a runtime computes on."""


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
    tower = served_tower(model, "openvino")
    check_openvino(model.precision, model.mean.device)
    round_kernels(tower, PRECISIONS[model.precision])
    if isinstance(tower, StagePoolTower):
        tower.tile_bytes = 400  # OpenVINO holds the widest map of these networks twice
    traceable = for_graphs(tower)
    example = torch.rand(EXAMPLE_SIZE, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    for name in tower.parts:
        plain = getattr(traceable, name)
        setattr(tower, name, OpenVINOPart(plain, example, model.precision))
        with torch.no_grad():
            example = plain(example)


def _use_cuda(model: QualiCLIP) -> None:
    tower = served_tower(model, "cuda")
    if not model.mean.is_cuda or torch.version.cuda is None:  # AMD's GPUs call themselves cuda as well
        raise ConfigError(f"the runtime 'cuda' computes on NVIDIA GPUs, not on {model.mean.device}")
    if isinstance(tower, ResNetTower):
        tower.feature_map = FusedMap(tower)  # type: ignore[method-assign]
    first = next(module for module in tower.modules() if isinstance(module, nn.Conv2d))
    model.normalise = Normalise(model.mean, model.std, first.weight.dtype)  # type: ignore[method-assign]
    model.similarities = Replayed(  # type: ignore[method-assign]
        model.similarities, Recorder(), partial(_kernel_settings, model)
    )
    model.stays = True


def _kernel_settings(model: QualiCLIP) -> tuple[object, ...]:
    return model.tile_pixels, str(fp32_settings()), torch.is_autocast_enabled("cuda")


_USE = {"openvino": _use_openvino, "cuda": _use_cuda}


def served_tower(model: QualiCLIP, runtime: str) -> ConvTower:
    """The image tower of a model, if it is of the kind that runtimes serve; ``ConfigError`` otherwise."""
    tower = model.image_encoder
    if not isinstance(tower, ConvTower):
        raise ConfigError(f"the runtime {runtime!r} serves convolutional towers, not {type(tower).__name__}")
    return tower
