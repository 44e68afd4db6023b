"""What moved since a baseline was taken.

Comparing two snapshots gives findings; no finding means that nothing moved by more than the scorer's tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from harness import statistics as st
from harness.check.findings import Comparison, Finding, check_started, differences, direction_findings
from harness.check.snapshot import IncomparableError, Snapshot, figures


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


def compare(
    current: Snapshot,
    baseline: Snapshot,
    tolerances: Mapping[str, float] | None = None,
    ranks: Mapping[str, float] | None = None,
) -> Comparison:
    """What moved between two snapshots of the same images.

    Args:
        current: Taken now, of scorers that the baseline has.
        tolerances: Absolute tolerance by scorer name, or under ``""`` for all, instead of the declared ones.
        ranks: Smallest accepted SRCC between then and now, in the same way.

    Raises:
        IncomparableError: Other images, a scorer that cannot start now, or one that the baseline lacks.
    """
    check_started(current)
    changed = _changed_images(current, baseline)
    if unknown := sorted(current.scorers.keys() - baseline.scorers.keys()):
        raise IncomparableError(f"the baseline lacks {', '.join(unknown)}; --update takes a new one")
    findings: list[Finding] = []
    for name, now in current.scorers.items():
        then = baseline.scorers[name]
        precision = max(then["precision"], now["precision"], key=list(TOLERANCES).index)
        findings += _moved(name, then, now, tolerance_of(name, precision, tolerances or {}, ranks or {}))
    return Comparison(
        findings,
        **differences(current, baseline),
        images=changed,
        checked=sum(len(now["scores"]) + len(now["figures"]) for now in current.scorers.values()),
    )


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


def tolerance_of(
    scorer: str, precision: str, chosen: Mapping[str, float], ranks: Mapping[str, float] = {}
) -> Tolerance:
    """The declared tolerance of a scorer, its parts replaced where the caller chose them."""
    declared = SCORER_TOLERANCES.get(scorer.partition("@")[0], TOLERANCES[precision])
    rank, absolute = (values.get(scorer, values.get("")) for values in (ranks, chosen))
    if rank is not None:
        declared = replace(declared, rank=rank, swap=False)
    return declared if absolute is None else replace(declared, absolute=absolute, relative=0.0)


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
    findings = direction_findings(name, then, now)
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
