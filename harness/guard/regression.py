"""Scores under guard: snapshots of every per-image score, and what moved since the baseline was taken.

A snapshot holds, for each scorer, the score of every image (with the hash of its pixels), the figures over them, and
the versions that made them. Comparing two snapshots gives findings; no finding means that nothing moved by more than
the scorer's tolerance. Scores are always computed anew: a cache would hide what is looked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import statistics as st
from harness.data.loading import Decoded
from harness.guard.images import PRISTINE, guard_images
from harness.scorers import Scorer, ScorerError, create_scorer
from qualiclip_plugin.errors import QualiCLIPError
from qualiclip_plugin.files import atomic_write
from qualiclip_plugin.images import images_in, read_image

Pixels = NDArray[np.uint8]

SCHEMA_VERSION = 1
GUARD_SCORERS = ("qualiclip-lite", "niqe", "piqe", "entropy")
"""Scorers of the project's own baseline; those that cannot start when it is taken are left out and named."""
VERSIONS = ("qualiclip-plugin", "torch", "torchvision", "pyiqa", "open_clip_torch", "timm", "numpy", "Pillow")


class IncomparableError(QualiCLIPError):
    """Baseline and present cannot be compared: no baseline, another image set, a scorer that does not start."""


@dataclass(frozen=True)
class Tolerance:
    """How far a score may move, ``absolute + relative * |baseline|``, and the order of the images.

    Attributes:
        absolute: In units of the score.
        relative: Share of the baseline's magnitude.
        rank: Smallest accepted SRCC between the scores of now and of the baseline.
    """

    absolute: float = 1e-4
    relative: float = 1e-4
    rank: float = 0.999

    def allows(self, baseline: float, current: float) -> bool:
        """Whether ``current`` is near enough to ``baseline``."""
        return abs(current - baseline) <= self.absolute + self.relative * abs(baseline)


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
        what: ``score``, ``figure``, ``order``, ``direction``, ``failure`` or ``limit``.
        name: The image or the figure.
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


@dataclass(frozen=True)
class Snapshot:
    """Scores of some images by some scorers; see the module.

    Attributes:
        images: Image name to the SHA-256 of its pixels.
        scorers: Scorer name to ``lower_better``, ``precision``, ``identity``, ``scores``, ``failures``, ``figures``.
        unavailable: Scorers that could not start, with the reason.
        versions: Package versions.
        date: When it was taken, UTC.
    """

    images: dict[str, str]
    scorers: dict[str, dict[str, Any]]
    unavailable: dict[str, str]
    versions: dict[str, str]
    date: str
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Limits:
    """Bounds on the quality of somebody's images, oriented so that higher is better.

    Attributes:
        min_score: No image may score below; ``None``: no such bound.
        max_drop: Neither the mean nor the worst score may fall by more against the baseline.
    """

    min_score: float | None = None
    max_drop: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What a check found.

    Attributes:
        findings: What moved too far, worst scorers together.
        versions: Package to its (baseline, present) versions, where they differ.
        identities: Scorer to what else of its identity differs, as ``key: then -> now``.
        checked: Number of values compared.
    """

    findings: list[Finding]
    versions: dict[str, tuple[str, str]] = field(default_factory=dict)
    identities: dict[str, list[str]] = field(default_factory=dict)
    checked: int = 0


def read_images(folder: str | os.PathLike[str] | None) -> dict[str, Pixels]:
    """The images to guard: those under ``folder`` by relative path, or the project's own.

    Raises:
        ImageError: One of them cannot be read, or the folder holds none.
    """
    if folder is None:
        return guard_images()
    root = Path(folder)
    return {
        path.relative_to(root).as_posix(): read_image(path).permute(1, 2, 0).numpy() for path in images_in([root])
    }


def take_snapshot(
    images: Mapping[str, Pixels], scorers: Sequence[str], *, device: str = "cpu", precision: str = "fp32"
) -> Snapshot:
    """Score every image with every scorer.

    Args:
        images: Name to RGB pixels, uint8 (H, W, 3).
        scorers: Names as in ``iqa-harness run``.
        device: Where to run.
        precision: Of the QualiCLIP metrics.
    """
    taken: dict[str, dict[str, Any]] = {}
    unavailable = {}
    for name in scorers:
        try:
            scorer = create_scorer(name, device=device, precision=precision)
        except ScorerError as error:
            unavailable[name] = str(error).splitlines()[0]
            continue
        taken[name] = {"precision": precision, **_scores(scorer, images)}
    return Snapshot(
        images={name: hashlib.sha256(pixels.tobytes()).hexdigest() for name, pixels in sorted(images.items())},
        scorers=taken,
        unavailable=unavailable,
        versions={package: metadata.version(package) for package in VERSIONS},
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _scores(scorer: Scorer, images: Mapping[str, Pixels]) -> dict[str, Any]:
    from harness.engine import BatchLimit, Options, Silent, score_batch

    scores: dict[str, float] = {}
    failures: dict[str, str] = {}
    # One image at a time: what else is scored must not be able to hide a change.
    limit = BatchLimit(Options(batch_size=1), scorer)
    for index, (name, pixels) in enumerate(sorted(images.items())):
        item = Decoded(index, np.ascontiguousarray(pixels.transpose(2, 0, 1)), "")
        for row in score_batch(scorer, [item], limit, Silent()):
            if row["error"]:
                failures[name] = row["error"]
            else:
                scores[name] = row["score"]
    return {
        "lower_better": scorer.lower_better,
        "identity": dict(scorer.identity),
        "scores": scores,
        "failures": failures,
        "figures": figures(scores, lower_better=scorer.lower_better),
    }


def figures(scores: Mapping[str, float], *, lower_better: bool) -> dict[str, float]:
    """Summary of some scores: mean, worst and, for the project's own pictures, the D-test; empty without scores."""
    if not scores:
        return {}
    values = np.array(list(scores.values()))
    result = {"mean": float(values.mean()), "worst": float(values.max() if lower_better else values.min())}
    pristine = [name.endswith(f"/{PRISTINE}") for name in scores]
    separation = st.d_test(st.oriented(values, lower_better=lower_better), pristine)
    return result | ({"d_test": float(separation.value)} if separation.defined else {})


def compare(
    current: Snapshot,
    baseline: Snapshot,
    tolerances: Mapping[str, float] | None = None,
) -> Comparison:
    """What moved between two snapshots of the same images.

    Args:
        current: Taken now.
        baseline: Taken before.
        tolerances: Absolute tolerance by scorer name, or under ``""`` for all, instead of the declared ones.

    Raises:
        IncomparableError: Other images, or a scorer of the baseline that is missing now.
    """
    _check_same_images(current, baseline)
    if missing := [name for name in baseline.scorers if name not in current.scorers]:
        reasons = "; ".join(f"{name}: {current.unavailable.get(name, 'not asked for')}" for name in missing)
        raise IncomparableError(f"scorers of the baseline are missing now: {reasons}")
    findings: list[Finding] = []
    identities = {}
    for name, then in baseline.scorers.items():
        now = current.scorers[name]
        findings += _moved(name, then, now, tolerance_of(name, then["precision"], tolerances or {}))
        if differences := _identity_differences(then["identity"], now["identity"]):
            identities[name] = differences
    versions = {
        package: (baseline.versions.get(package, "-"), version)
        for package, version in current.versions.items()
        if baseline.versions.get(package) != version
    }
    checked = sum(len(then["scores"]) + len(then["figures"]) for then in baseline.scorers.values())
    return Comparison(findings, versions, identities, checked)


def check(
    current: Snapshot, baseline: Snapshot | None, tolerances: Mapping[str, float], limits: Limits | None
) -> Comparison:
    """Compare with a baseline where there is one; else hold the images to ``limits`` alone.

    Raises:
        IncomparableError: See :func:`compare`; or neither a baseline nor limits, or no scorer could start.
    """
    if not current.scorers:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in current.unavailable.items())
        raise IncomparableError(f"no scorer could start: {reasons}")
    if limits is not None:
        return _held_to_limits(current, baseline, limits)
    if baseline is None:
        raise IncomparableError("nothing to compare with: no baseline and no limits")
    return compare(current, baseline, tolerances)


def _held_to_limits(current: Snapshot, baseline: Snapshot | None, limits: Limits) -> Comparison:
    # A pipeline's images change with every build; what must not fall is their quality, so the sets may differ.
    if current.unavailable:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in current.unavailable.items())
        raise IncomparableError(f"a scorer could not start: {reasons}")
    findings: list[Finding] = []
    for name, now in current.scorers.items():
        then = baseline.scorers.get(name) if baseline else None
        if limits.max_drop is not None and then is None:
            raise IncomparableError(f"--max-drop needs {name} in the baseline; --update takes one")
        findings += beyond_limits(name, now, limits, then["figures"] if then else None)
    checked = len(current.images) * len(current.scorers)
    return Comparison(findings, checked=checked)


def tolerance_of(scorer: str, precision: str, chosen: Mapping[str, float]) -> Tolerance:
    """The declared tolerance of a scorer, its absolute and relative part replaced where the caller chose one."""
    declared = SCORER_TOLERANCES.get(scorer.partition("@")[0], TOLERANCES[precision])
    absolute = chosen.get(scorer, chosen.get(""))
    return declared if absolute is None else Tolerance(absolute, 0.0, declared.rank)


def _check_same_images(current: Snapshot, baseline: Snapshot) -> None:
    differing = sorted(
        name
        for name in current.images.keys() | baseline.images.keys()
        if current.images.get(name) != baseline.images.get(name)
    )
    if differing:
        shown = ", ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
        raise IncomparableError(f"other images than the baseline's; added, missing or changed: {shown}")


def _moved(name: str, then: Mapping[str, Any], now: Mapping[str, Any], tolerance: Tolerance) -> list[Finding]:
    allowed = f"+-{tolerance.absolute:g} +-{tolerance.relative:.2%}"
    findings = []
    if then["lower_better"] != now["lower_better"]:
        direction = (float(then["lower_better"]), float(now["lower_better"]))
        findings.append(Finding(name, "direction", "lower is better (1: yes)", *direction, "no change"))
    for what, key in (("score", "scores"), ("figure", "figures")):
        for item in sorted(then[key].keys() | now[key].keys()):
            old, new = then[key].get(item), now[key].get(item)
            if old is None or new is None or not tolerance.allows(old, new):
                findings.append(Finding(name, "failure" if new is None else what, item, old, new, allowed))
    both = sorted(then["scores"].keys() & now["scores"].keys())
    order = st.srcc([then["scores"][item] for item in both], [now["scores"][item] for item in both])
    if order.defined and order.value < tolerance.rank:
        findings.append(Finding(name, "order", "SRCC then and now", 1.0, float(order.value), f">= {tolerance.rank}"))
    return findings


def beyond_limits(
    name: str, now: Mapping[str, Any], limits: Limits, then_figures: Mapping[str, float] | None = None
) -> list[Finding]:
    """Images and figures beyond declared bounds; failed images are findings too."""
    sign = -1.0 if now["lower_better"] else 1.0
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
            for key in ("mean", "worst")
            if key not in now["figures"] or sign * (then_figures[key] - now["figures"][key]) > limits.max_drop
        ]
    return findings


def _identity_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    keys = sorted(then.keys() | now.keys())
    return [f"{key}: {then.get(key, '-')} -> {now.get(key, '-')}" for key in keys if then.get(key) != now.get(key)]


def write_baseline(path: Path, snapshot: Snapshot) -> None:
    """Write a snapshot as the new baseline, in one step."""
    with atomic_write(path, "w") as file:
        json.dump(asdict(snapshot), file, indent=1, sort_keys=True, allow_nan=False)
        file.write("\n")


def read_baseline(path: Path) -> Snapshot:
    """Read a baseline.

    Raises:
        IncomparableError: It is missing, not a baseline, or of another schema version.
    """
    if not path.exists():
        raise IncomparableError(f"no baseline at {path}; --update takes one")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["schema_version"]
        if version != SCHEMA_VERSION:
            raise IncomparableError(f"{path}: schema version {version}, this harness reads {SCHEMA_VERSION}")
        return Snapshot(**content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IncomparableError(f"{path}: not a baseline: {error}") from error
