"""Facts about a scorer from its name, before it starts: options, training, direction."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from qualiclip_plugin.utils.errors import ConfigError, QualiCLIPError
from qualiclip_plugin.utils.json_yaml import parse_yaml

DEFAULT_SCORERS = ("qualiclip-lite", "piqe", "entropy", "niqe", "clipiqa", "qualiclip")
OURS = {"qualiclip": "official", "qualiclip-lite": "lite", "qualiclip-clip": "clip"}
"""This project's metrics: the weight name that each one loads."""

COMMAND = "cmd:"

DECLARATIONS = ("opinion_aware", "trained_on", "licence")
"""Options that say what is known of a scorer, of any kind, and are not given to it; datasets are joined by ``+``."""

OTHER_WEIGHTS = frozenset({"pretrained", "pretrained_model_path", "model_type", "model_name", "backbone"})
"""Options of pyiqa's metrics with which what is known of the metric no longer holds."""

OTHER_INPUT = frozenset({"fid", "sfid", "fid_dinov2", "inception_score", "clipscore"})
"""Metrics that pyiqa counts as no-reference but that need a set of images, or a caption."""

TABLE = Path(__file__).parent / "scorers.csv"


class ScorerError(QualiCLIPError):
    """A scorer is unknown, or cannot start here."""


@dataclass(frozen=True)
class Facts:
    """Facts about a scorer that need no start.

    Attributes:
        opinion_aware: Whether human opinion scores entered its training; none if unknown.
        trained_on: Datasets whose opinions it has seen; ``?`` where not all are known.
        licence: Terms of the weights, where known.
        chosen_on: Datasets whose opinions chose between its variants, without entering its training.
    """

    opinion_aware: bool | None = None
    trained_on: tuple[str, ...] = ()
    licence: str = ""
    chosen_on: tuple[str, ...] = ()


_LABELLED = re.compile(r"([\w+.-]+)=(.+)", re.DOTALL)


def split_label(name: str) -> tuple[str, str]:
    """Split ``LABEL=NAME``; without a label the name is its own."""
    found = _LABELLED.fullmatch(name)  # options and commands stand behind a sign that no label holds
    return (found[1], found[2]) if found else (name, name)


def parse_name(name: str) -> tuple[str, dict[str, Any]]:
    """Split ``[LABEL=]NAME@option=value,...`` into the name and its options; values are read as YAML scalars.

    Raises:
        ScorerError: An option without ``=``.
    """
    _, name = split_label(name)
    base, _, text = name.partition("@")
    if name.startswith(COMMAND):
        # A command may hold an @ of its own; options stand behind the last one.
        base, _, text = name.rpartition("@")
        if "=" not in text or not base:
            base, text = name, ""
    options = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ScorerError(f"{name}: {item!r} is not option=value")
        try:
            options[key.strip()], _ = parse_yaml(value, name)
        except ConfigError as error:
            raise ScorerError(*error.args) from error
    return base, options


def facts(name: str) -> Facts:
    """Facts about a scorer's training, from its options, its card or ``scorers.csv``, in this order.

    Raises:
        ScorerError: The options contradict each other.
    """
    base, options = parse_name(name)
    return _declared(name, _known(base, options), options)


def known_scorers() -> Mapping[str, Facts]:
    """Every scorer known by name: ours and pyiqa's no-reference metrics."""
    return {name: facts(name) for name in sorted({*OURS, *pyiqa_names()})}


def lower_better(name: str) -> bool:
    """Declared direction of a scorer known by name; every metric of this project is higher-better."""
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    return bool(DEFAULT_CONFIGS.get(parse_name(name)[0], {}).get("lower_better"))


def is_ours(base: str) -> bool:
    """Whether a name without options is a metric of this project."""
    return base in OURS or base.startswith("qualiclip+")


@cache
def pyiqa_names() -> frozenset[str]:
    """pyiqa's no-reference metrics of single images."""
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    named = {name for name, row in DEFAULT_CONFIGS.items() if row.get("metric_mode") == "NR"}
    return frozenset(named - OTHER_INPUT)


def other_input(base: str) -> str:
    """Why a metric of pyiqa cannot score a single image; empty if it can, or is unknown."""
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    if base in OTHER_INPUT:
        return f"{base} needs a set of images, or a caption"
    full_reference = DEFAULT_CONFIGS.get(base, {}).get("metric_mode") == "FR"
    return f"{base} compares an image with its reference, and images are scored without one here" * full_reference


def _known(base: str, options: Mapping[str, Any]) -> Facts:
    if is_ours(base):
        from qualiclip_plugin.weights.loading import load_cards

        card = load_cards().get(str(options.get("weights", OURS.get(base, base))))
        return Facts(card.opinion_aware, card.seen, card.licence, card.chosen_on) if card else Facts()
    # Other weights were trained on something else.
    return Facts() if options.keys() & OTHER_WEIGHTS else _facts_table().get(base, Facts())


def _declared(name: str, known: Facts, options: Mapping[str, Any]) -> Facts:
    aware, licence = options.get("opinion_aware", known.opinion_aware), str(options.get("licence", known.licence))
    trained_on = tuple(filter(None, str(options.get("trained_on", "+".join(known.trained_on))).split("+")))
    if "trained_on" in options and "opinion_aware" not in options:
        aware = bool(trained_on)
    if not (aware is None or isinstance(aware, bool)) or (aware is False and trained_on):
        raise ScorerError(f"{name}: opinion_aware is true or false, and trained_on needs true")
    return Facts(aware, trained_on, licence, known.chosen_on)


@cache
def _facts_table() -> Mapping[str, Facts]:
    known = {"yes": True, "no": False}
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {
            row["name"]: Facts(known.get(row["opinion_aware"]), tuple(row["trained_on"].split()), row["licence"])
            for row in csv.DictReader(file)
        }
