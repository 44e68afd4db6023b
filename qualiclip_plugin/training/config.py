"""One configuration object for training: what it holds, where it is read from, and what is refused.

A configuration is a YAML file (a name such as ``paper`` means a file shipped in ``configs/``), changed by
``key=value`` settings. Unknown keys and values of a wrong type are errors, so that a spelling mistake never trains
something else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qualiclip_plugin.models.prompts import ATTRIBUTES
from qualiclip_plugin.training.lite.config import HeadConfig
from qualiclip_plugin.training.objective import ObjectiveConfig, check_choice
from qualiclip_plugin.utils import json_yaml as documents
from qualiclip_plugin.utils.config import build
from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.utils.json_yaml import key_lines, parse_yaml, read_yaml

CONFIGS = Path(__file__).parent / "configs"
SCHEDULES = ("constant", "cosine", "onecycle")
OPTIMIZERS = ("adamw", "sgd")
MIXED_PRECISIONS = ("fp32", "bf16", "fp16")

UNCHANGED_RESULT = frozenset(
    {
        "check_photos",
        "keep",
        "licence",
        "save_every",
        "save_precision",
        "scored_data",
        "validate_every",
        "validation_size",
        "workers",
    }
)
"""Settings that may differ between a run and its continuation: no weight depends on them."""


@dataclass(frozen=True)
class TrainConfig(ObjectiveConfig):
    """Everything that decides a training run, besides its photographs. Losses: see :class:`ObjectiveConfig`.

    Attributes:
        weights: Starting weights, a name or a path; they bring the architecture and the prompt features.
        steps: Optimizer steps of the whole run.
        seed: Every random draw of step t depends on this and t only.
        batch_size: Photographs a step, over all processes.
        crop_size: Side of a crop in pixels.
        crop_scale: Range of the factor by which a photograph is resized before its crops are cut out.
        crop_overlap: Smallest share of a crop that its pair covers.
        table: Name of the distortion table (``default``, ``paper``, ``camera``, ``arniqa``).
        distortions: ``all``, or names of the kinds that are drawn.
        levels: Degraded levels L.
        compositions: Number of kinds, of different groups, on one photograph, or its range.
        by_group: Draw a group first, so that groups are equally likely; else all kinds are.
        share_noise: The levels of a ladder share their random draw, so that only the strength moves.
        attribute_kinds: Distortion kinds or groups -> the prompt pairs that name them, for the attribute loss.
        head: How the head is fitted to degraded crops before the first step (:class:`HeadConfig`); None leaves it as
            it is.
        optimizer: ``adamw`` or ``sgd`` (momentum .9).
        learning_rate: Its largest value.
        weight_decay: Decoupled (adamw) or L2 (sgd).
        schedule: Learning rate over the steps: ``constant``, ``cosine`` or ``onecycle``.
        warmup: Steps of linear rise (constant, cosine), or None for the schedule's own (onecycle: 30 %).
        clip_norm: Largest norm of the gradient; None does not clip.
        batch_norm: ``eval`` keeps the running statistics, ``train`` uses and updates batch statistics.
        train_layers: ``all``, the number of last stages, or their names.
        start_pull: Weight of the pull towards the starting weights (L2-SP).
        ema: Decay of the averaged weights, which are then validated and saved; 0 switches averaging off.
        mixed_precision: What the network computes in: ``fp32``, ``bf16`` or ``fp16``; its weights stay fp32.
        channels_last: Memory format of the network.
        compile: Compile the network with torch.compile.
        gradient_checkpointing: Recompute stages in the backward pass to save memory.
        tf32: Let CUDA multiply fp32 matrices in TensorFloat-32.
        cpu: Train on the CPU even where there is a GPU.
        workers: Threads that read, decode and crop photographs.
        image_column: Column of a Hugging Face dataset; None takes its only image column.
        split: Split of a Hugging Face dataset.
        streaming: Read a Hugging Face dataset as a stream.
        shuffle_buffer: Photographs in the shuffle buffer of a stream.
        check_photos: Decode every photograph once before training, and leave out those that cannot be used.
        validation_photos: Photographs held out of training for validation.
        validate_every: Steps between validations; 0 validates only at the end.
        validation_size: Side in pixels of the validation crops.
        scored_data: imagefolder with metadata (``file_name``, ``mos``) to correlate with; never in a loss.
        save_every: Steps between checkpoints.
        keep: Number of checkpoints that are kept.
        save_precision: Stored type of the result: ``fp32`` or ``fp16``.
        licence: Licence of the result, as its card will state it; None takes that of the starting weights.
    """

    weights: str = "clip"
    steps: int = 87_500
    seed: int = 0
    batch_size: int = 16
    crop_size: int = 224
    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_overlap: float = 0.25
    table: str = "default"
    distortions: str | tuple[str, ...] = "all"
    levels: int = 5
    compositions: int | tuple[int, int] = 1
    by_group: bool = True
    share_noise: bool = True
    attribute_kinds: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"blur": ("sharp_image", "sharp_edges"), "noise": ("noise_free",)}
    )
    head: HeadConfig | None = None
    optimizer: str = "adamw"
    learning_rate: float = 1e-9
    weight_decay: float = 1e-2
    schedule: str = "constant"
    warmup: int | None = None
    clip_norm: float | None = None
    batch_norm: str = "eval"
    train_layers: str | int | tuple[str, ...] = "all"
    start_pull: float = 0.0
    ema: float = 0.0
    mixed_precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    gradient_checkpointing: bool = False
    tf32: bool = False
    cpu: bool = False
    workers: int = 4
    image_column: str | None = None
    split: str = "train"
    streaming: bool = False
    shuffle_buffer: int = 1000
    check_photos: bool = True
    validation_photos: int = 4
    validate_every: int = 0
    validation_size: int = 224
    scored_data: str | None = None
    save_every: int = 1000
    keep: int = 2
    save_precision: str = "fp32"
    licence: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("mixed_precision", self.mixed_precision, MIXED_PRECISIONS)
        check_choice("save_precision", self.save_precision, ("fp32", "fp16"))
        check_choice("batch_norm", self.batch_norm, ("eval", "train"))
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name} must be in [{low}, {high}], not {value}")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] < math.inf:
            raise ConfigError(f"crop_scale must be two finite factors 0 < low <= high, not {self.crop_scale}")
        if self.gradient_checkpointing and self.batch_norm == "train":
            raise ConfigError("gradient_checkpointing would update batch statistics twice: use batch_norm: eval")
        for name in (name for names in self.attribute_kinds.values() for name in names):
            check_choice("attribute_kinds", name, ATTRIBUTES)

    @property
    def smallest_photo(self) -> int:
        """Least height and width in pixels of a photograph that crops can be cut from."""
        return max(self.crop_size, math.ceil(self.crop_size / self.crop_scale[1]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML; :func:`config_from_mapping` reads them back."""
        found: dict[str, Any] = documents.plain(dataclasses.asdict(self))
        return found


RANGES: dict[str, tuple[float, float]] = {
    "steps": (0, 10**9),
    "seed": (0, 2**63 - 1),
    "batch_size": (1, 10**6),
    "crop_size": (32, 4096),
    "crop_overlap": (0, 1),
    "levels": (2, 100),
    "learning_rate": (0, 1e3),
    "weight_decay": (0, 1e3),
    "warmup": (0, 10**9),
    "clip_norm": (1e-12, 1e12),
    "start_pull": (0, 1e12),
    "ema": (0, 1 - 1e-9),
    "workers": (1, 256),
    "shuffle_buffer": (1, 10**7),
    "validation_photos": (0, 10**6),
    "validate_every": (0, 10**9),
    "validation_size": (32, 4096),
    "save_every": (1, 10**9),
    "keep": (1, 10**6),
}
"""Smallest and largest value of the numbers."""


def load_config(name: str, settings: Iterable[str] = ()) -> TrainConfig:
    """Read a configuration and change it.

    Args:
        name: A file in ``configs/`` without its suffix, or a path to a YAML file.
        settings: ``key=value``, the value in YAML.

    Raises:
        ConfigError: The file is missing or no mapping, a key is unknown (near names are suggested), or a value is
            of a wrong type or out of its range.
    """
    values, places = _read_yaml(name)
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign:
            raise ConfigError(f"--set {setting}: write key=value")
        value, _ = parse_yaml(text, f"--set {setting}")
        _set(values, key.strip(), value)
        places[key.strip()] = f"--set {setting}"
    return build(TrainConfig, values, lambda setting: places.get(setting, name))


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    """Change one setting; a dot leads into a group of settings, as in ``head.batches``."""
    group, dot, rest = key.partition(".")
    if not dot:
        values[key] = value
        return
    if not isinstance(inner := values.get(group), dict):
        raise ConfigError(f"--set {key}: this configuration has no settings {group!r}")
    _set(inner, rest, value)


def config_from_mapping(values: Mapping[str, Any], source: str = "configuration") -> TrainConfig:
    """Build a validated configuration from plain values; errors as :func:`load_config`."""
    return build(TrainConfig, values, lambda _: source)


def config_names() -> list[str]:
    """Names of the configurations shipped with the package."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("pyiqa"))


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Settings that decide the result and differ, as ``name: old -> new``.

    Not ``steps`` where the schedule is constant: then no step depends on how many follow it.
    """
    unchanged = UNCHANGED_RESULT | ({"steps"} if first.get("schedule") == "constant" else set())
    return documents.differences(*({key: run[key] for key in run if key not in unchanged} for run in (first, second)))


def _read_yaml(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings of a file, and where each of them stands."""
    path = CONFIGS / f"{name}.yaml" if name in config_names() else Path(name)
    if not path.is_file():
        raise ConfigError(f"no configuration {name!r}: give a YAML file or one of {', '.join(config_names())}")
    values, node = read_yaml(path)
    places = {key: f"{name}, line {line}" for key, line in key_lines(node, name).items()}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must be a mapping of settings")
    return values, places
