"""What moved since a baseline was taken, and whether images keep within the bounds that were set for them.

Comparing two snapshots gives findings; no finding means that nothing moved by more than the scorer's tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

from harness import statistics as st
from harness.check.snapshot import IncomparableError, Snapshot, figures
from qualiclip_plugin.utils.errors import ConfigError


@dataclass(frozen=True)
class Tolerance:
    """How far a score may move, ``absolute + relative * |baseline|``, and the order of the images.

    Attributes:
        absolute: In units of the score.
        relative: Share of the baseline's magnitude.
        rank: Smallest accepted SRCC between the scores of now and of the baseline.
        swap: Whether two neighbours may change places whatever SRCC that leaves.
    """

    absolute: float = 1e-4
    relative: float = 1e-4
    rank: float = 0.999
    swap: bool = True

    def allows(self, baseline: float, current: float) -> bool:
        """Whether ``current`` is near enough to ``baseline``."""
        return abs(current - baseline) <= self.absolute + self.relative * abs(baseline)

    def least_rank(self, images: int) -> float:
        """Smallest accepted SRCC over so many images, at least 3."""
        # Rounding turns round two nearly equal scores; among a handful of images that alone costs more than `rank`.
        one_swap = 1 - 12 / (images * (images**2 - 1))
        return min(self.rank, one_swap - 1e-9) if self.swap else self.rank


TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(),
    # Autocast rounds differently from one processor to the next.
    "fp16": Tolerance(absolute=2e-3, rank=0.99),
    "bf16": Tolerance(absolute=1e-2, rank=0.98),
}
"""By precision, for scores in [0, 1]."""
SCORER_TOLERANCES: Mapping[str, Tolerance] = {
    # NIQE's covariance of block features amplifies rounding; its scores run from about 2 to 30.
    "niqe": Tolerance(absolute=1e-3, relative=1e-3, rank=0.99),
    # PIQE counts blocks: one block that crosses its threshold is a step of the score (0 to 100).
    "piqe": Tolerance(absolute=0.5, relative=1e-3, rank=0.98),
}


@dataclass(frozen=True)
class Finding:
    """One thing that moved.

    Attributes:
        scorer: Whose score.
        what: A key of ``harness.check.report.MEANINGS``.
        name: The image, the figure or the prompt pair.
        baseline: Value then; ``None`` where there was none.
        current: Value now; ``None`` where there is none.
        allowed: What would have been accepted, in words.
    """

    scorer: str
    what: str
    name: str
    baseline: float | None
    current: float | None
    allowed: str


DROPS = ("mean", "worst")
"""Figures of a baseline that ``--max-drop`` holds."""


@dataclass(frozen=True)
class Limits:
    """Bounds on the quality of somebody's images, oriented so that higher is better.

    Attributes:
        min_score: No image may score below; ``None``: no such bound.
        max_drop: Neither the mean nor the worst score may fall by more against the baseline.
    """

    min_score: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        for name, bound in (("--min-score", self.min_score), ("--max-drop", self.max_drop)):
            if bound is not None and not math.isfinite(bound):
                raise ConfigError(f"{name} is {bound}: a number is needed")


@dataclass(frozen=True)
class Figure:
    """A summary figure of a scorer then and now.

    Attributes:
        scorer: Whose.
        name: ``mean``, ``worst`` or ``d_test``.
        baseline: Value then; ``None`` where there was none.
        current: Value now; ``None`` where there is none.
        image: Whose score the worst one is.
    """

    scorer: str
    name: str
    baseline: float | None
    current: float | None
    image: str = ""


@dataclass(frozen=True)
class Comparison:
    """What a check found.

    Attributes:
        findings: What moved too far, worst scorers together.
        versions: Package to its (baseline, present) versions, where they differ.
        identities: Scorer to what else of its identity differs, as ``key: then -> now``.
        images: Image to the (baseline, present) SHA-256 of its pixels, where one file is now read differently.
        figures: Every summary figure, moved or not.
        checked: Number of values compared.
        error: Why no comparison could be made; empty where one was.
    """

    findings: list[Finding] = field(default_factory=list)
    versions: dict[str, tuple[str, str]] = field(default_factory=dict)
    identities: dict[str, list[str]] = field(default_factory=dict)
    images: dict[str, tuple[str, str]] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    checked: int = 0
    error: str = ""


def compare(
    current: Snapshot,
    baseline: Snapshot,
    tolerances: Mapping[str, float] | None = None,
    ranks: Mapping[str, float] | None = None,
) -> Comparison:
    """What moved between two snapshots of the same images.

    Args:
        current: Taken now, of scorers that the baseline has.
        baseline: Taken before.
        tolerances: Absolute tolerance by scorer name, or under ``""`` for all, instead of the declared ones.
        ranks: Smallest accepted SRCC between then and now, in the same way.

    Raises:
        IncomparableError: Other images, a scorer that cannot start now, or one that the baseline lacks.
    """
    changed = _changed_images(current, baseline)
    _check_same_scorers(current, baseline)
    findings: list[Finding] = []
    for name, now in current.scorers.items():
        then = baseline.scorers[name]
        precision = max(then["precision"], now["precision"], key=list(TOLERANCES).index)
        findings += _moved(name, then, now, tolerance_of(name, precision, tolerances or {}, ranks or {}))
    return Comparison(
        findings,
        **_differences(current, baseline),
        images=changed,
        checked=sum(len(now["scores"]) + len(now["figures"]) for now in current.scorers.values()),
    )


def _differences(current: Snapshot, baseline: Snapshot | None) -> dict[str, Any]:
    """Versions, identities and figures of a comparison."""
    known = baseline.versions if baseline else {}
    identities = {}
    summary = []
    for name, now in current.scorers.items():
        then = baseline.scorers.get(name) if baseline else None
        if then and (differences := _identity_differences(then["identity"], now["identity"])):
            identities[name] = differences
        worst = min(now["scores"], key=lambda image: now["scores"][image] * _sign(now), default="")
        for figure in sorted({*now["figures"], *(then["figures"] if then else ())}):
            before = then["figures"].get(figure) if then else None
            image = worst if figure == "worst" else ""
            summary.append(Figure(name, figure, before, now["figures"].get(figure), image))
    versions = {
        package: (known.get(package, "-"), version)
        for package, version in current.versions.items()
        if baseline and known.get(package) != version
    }
    return {"versions": versions, "identities": identities, "figures": summary}


def check(
    current: Snapshot,
    baseline: Snapshot | None,
    tolerances: Mapping[str, float],
    limits: Limits | None,
    ranks: Mapping[str, float] | None = None,
) -> Comparison:
    """Compare with a baseline where there is one; else hold the images to ``limits`` alone.

    Raises:
        IncomparableError: See :func:`compare`; or neither a baseline nor limits, or no scorer could start.
    """
    if not current.scorers:
        raise IncomparableError(f"no scorer could start: {_reasons(current)}")
    if limits is not None:
        return _held_to_limits(current, baseline, limits)
    if baseline is None:
        raise IncomparableError("nothing to compare with: no baseline and no limits")
    return compare(current, baseline, tolerances, ranks)


def _held_to_limits(current: Snapshot, baseline: Snapshot | None, limits: Limits) -> Comparison:
    # A pipeline's images change with every build; what must not fall is their quality, so the sets may differ.
    if current.unavailable:
        raise IncomparableError(f"a scorer could not start: {_reasons(current)}")
    findings: list[Finding] = []
    for name, now in current.scorers.items():
        then = baseline.scorers.get(name) if baseline else None
        if limits.max_drop is not None and (then is None or not then["figures"].keys() >= set(DROPS)):
            raise IncomparableError(f"--max-drop needs the figures of {name} in the baseline; --update takes them")
        findings += beyond_limits(name, now, limits, then["figures"] if then else None)
    checked = len(current.images) * len(current.scorers)
    return Comparison(findings, **_differences(current, baseline), checked=checked)


def changes(current: Snapshot, known: Snapshot) -> Comparison:
    """What a new baseline changes: what moved, and as findings too the images and scorers that come and go."""
    images = {name: pixels for name, pixels in current.images.items() if pixels == known.images.get(name)}
    scorers = [name for name in current.scorers if name in known.scorers]
    now, then = (_part(snapshot, images, scorers) for snapshot in (current, known))
    compared = compare(now, then)
    changed = [name for name in current.images if name in known.images and name not in images]
    kinds = {
        ("image", "added"): current.images.keys() - known.images.keys(),
        ("image", "removed"): known.images.keys() - current.images.keys(),
        ("image", "changed"): changed,
        ("scorer", "added"): current.scorers.keys() - known.scorers.keys(),
        ("scorer", "removed"): known.scorers.keys() - current.scorers.keys(),
    }
    other = [
        Finding("", what, name, None, None, how) for (what, how), names in kinds.items() for name in sorted(names)
    ]
    return replace(compared, findings=[*other, *compared.findings])


def moved_without_version(changed: Comparison, current: Snapshot, known: Snapshot) -> list[str]:
    """Scorers of this project whose scores of its own pictures moved while their identity stayed the same."""
    if current.files:
        return []
    moved = {finding.scorer for finding in changed.findings if finding.what in ("score", "failure")}
    ours = [name for name in moved if "scores_version" in current.scorers[name]["identity"]]
    return sorted(name for name in ours if current.scorers[name]["identity"] == known.scorers[name]["identity"])


def _part(snapshot: Snapshot, images: dict[str, str], scorers: Sequence[str]) -> Snapshot:
    rows = {}
    for name in scorers:
        row = snapshot.scorers[name]
        scores = {image: score for image, score in row["scores"].items() if image in images}
        rows[name] = {**row, "scores": scores, "figures": figures(scores, lower_better=row["lower_better"])}
    return replace(snapshot, images=images, files={}, scorers=rows, unavailable={})


def _reasons(current: Snapshot) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in current.unavailable.items())


def tolerance_of(
    scorer: str, precision: str, chosen: Mapping[str, float], ranks: Mapping[str, float] = {}
) -> Tolerance:
    """The declared tolerance of a scorer, its parts replaced where the caller chose them."""
    declared = SCORER_TOLERANCES.get(scorer.partition("@")[0], TOLERANCES[precision])
    rank, absolute = (values.get(scorer, values.get("")) for values in (ranks, chosen))
    if rank is not None:
        declared = replace(declared, rank=rank, swap=False)
    return declared if absolute is None else replace(declared, absolute=absolute, relative=0.0)


def _check_same_scorers(current: Snapshot, baseline: Snapshot) -> None:
    if current.unavailable:
        raise IncomparableError(f"scorers of the baseline are missing now: {_reasons(current)}")
    if unknown := sorted(current.scorers.keys() - baseline.scorers.keys()):
        raise IncomparableError(f"the baseline lacks {', '.join(unknown)}; --update takes a new one")


def _changed_images(current: Snapshot, baseline: Snapshot) -> dict[str, tuple[str, str]]:
    """Images of which the same file gives other pixels now.

    Raises:
        IncomparableError: Another set of images: names or files differ, or generated pictures do.
    """
    names = current.images.keys() | baseline.images.keys()
    changed = {name for name in names if current.images.get(name) != baseline.images.get(name)}
    shared = changed & current.images.keys() & baseline.images.keys()
    same_file = {name for name in shared if current.files.get(name, "") == baseline.files.get(name)}
    if differing := sorted(changed - same_file):
        shown = ", ".join(_told(name, current, baseline) for name in differing[:5])
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise IncomparableError(f"other images than the baseline's: {shown}{more}")
    return {name: (baseline.images[name], current.images[name]) for name in sorted(same_file)}


def _told(name: str, current: Snapshot, baseline: Snapshot) -> str:
    if name not in baseline.images:
        return f"{name} (added)"
    if name not in current.images:
        return f"{name} (missing)"
    return f"{name} (sha256 {baseline.images[name][:12]} -> {current.images[name][:12]})"


def _moved(name: str, then: Mapping[str, Any], now: Mapping[str, Any], tolerance: Tolerance) -> list[Finding]:
    allowed = f"+-{tolerance.absolute:g} +-{tolerance.relative:.2%}"
    findings = []
    if then["lower_better"] != now["lower_better"]:
        direction = (float(then["lower_better"]), float(now["lower_better"]))
        findings.append(Finding(name, "direction", "lower is better (1: yes)", *direction, "no change"))
    # A baseline of an earlier release knows no prompts.
    pairs = zip_longest(then.get("prompts", now.get("prompts", [])), now.get("prompts", []), fillvalue="none")
    findings += [
        Finding(name, "prompt", f"{old} -> {new}", None, None, "no change") for old, new in pairs if old != new
    ]
    for what, key in (("score", "scores"), ("figure", "figures")):
        for item in sorted(then[key].keys() | now[key].keys()):
            old, new = then[key].get(item), now[key].get(item)
            if old is None or new is None or not tolerance.allows(old, new):
                kind = "failure" if None in (old, new) else what
                findings.append(Finding(name, kind, item, old, new, allowed))
    both = sorted(then["scores"].keys() & now["scores"].keys())
    before, after = ([row["scores"][item] for item in both] for row in (then, now))
    if st.srcc(before, before).defined:
        order, least = st.srcc(before, after), tolerance.least_rank(len(both))
        # Scores that have become all the same have no order, and kept none.
        if not order.defined or order.value < least:
            value = float(order.value) if order.defined else None
            findings.append(Finding(name, "order", "SRCC then and now", 1.0, value, f">= {least:.6g}"))
    return findings


def beyond_limits(
    name: str, now: Mapping[str, Any], limits: Limits, then_figures: Mapping[str, float] | None = None
) -> list[Finding]:
    """Images and figures beyond declared bounds; failed images are findings too."""
    sign = _sign(now)
    findings = [Finding(name, "failure", image, None, None, reason) for image, reason in now["failures"].items()]
    if limits.min_score is not None:
        findings += [
            Finding(name, "limit", image, None, score, f"{'<=' if sign < 0 else '>='} {limits.min_score:g}")
            for image, score in now["scores"].items()
            if sign * score < sign * limits.min_score
        ]
    if limits.max_drop is not None and then_figures is not None:
        findings += [
            Finding(name, "figure", key, then_figures[key], now["figures"].get(key), f"drop <= {limits.max_drop:g}")
            for key in DROPS
            if key not in now["figures"] or sign * (then_figures[key] - now["figures"][key]) > limits.max_drop
        ]
    return findings


def _sign(row: Mapping[str, Any]) -> float:
    return -1.0 if row["lower_better"] else 1.0


def _identity_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    keys = sorted(then.keys() | now.keys())
    return [f"{key}: {then.get(key, '-')} -> {now.get(key, '-')}" for key in keys if then.get(key) != now.get(key)]
