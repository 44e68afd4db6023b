"""What is known by name, as text tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tabulate import tabulate

from harness.data.specs import catalogue
from harness.formats import one_line
from harness.scorers import availability, known_scorers, lower_better


def dataset_table(include: Iterable[Path] = ()) -> str:
    """Every known dataset: name, version, images, source, whether it was run by the project."""
    rows = [
        (spec.key, spec.images or "", spec.source, "yes" if spec.ran else "never run here", spec.description)
        for spec in catalogue(include).values()
    ]
    return tabulate(rows, headers=("dataset", "images", "source", "run", "what"), disable_numparse=True)


def scorer_table(available: bool = False) -> str:
    """Every known scorer: name, whether opinions entered its training, and which.

    Args:
        available: Try to start each one without a download, and say why it cannot.
    """
    words = {True: "yes", False: "no", None: "?"}
    known = known_scorers()
    rows = [
        [name, "lower" if lower_better(name) else "higher", words[facts.opinion_aware], " ".join(facts.trained_on)]
        for name, facts in known.items()
    ]
    headers = ["scorer", "better", "opinion-aware", "trained on"]
    if available:
        reasons = dict(availability(known))
        rows = [[*row, "" if reasons[row[0]] else "yes", one_line(reasons[row[0]])[:100]] for row in rows]
        headers += ["starts here", "why not"]
    return tabulate(rows, headers=headers, disable_numparse=True)
