"""The stages of an image encoder: which of them train, how BatchNorm runs, and how far the weights moved.

A stage is a stretch of the network from input to output: ``stem``, then the blocks under their own names
(``layer1``.. of CLIP's ResNet, ``blocks.0``.. of a timm network), then what follows them (``attnpool``, ``head``)
and, in open_clip's timm towers, the ``projection`` to the embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qualiclip_plugin.utils.errors import ConfigError

_BLOCK_CONTAINER = re.compile(r"(^|\.)(layer\d+|(blocks|stages|layers|resblocks|features)\.\d+)(?=\.)")
# Parameters of a root module come first in PyTorch's order although a ViT applies these last.
_LAST = frozenset({"proj", "transformer.proj"})


def stages(encoder: nn.Module) -> dict[str, list[str]]:
    """Parameter names of each stage, from input to output.

    Args:
        encoder: An image encoder of ``backbones.build_image_encoder``, or any network.

    Returns:
        Stage name -> parameter names of ``encoder``; every parameter is in exactly one stage.
    """
    names = [name for name, _ in encoder.named_parameters()]
    names.sort(key=lambda name: name in _LAST)
    blocks = [_block(name) for name in names]
    found: dict[str, list[str]] = {}
    seen_block = False
    for name, block in zip(names, blocks, strict=True):
        seen_block = seen_block or block is not None
        stage = block or (_after_blocks(name) if seen_block or not any(blocks) else "stem")
        found.setdefault(stage, []).append(name)
    return found


def _block(name: str) -> str | None:
    match = _BLOCK_CONTAINER.search(name.removeprefix("trunk."))
    return match.group(2) if match and not name.startswith("head.") else None


def _after_blocks(name: str) -> str:
    if name.startswith("head."):
        return "projection"
    return "attnpool" if name.startswith("attnpool.") else "head"


def choose_stages(encoder: nn.Module, train_layers: str | int | tuple[str, ...]) -> list[str]:
    """Names of the stages that train.

    Args:
        train_layers: ``all``, a number of last stages, or stage names.

    Raises:
        ConfigError: An unknown name, or a number outside 1..number of stages.
    """
    names = list(stages(encoder))
    if train_layers == "all":
        return names
    if isinstance(train_layers, int):
        if not 1 <= train_layers <= len(names):
            raise ConfigError(f"train_layers must be in 1..{len(names)} for this network, not {train_layers}")
        return names[-train_layers:]
    wanted = [train_layers] if isinstance(train_layers, str) else list(train_layers)
    unknown = [name for name in wanted if name not in names]
    if unknown or not wanted:
        raise ConfigError(f"train_layers: no stage {', '.join(unknown) or 'named'}; there are {', '.join(names)}")
    return [name for name in names if name in wanted]


def train_only(encoder: nn.Module, chosen: list[str]) -> None:
    """Let the chosen stages train and freeze the others."""
    trained = {name for stage, names in stages(encoder).items() if stage in chosen for name in names}
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name in trained)


def set_training_mode(encoder: nn.Module, batch_norm: str) -> None:
    """Training mode, with BatchNorm on running statistics where asked for and in frozen stages.

    Args:
        encoder: The network, its frozen stages marked by :func:`train_only`.
        batch_norm: ``eval`` or ``train``.
    """
    encoder.train()
    for module in encoder.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            frozen = module.weight is not None and not module.weight.requires_grad
            module.train(batch_norm == "train" and not frozen)


def recompute_in_backward(encoder: nn.Module) -> None:
    """Gradient checkpointing over the residual stages (CLIP's ResNet) or as the network itself offers it.

    Raises:
        ConfigError: The network offers none.
    """
    if isinstance(encoder, ModifiedResNet):
        for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
            stage.forward = partial(checkpoint, stage.forward, use_reentrant=False)
    elif callable(switch := getattr(getattr(encoder, "transformer", encoder), "set_grad_checkpointing", None)):
        switch(True)
    else:
        raise ConfigError("gradient_checkpointing: this image encoder does not offer it")


@torch.no_grad()
def pull_to_start(encoder: nn.Module, start: Mapping[str, Tensor], weight: float) -> None:
    """Add the gradient of ``weight / 2 * |w - w_start|^2`` (L2-SP, Li et al., ICML 2018) to the gradients.

    Args:
        encoder: The network after its backward pass; parameters without a gradient are left alone.
        start: Its parameters before training, by name.
    """
    for name, parameter in encoder.named_parameters():
        if parameter.grad is not None:
            parameter.grad.add_(parameter - start[name], alpha=weight)


def movement(encoder: nn.Module, start: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """How far the weights of each stage are from where they started.

    Args:
        start: Its parameters before training, by name.

    Returns:
        Stage -> ``relative``: L2 distance over the L2 norm at the start; ``changed``: share of single weights
        whose stored value differs.
    """
    parameters = dict(encoder.named_parameters())
    result = {}
    for stage, names in stages(encoder).items():
        now = torch.cat([parameters[name].detach().double().flatten().cpu() for name in names])
        before = torch.cat([start[name].detach().double().flatten().cpu() for name in names])
        norm = before.norm().item()
        distance = (now - before).norm().item()
        result[stage] = {
            "relative": distance / norm if norm else float(distance > 0),
            "changed": (now != before).double().mean().item(),
        }
    return result
