"""Lists of known names, as text tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tabulate import tabulate

from harness.data.spec import catalogue
from harness.leaderboard.render import one_line
from harness.scorers.names import known_scorers, lower_better
from harness.scorers.start import availability
from qualiclip_plugin.utils.progress import track
from qualiclip_plugin.utils.shown import printable


def dataset_table(include: Iterable[Path] = ()) -> str:
    """Every known dataset: name, version, images, scores, split rule, source, what of it was tried for real."""
    rows = [
        (
            printable(spec.key),
            spec.images or "",
            spec.opinion.kind.upper() if spec.opinion else "",
            spec.split,
            printable(spec.source) + (", stream" if spec.stream else "") + ("" if spec.pinned else ", not pinned"),
            printable(spec.verified),
            printable(spec.description),
        )
        for spec in catalogue(include).values()
    ]
    headers = ("dataset", "images", "scores", "split", "source", "verified", "what")
    return tabulate(rows, headers=headers, disable_numparse=True)


def scorer_table(available: bool = False) -> str:
    """Every known scorer: name, direction, whether opinions entered its training and which, licence.

    Args:
        available: Try to start each one without a download; say how many parameters it has, or why it cannot.
    """
    words = {True: "yes", False: "no", None: "?"}
    known = known_scorers()
    rows = {
        name: [name, "lower" if lower_better(name) else "higher", words[facts.opinion_aware]]
        for name, facts in known.items()
    }
    headers = ["scorer", "better", "opinion-aware", "trained on", "licence"]
    for name, facts in known.items():
        rows[name] += [" ".join(facts.trained_on), facts.licence]
    if available:
        headers += ["starts here", "parameters", "why not"]
        for start in track(availability(known), "Starting scorers", len(known)):
            count = "" if start.parameters is None else f"{start.parameters:,}"
            rows[start.name] += ["" if start.reason else "yes", count, printable(one_line(start.reason))[:100]]
    return tabulate(list(rows.values()), headers=headers, disable_numparse=True)
