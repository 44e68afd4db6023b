"""What is known by name, as text tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tabulate import tabulate

from harness.scorers import known_scorers
from harness.specs import catalogue


def dataset_table(include: Iterable[Path] = ()) -> str:
    """Every known dataset: name, version, images, source, whether it was run by the project."""
    rows = [
        (spec.key, spec.images or "", spec.source, "yes" if spec.ran else "never run here", spec.description)
        for spec in catalogue(include).values()
    ]
    return tabulate(rows, headers=("dataset", "images", "source", "run", "what"), disable_numparse=True)


def scorer_table() -> str:
    """Every known scorer: name, whether opinions entered its training, and which."""
    words = {True: "yes", False: "no", None: "?"}
    rows = [(name, words[facts.opinion_aware], " ".join(facts.trained_on)) for name, facts in known_scorers().items()]
    return tabulate(rows, headers=("scorer", "opinion-aware", "trained on"), disable_numparse=True)
