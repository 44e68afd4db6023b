"""Faster scoring without a change of the scores: folded BatchNorm, channels-last memory, lower precision."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from open_clip.modified_resnet import Bottleneck, ModifiedResNet
from timm.layers.norm_act import BatchNormAct2d
from timm.models._efficientnet_blocks import ConvBnAct, DepthwiseSeparableConv, InvertedResidual
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from qualiclip_plugin.models.conv_towers import ConvTower
from qualiclip_plugin.utils.errors import ConfigError

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Selectable precisions and the types they compute in."""

Switch = tuple[Any, Callable[[Any], object], Any]
"""A setting of torch: its value, what changes it, and the value that means exact."""

CONV_NORM_PAIRS: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {
    ModifiedResNet: (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")),
    Bottleneck: (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")),
    EfficientNet: (("conv_stem", "bn1"), ("conv_head", "bn2")),
    DepthwiseSeparableConv: (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    InvertedResidual: (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    ConvBnAct: (("conv", "bn1"),),
}
"""Blocks whose forward pass applies the norm directly to the convolution's output, and the names of both.

A table and not a search: that one module stands after another in a class does not prove that they run in that order.
"""


def fold_batch_norm(module: nn.Module) -> None:
    """Fold evaluation-mode BatchNorm into the convolution before it, in place, where the block is known.

    The folded network computes the same function up to rounding (about 1e-6) and can no longer be trained.
    """
    for block, conv_name, norm_name in list(_pairs(module)):
        conv, norm = getattr(block, conv_name), getattr(block, norm_name)
        setattr(block, conv_name, fuse_conv_bn_eval(conv.eval(), norm.eval()))
        # timm's norm layers carry the activation.
        setattr(block, norm_name, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())


def _pairs(module: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Every convolution that a BatchNorm follows: their owner and their names in it."""
    for block in module.modules():
        names = block.norm_pairs if isinstance(block, ConvTower) else CONV_NORM_PAIRS.get(type(block), ())
        owners = [(block, *pair) for pair in names]
        if isinstance(block, Bottleneck) and block.downsample is not None:
            owners.append((block.downsample, "0", "1"))
        for owner, conv, norm in owners:
            if isinstance(getattr(owner, conv), nn.Conv2d) and isinstance(getattr(owner, norm), nn.BatchNorm2d):
                yield owner, conv, norm


@torch.no_grad()
def make_exact_in_half(module: nn.Module) -> None:
    """Give a trained network weights whose folded form is exact in fp16, in place.

    Each BatchNorm is folded into its convolution, both are rounded, and what remains of it adds the bias. Scores in
    fp32 and fp16 then come from the same weights and differ only by the rounding of the feature maps.
    """
    for block, conv_name, norm_name in _pairs(module):
        conv, norm = getattr(block, conv_name), getattr(block, norm_name)
        fused = fuse_conv_bn_eval(conv, norm)
        conv.weight.copy_(rounded_kernels(fused.weight, torch.float16))
        norm.bias.copy_(fused.bias.half())
        norm.weight.fill_(1)
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)


def prepare_for_inference(module: nn.Module, precision: str = "fp32") -> nn.Module:
    """Freeze, fold BatchNorm, lower the precision, lay weights out channels-last, in place; returns ``module``.

    Convolutional towers hold the weights of their convolutions in the precision itself and pool in fp32; other towers
    stay fp32 and are left to autocast, which knows which of their operations need it.
    """
    fold_batch_norm(module)
    module.eval().requires_grad_(False)
    for tower in module.modules():
        if isinstance(tower, ConvTower):
            _lower(tower, PRECISIONS[check_precision(precision)])
    return module.to(memory_format=torch.channels_last)


def _lower(tower: ConvTower, dtype: torch.dtype) -> None:
    tower.dtype = dtype
    round_kernels(tower, dtype)
    for convolution in tower.lowered():
        convolution.to(dtype)


def round_kernels(tower: ConvTower, dtype: torch.dtype) -> None:
    """Make the kernels of a tower exact in ``dtype``, in place, whatever type they are kept in."""
    for convolution in tower.lowered():
        convolution.weight.data.copy_(rounded_kernels(convolution.weight, dtype))


def rounded_kernels(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Round the weights of a convolution such that every kernel keeps its sum.

    Images are smooth, so a kernel's response is mostly the sum of its weights, and errors of that sum add up over a
    whole feature map. Going from the largest weight to the smallest, each one takes over the error of those before.

    Args:
        weight: (O, I, H, W).
        dtype: What the result is exact in.

    Returns:
        (O, I, H, W), in ``dtype``; no weight is off by more than two units in the last place of the largest.
    """
    if weight.dtype == dtype:
        return weight.detach()  # as in every model that is loaded in fp32
    kernels = weight.detach().double().flatten(2)
    order = kernels.abs().argsort(-1, descending=True)
    ranked = kernels.gather(-1, order)
    carried = torch.zeros_like(ranked[..., 0])
    for index in range(ranked.shape[-1]):
        wanted = ranked[..., index] + carried
        ranked[..., index] = wanted.to(dtype).double()
        carried = wanted - ranked[..., index]
    return torch.empty_like(kernels).scatter_(-1, order, ranked).to(dtype).view_as(weight)


def check_precision(precision: str) -> str:
    """Return ``precision`` if it is one of ``PRECISIONS``; raise ``ConfigError`` otherwise."""
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    return precision


def autocast(precision: str, device: torch.device, tower: nn.Module) -> AbstractContextManager[object]:
    """The autocast context of a precision on a device: none if a tower sees to it itself, a caller's for fp32."""
    if isinstance(tower, ConvTower) and tower.dtype is not None:
        return without_autocast(device)
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=PRECISIONS[precision])


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Keep a caller's autocast away; nothing, also for graphs, where there is none."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


@contextmanager
def exact_fp32() -> Iterator[None]:
    """fp32 that is fp32: neither TensorFloat-32 nor algorithms that vary from run to run; settings are put back.

    On a GPU torch rounds the input of convolutions to ten bits and tries out algorithms, unless told otherwise, and
    programs often allow the same for matrix products, on the CPU too.
    """
    with exact_products(), _convolutions_are_exact, _algorithms_are_fixed:
        yield


def exact_products() -> AbstractContextManager[None]:
    """No TensorFloat-32, on the CPU no bf16, in products of fp32 matrices; the setting is put back."""
    return _products_are_exact


def fp32_settings() -> tuple[object, object]:
    """How exactly products and convolutions in fp32 are computed at present; equal where it is the same."""
    return _products()[0], _convolutions()[0]


# Since torch 2.9 there are two APIs; where a program has used the new one, the old one may not be readable. Of
# products the old one must be used where it can be read, as both must agree when one is computed. Of convolutions the
# new one alone counts, and what the old one says must agree for those who read it meanwhile.


def _products() -> Switch:
    try:
        return torch.get_float32_matmul_precision(), torch.set_float32_matmul_precision, "highest"
    except RuntimeError:
        mkldnn: Any = torch.backends.mkldnn
        return _together(
            *(_attribute(one, "fp32_precision", "ieee") for one in (torch.backends.cuda.matmul, mkldnn.matmul))
        )


def _convolutions() -> Switch:
    cudnn: Any = torch.backends.cudnn
    switches = []
    with suppress(RuntimeError):
        switches.append(_attribute(cudnn, "allow_tf32", False))
    if hasattr(cudnn, "conv"):
        switches += [_attribute(one, "fp32_precision", "ieee") for one in (cudnn.conv, cudnn.rnn)]
    return _together(*switches)


def _algorithms() -> Switch:
    wanted = {"enabled": True, "benchmark": False, "deterministic": True}
    return _together(*(_attribute(torch.backends.cudnn, name, value) for name, value in wanted.items()))


def _attribute(owner: Any, name: str, exact: object) -> Switch:
    return getattr(owner, name), partial(setattr, owner, name), exact


def _together(*switches: Switch) -> Switch:
    def change(values: Sequence[Any]) -> None:
        for (_, one, _), value in zip(switches, values, strict=True):
            one(value)

    return [before for before, _, _ in switches], change, [exact for _, _, exact in switches]


class _Hold:
    """Holds settings of torch, which belong to all threads, at exact while any of them asks for it."""

    def __init__(self, read: Callable[[], Switch]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._holders = 0
        self._put_back: Callable[[], object] = lambda: None

    def __enter__(self) -> None:
        with self._lock:
            before, change, exact = self._read()
            if self._holders == 0:
                self._put_back = partial(change, before)
            try:
                change(exact)  # also where others hold it: somebody may have changed it meanwhile
            except BaseException:
                change(before)
                raise
            self._holders += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                self._put_back()


_products_are_exact, _convolutions_are_exact, _algorithms_are_fixed = map(
    _Hold, (_products, _convolutions, _algorithms)
)
