"""What is drawn for a training step: degradations and crops, only from the seed and the step's number."""

from __future__ import annotations

import torch
from torch import Tensor

from qualiclip_plugin.distortions import GROUPS, get_table
from qualiclip_plugin.models.prompts import ATTRIBUTES
from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.objective import content_levels, selected_prompt_pairs
from qualiclip_plugin.training.sampling import DegradationPlan, sample_crop_pairs, sample_plan
from qualiclip_plugin.training.seeds import generator
from qualiclip_plugin.utils.errors import ConfigError, did_you_mean


def draw_crops(photo: Tensor, config: TrainConfig, draws: torch.Generator) -> Tensor:
    """Two overlapping crops of a photograph, uint8, (3, H, W) -> (2, 3, crop_size, crop_size)."""
    return sample_crop_pairs(photo, config.crop_size, draws, scale=config.crop_scale, min_overlap=config.crop_overlap)


def draw_plan(config: TrainConfig, step: int) -> DegradationPlan:
    """The degradations of all photographs of a step, the same in every process."""
    return plan_of(config, config.batch_size, generator(config.seed, "plan", step))


def plan_of(config: TrainConfig, photos: int, draws: torch.Generator) -> DegradationPlan:
    """Degradations of a number of photographs as the configuration asks for them."""
    return sample_plan(
        photos,
        draws,
        table=config.table,
        distortions=None if config.distortions == "all" else _names(config.distortions),
        compositions=config.compositions,
        levels=config.levels,
        by_group=config.by_group,
        share_noise=config.share_noise,
    )


def check_plan(config: TrainConfig) -> None:
    """Raise :class:`ConfigError` where kinds, levels or their number cannot be drawn, before any work.

    Refused too: a head that is fitted to kinds which are never drawn, and an attribute loss that never takes part.
    """
    draw_plan(config, 0)
    table = get_table(config.table)
    drawn = tuple(table) if config.distortions == "all" else _names(config.distortions)
    for kind in drawn:
        for level in range(1, config.levels + 1):
            table[kind].strength(level)
    if config.content_weight:
        content_levels(config, config.levels + config.pristine)
    for name in {name for kinds in (config.head.pairs if config.head else {}).values() for name in kinds}:
        if name not in table:
            raise ConfigError(f"head: {name!r} is no kind of the table {config.table}{did_you_mean(name, table)}")
        if name not in drawn:
            raise ConfigError(f"head: its pairs name {name!r}, which distortions leaves out")
    for key in config.attribute_kinds:
        if key not in table and key not in GROUPS:
            raise ConfigError(f"attribute_kinds: {key!r} is neither a distortion group nor a kind of {config.table}")
    trained = {ATTRIBUTES[index] for index in selected_prompt_pairs(config)}
    if config.attribute_weight and not any(set() < _naming(config, kind) & trained < trained for kind in drawn):
        raise ConfigError(
            "attribute_weight has no effect: for no kind of distortions do attribute_kinds name some, and not all, "
            "of prompt_pairs"
        )


def _names(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def relevant_pairs(plan: DegradationPlan, config: TrainConfig) -> Tensor:
    """Prompt pairs that name the distortions of each photograph of a plan, (B, P) bool."""
    relevant = torch.zeros(config.batch_size, len(ATTRIBUTES), dtype=torch.bool)
    for place, kinds in enumerate(plan.kinds):
        for kind in kinds:
            for name in _naming(config, kind):
                relevant[place, ATTRIBUTES.index(name)] = True
    return relevant


def _naming(config: TrainConfig, kind: str) -> set[str]:
    """Prompt pairs that name a kind or its group."""
    keys = (kind, get_table(config.table)[kind].group)
    return {name for key in keys for name in config.attribute_kinds.get(key, ())}
