"""Bounds on the quality of a user's images: ``--min-score``, and ``--max-drop`` picture by picture.

A mean over all pictures hides one ruined picture, and so does the worst score if another picture was worse before.
Every picture is therefore held to its own score in the baseline, and every picture of the baseline must be there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from harness.check.findings import (
    Comparison,
    Figure,
    Finding,
    check_started,
    differences,
    direction_findings,
    sign,
)
from harness.check.snapshot import IncomparableError, Snapshot
from qualiclip_plugin.utils.errors import ConfigError

FIGURES = ("mean", "worst")
"""Figures of a baseline that ``--max-drop`` holds besides every picture."""


@dataclass(frozen=True)
class Limits:
    """Bounds, oriented so that higher is better.

    Attributes:
        min_score: No image may score below; ``None``: no such bound.
        max_drop: No image, and neither the mean nor the worst score, may fall by more since the baseline.
        missing: Whether images of the baseline may be gone.
        new: Whether there may be images that the baseline lacks.
        renamed: Whether images may have another name; they are then held to the score of the old one.
    """

    min_score: float | None = None
    max_drop: float | None = None
    missing: bool = False
    new: bool = False
    renamed: bool = False

    def __post_init__(self) -> None:
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise ConfigError(f"--min-score is {self.min_score}: a number is needed")
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            raise ConfigError(f"--max-drop is {self.max_drop}: a number is needed, of at least 0")

    @property
    def bounded(self) -> bool:
        """Whether there is any bound."""
        return self.min_score is not None or self.max_drop is not None

    @property
    def allows_other_images(self) -> bool:
        """Whether images may come, go or be renamed."""
        return self.missing or self.new or self.renamed


@dataclass(frozen=True)
class Matches:
    """Which images of two snapshots are the same.

    Attributes:
        then: Name now to the name in the baseline, for every image that is in both.
        renamed: The part of ``then`` whose names differ; the pixels are the same.
        missing: Images of the baseline that are gone.
    """

    then: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    new: tuple[str, ...] = ()


def match(current: Snapshot, baseline: Snapshot) -> Matches:
    """Find each image of the baseline by its name; those whose names are gone, by their pixels."""
    same = current.images.keys() & baseline.images.keys()
    gone, new = (sorted(images.keys() - same) for images in (baseline.images, current.images))
    by_pixels: dict[str, list[str]] = {}
    for name in reversed(gone):
        by_pixels.setdefault(baseline.images[name], []).append(name)
    renamed = {name: found.pop() for name in new if (found := by_pixels.get(current.images[name]))}
    return Matches(
        then={name: name for name in same} | renamed,
        renamed=renamed,
        missing=tuple(sorted({*gone} - {*renamed.values()})),
        new=tuple(name for name in new if name not in renamed),
    )


def hold(current: Snapshot, baseline: Snapshot | None, limits: Limits) -> Comparison:
    """Hold images to bounds.

    Returns:
        The findings of each scorer, images without a score first, then drops, the largest first, then images below
        the bound, the worst first; after those of all scorers the images that came or went, then mean and worst.

    Raises:
        IncomparableError: A scorer did not start, or ``max_drop`` lacks a baseline of it.
    """
    check_started(current)
    matches = Matches() if limits.max_drop is None else match(current, _with_scores_of(current, baseline))
    circumstances = differences(current, baseline)
    findings: list[Finding] = []
    fallen: list[Finding] = []
    for name, now in current.scorers.items():
        findings += [Finding(name, "failure", image, None, None, reason) for image, reason in now["failures"].items()]
        if limits.max_drop is not None and baseline is not None:
            then = baseline.scorers[name]
            drops = _drops(name, then, now, matches)
            findings += direction_findings(name, then, now)
            findings += _beyond(limits.max_drop, now, drops, "drop")
            # These see the images that came or went as well.
            figures = [Figure(name, key, then["figures"][key], now["figures"].get(key)) for key in FIGURES]
            fallen += _beyond(limits.max_drop, now, figures, "figure")
            circumstances["figures"] += [
                replace(drop, name="largest drop") for drop in drops[:1] if _size(drop, now) > 0
            ]
        findings += _below(name, now, limits.min_score)
    checked = len(current.images) * len(current.scorers)
    return Comparison([*findings, *_came_and_went(matches, limits), *fallen], **circumstances, checked=checked)


def _with_scores_of(current: Snapshot, baseline: Snapshot | None) -> Snapshot:
    known = baseline.scorers if baseline else {}
    lacking = [name for name in current.scorers if not known.get(name, {}).get("figures", {}).keys() >= set(FIGURES)]
    if baseline is None or lacking:
        names = ", ".join(lacking)
        raise IncomparableError(f"--max-drop needs the scores of {names} in the baseline; --update takes them")
    return baseline


def _drops(name: str, then: Mapping[str, Any], now: Mapping[str, Any], matches: Matches) -> list[Figure]:
    """Score then and now of every image that has both, the largest drop first."""
    pairs = [
        Figure(name, "drop", then["scores"][old], now["scores"][image], image)
        for image, old in sorted(matches.then.items())
        if old in then["scores"] and image in now["scores"]
    ]
    return sorted(pairs, key=lambda pair: -_size(pair, now))


def _size(drop: Figure, now: Mapping[str, Any]) -> float:
    """By how much a figure became worse; where it is gone, infinite."""
    if drop.baseline is None or drop.current is None:
        return math.inf
    return sign(now) * (drop.baseline - drop.current)


def _beyond(bound: float, now: Mapping[str, Any], figures: list[Figure], what: str) -> list[Finding]:
    return [
        Finding(one.scorer, what, one.image or one.name, one.baseline, one.current, f"drop <= {bound:g}")
        for one in figures
        if _size(one, now) > bound
    ]


def _below(name: str, now: Mapping[str, Any], bound: float | None) -> list[Finding]:
    if bound is None:
        return []
    allowed = f"{'<=' if now['lower_better'] else '>='} {bound:g}"
    below = {image: score for image, score in now["scores"].items() if sign(now) * score < sign(now) * bound}
    worst_first = sorted(below.items(), key=lambda item: sign(now) * item[1])
    return [Finding(name, "limit", image, None, score, allowed) for image, score in worst_first]


def _came_and_went(matches: Matches, limits: Limits) -> list[Finding]:
    kinds = {
        "missing": () if limits.missing else matches.missing,
        "new": () if limits.new else matches.new,
        "renamed": () if limits.renamed else [f"{old} -> {new}" for new, old in sorted(matches.renamed.items())],
    }
    return [Finding("", what, name, None, None, f"--allow-{what}") for what, names in kinds.items() for name in names]
