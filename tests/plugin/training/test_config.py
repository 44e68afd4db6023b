"""The configuration: where it is read from, and everything it refuses."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from qualiclip_plugin.training.config import (
    CONFIGS,
    TrainConfig,
    config_from_mapping,
    config_names,
    differences,
    load_config,
)
from qualiclip_plugin.training.draws import check_plan
from qualiclip_plugin.utils.errors import ConfigError


def test_every_shipped_configuration_is_valid() -> None:
    assert {"paper", "laptop"} <= set(config_names())
    for name in config_names():
        check_plan(load_config(name))


def test_paper_is_the_papers_schedule() -> None:
    config = load_config("paper")
    assert config.steps * config.batch_size == 10 * 140_000
    assert (config.consistency_margin, config.ranking_margin) == (2.5e-3, 6.75e-2)
    assert (config.learning_rate, config.weight_decay, config.levels) == (1e-9, 1e-2, 5)
    assert config.content_weight == config.metric_weight == config.start_pull == config.ema == 0


def test_every_unverified_value_of_the_paper_says_so() -> None:
    # Recalled, and not checked against the paper's text.
    unverified = [
        "steps",
        "batch_size",
        "crop_size",
        "crop_scale",
        "crop_overlap",
        "table",
        "distortions",
        "by_group",
        "share_noise",
        "levels",
        "compositions",
        "pristine",
        "level_pairs",
        "prompt_pairs",
        "reduction",
        "consistency_margin",
        "ranking_margin",
        "consistency_weight",
        "optimizer",
        "learning_rate",
        "weight_decay",
        "schedule",
        "batch_norm",
        "mixed_precision",
    ]
    lines = (CONFIGS / "paper.yaml").read_text(encoding="utf-8").splitlines()
    for name in unverified:
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{name}:"))
        comment = lines[at] if "#" in lines[at] else " ".join(lines[at - 3 : at])
        assert "unverified" in comment, name


def test_settings_override_the_file() -> None:
    config = load_config("laptop", ["steps=7", "learning_rate=3e-4", "distortions=[jpeg, haze]", "clip_norm=1"])
    assert (config.steps, config.learning_rate, config.distortions) == (7, 3e-4, ("jpeg", "haze"))
    assert config.clip_norm == 1.0
    assert load_config("laptop", ["train_layers=all"]).train_layers == "all"
    assert load_config("laptop", ["train_layers=2"]).train_layers == 2
    assert load_config("laptop", ["train_layers=[head, projection]"]).train_layers == ("head", "projection")
    assert load_config("laptop", ["compositions=[1, 2]"]).compositions == (1, 2)


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(TrainConfig)])
def test_every_setting_can_be_set(key: str) -> None:
    value = load_config("lite").to_dict()[key]
    config = load_config("paper", [f"{key}={yaml.safe_dump(value, default_flow_style=True)}"])
    assert config.to_dict()[key] == value
    assert config.to_dict() == load_config("paper").to_dict() | {key: value}


def test_a_file_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("steps: 3\nattribute_kinds: {blur: [sharp_image]}\n")
    config = load_config(str(path))
    assert config.steps == 3
    assert config.attribute_kinds == {"blur": ("sharp_image",)}


def test_plain_values_survive_yaml() -> None:
    config = load_config("laptop", ["compositions=[1, 3]", "prompt_pairs=[noise_free]"])
    assert config_from_mapping(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learning_rat=1", "did you mean learning_rate"),
        ("steps", "key=value"),
        ("steps=-1", "steps must be in"),
        ("steps=1.5", "steps must be a whole number"),
        ("steps=true", "steps must be a whole number"),
        ("channels_last=yes please", "channels_last must be true or false"),
        ("learning_rate=fast", "learning_rate must be a number"),
        ("learning_rate=nan", "learning_rate must be in"),
        ("ema=1", "ema must be in"),
        ("crop_scale=[1]", "crop_scale must be 2 values"),
        ("crop_scale=[0, 1]", "crop_scale"),
        ("crop_scale=[1, .inf]", "crop_scale must be two finite factors"),
        ("schedule=step", "schedule must be one of"),
        ("mixed_precision=fp8", "mixed_precision"),
        ("attribute_kinds={blur: [sharp]}", "attribute_kinds must be one of"),
        ("prompt_pairs=[good]", "prompt_pairs must be one of"),
        ("steps=[", "--set"),
    ],
)
def test_wrong_settings_are_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        load_config("laptop", [setting])


def test_gradient_checkpointing_excludes_batch_statistics() -> None:
    with pytest.raises(ConfigError, match="gradient_checkpointing"):
        TrainConfig(gradient_checkpointing=True, batch_norm="train")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("distortions=[jpg]", "did you mean jpeg"),
        ("table=kadid", "unknown distortion table"),
        ("levels=6", "levels 1 to 5"),
        ("compositions=8", "8 distortions"),
        ("attribute_kinds={blurs: [sharp_image]}", "blurs"),
    ],
)
def test_impossible_plans_are_refused_before_training(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_plan(load_config("laptop", [setting]))


def test_a_head_names_only_kinds_that_are_drawn() -> None:
    with pytest.raises(ConfigError, match="which distortions leaves out"):
        check_plan(load_config("lite", ["distortions=[jpeg, gaussian_blur]"]))


@pytest.mark.parametrize(
    ("settings", "takes_part"),
    [
        ([], True),
        (["distortions=[jpeg, white_noise]"], True),
        (["distortions=[jpeg]"], False),
        (["prompt_pairs=[good_photo, good_picture]"], False),
        (["prompt_pairs=[sharp_image, sharp_edges]", "distortions=[gaussian_blur]"], False),
    ],
    ids=["all", "noise", "no kind", "no pair", "every pair"],
)
def test_an_attribute_loss_that_never_takes_part_is_refused(settings: list[str], takes_part: bool) -> None:
    config = load_config("laptop", ["attribute_weight=1", *settings])
    with nullcontext() if takes_part else pytest.raises(ConfigError, match="attribute_weight has no effect"):
        check_plan(config)


def test_a_missing_file_names_the_choices() -> None:
    with pytest.raises(ConfigError, match="laptop"):
        load_config("desktop")


def test_a_file_that_is_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- steps\n")
    with pytest.raises(ConfigError, match="mapping"):
        load_config(str(path))


def test_only_settings_that_decide_the_result_count_as_changes() -> None:
    first = TrainConfig()
    assert differences(first.to_dict(), TrainConfig(workers=1, save_every=5, keep=9).to_dict()) == []
    assert differences(first.to_dict(), TrainConfig(steps=5).to_dict()) == []
    first, second = TrainConfig(schedule="cosine"), TrainConfig(schedule="cosine", steps=5)
    assert differences(first.to_dict(), second.to_dict()) == ["steps: 87500 -> 5"]


def test_a_mistake_in_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("steps: 3\nsteps: 4\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml, line 2: steps is already in line 1"):
        load_config(str(path))
    path.write_text("steps: 3\nattribute_kinds:\n  blur: sharp_image\n")
    with pytest.raises(ConfigError, match=r"line 3: attribute_kinds\.blur must be a list, not 'sharp_image'"):
        load_config(str(path))
