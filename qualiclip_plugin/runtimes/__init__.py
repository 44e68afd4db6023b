"""What computes the convolutions of a scoring network; pooling and the score stay in torch, in fp32.

============  =====================================================================================================
``eager``     torch, one operator after another. The reference; needs nothing further.
``openvino``  OpenVINO (extra ``openvino``). The fastest on CPUs, at any size, without a compiler.
``cuda``      CUDA graphs, which replay images of a size that comes again; in CLIP's ResNets all that stands between
              two convolutions is done inside them. The fastest for those on NVIDIA GPUs.
============  =====================================================================================================

``auto`` is ``openvino`` on a CPU in fp32, where it is installed and serves the network, else ``eager``. A model says
in ``runtime`` what computes it.

A runtime never changes the image: no resizing, no padding to a size it would like better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import nn

from qualiclip_plugin.models.conv_towers import ConvTower, ResNetTower
from qualiclip_plugin.models.precision import PRECISIONS, fp32_settings, prepare_for_inference, round_kernels
from qualiclip_plugin.models.tracing import EXAMPLE_SIZE, for_graphs
from qualiclip_plugin.runtimes.cuda_graphs import Recorder, Replayed
from qualiclip_plugin.runtimes.cuda_resnet import FusedMap, Normalise
from qualiclip_plugin.runtimes.openvino import OpenVINOPart, check_openvino
from qualiclip_plugin.utils.errors import ConfigError

if TYPE_CHECKING:
    from qualiclip_plugin.models.qualiclip import QualiCLIP

AUTO = "auto"


def check_runtime(runtime: str) -> str:
    """Return ``runtime`` if it is ``auto`` or one of ``RUNTIMES``; raise ``ConfigError`` otherwise."""
    if runtime not in (AUTO, *RUNTIMES):
        raise ConfigError(f"unknown runtime {runtime!r}: choose one of {', '.join((AUTO, *RUNTIMES))}")
    return runtime


def choose_runtime(model: QualiCLIP, device: str | torch.device) -> str:
    """What ``auto`` stands for: the fastest of the runtimes whose scores are those of ``eager`` within 1e-5."""
    place = torch.device(device)
    if place.type != "cpu" or not isinstance(model.image_encoder, ConvTower) or model.precision != "fp32":
        return "eager"
    return "openvino" if find_spec("openvino") is not None else "eager"


def prepare_for_scoring(model: QualiCLIP, runtime: str = "eager", device: str | torch.device = "cpu") -> QualiCLIP:
    """Make a model fast, in place, in its own precision; it can no longer be trained.

    Args:
        model: A plain network (``checkpoint.build_model``).
        runtime: One of ``RUNTIMES``, or ``auto``.

    Returns:
        ``model``.

    Raises:
        ConfigError: The runtime does not serve this network, device or precision, or something it needs is missing.
    """
    model.runtime = choose_runtime(model, device) if check_runtime(runtime) == AUTO else runtime
    used = RUNTIMES[model.runtime]
    prepare_for_inference(model, used.weights or model.precision)
    model.to(device)
    used.take(model)
    return model


def _use_openvino(model: QualiCLIP) -> None:
    tower = served_tower(model, "openvino")
    check_openvino(model.precision, model.mean.device)
    round_kernels(tower, PRECISIONS[model.precision])
    tower.tile_bytes = tower.openvino_bytes
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
    settings = lambda: (model.tile_pixels, str(fp32_settings()), torch.is_autocast_enabled("cuda"))
    model.similarities = Replayed(model.similarities, Recorder(), settings)  # type: ignore[method-assign]
    model.stays = True


@dataclass(frozen=True)
class Runtime:
    """What computes the convolutions of a network.

    Attributes:
        take: Puts what is fast into a frozen network, in place.
        device: The only type of device that it computes on; empty: any.
        weights: The precision in which it takes weights; empty: that of the network.
        packages: Distributions that its scores depend on.
    """

    name: str
    take: Callable[[QualiCLIP], None]
    device: str = ""
    weights: str = ""
    packages: tuple[str, ...] = ()


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime("eager", lambda model: None),
        # OpenVINO rounds weights by itself, but not so that kernels keep their sums.
        Runtime("openvino", _use_openvino, device="cpu", weights="fp32", packages=("openvino",)),
        Runtime("cuda", _use_cuda, device="cuda"),
    )
}
"""All runtimes by name; a new one is one more record."""


def served_tower(model: QualiCLIP, runtime: str) -> ConvTower:
    """The image tower of a model, if it is of the kind that runtimes serve; ``ConfigError`` otherwise."""
    tower = model.image_encoder
    if not isinstance(tower, ConvTower):
        raise ConfigError(f"the runtime {runtime!r} serves convolutional towers, not {type(tower).__name__}")
    return tower
