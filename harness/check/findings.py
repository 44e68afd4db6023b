"""The findings of a check as data, and what every kind of check reports about the scorers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.check.snapshot import IncomparableError, Snapshot
from qualiclip_plugin.utils import json_yaml


@dataclass(frozen=True)
class Finding:
    """One thing that moved.

    Attributes:
        scorer: Whose score; empty for what concerns all scorers.
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


@dataclass(frozen=True)
class Figure:
    """A summary figure of a scorer then and now.

    Attributes:
        name: ``mean``, ``worst``, ``d_test`` or ``largest drop``.
        baseline: Value then; ``None`` where there was none.
        current: Value now; ``None`` where there is none.
        image: Whose score the worst one is, or the one that dropped most.
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
        findings: What moved too far, worst first within a scorer.
        versions: Package to its (baseline, present) versions, where they differ.
        identities: Scorer to what else of its identity differs, as ``key: then -> now``.
        images: Image to the (baseline, present) SHA-256 of its pixels, where one file is now read differently.
        error: Why no comparison could be made; empty if one was.
    """

    findings: list[Finding] = field(default_factory=list)
    versions: dict[str, tuple[str, str]] = field(default_factory=dict)
    identities: dict[str, list[str]] = field(default_factory=dict)
    images: dict[str, tuple[str, str]] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    checked: int = 0
    error: str = ""


def check_started(current: Snapshot) -> None:
    """Refuse a snapshot that lacks a scorer which was asked for.

    Raises:
        IncomparableError: One could not start; the reasons are named.
    """
    if current.unavailable:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in current.unavailable.items())
        what = "scorers that were asked for are missing now" if current.scorers else "no scorer could start"
        raise IncomparableError(f"{what}: {reasons}")


def differences(current: Snapshot, baseline: Snapshot | None) -> dict[str, Any]:
    """Versions, identities and figures of a comparison."""
    known = baseline.versions if baseline else {}
    identities = {}
    summary = []
    for name, now in current.scorers.items():
        then = baseline.scorers.get(name) if baseline else None
        if then and (changed := json_yaml.differences(then["identity"], now["identity"])):
            identities[name] = changed
        worst = min(now["scores"], key=lambda image: now["scores"][image] * sign(now), default="")
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


def direction_findings(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Finding]:
    """A finding where the scorer's declared direction is another now."""
    if then["lower_better"] == now["lower_better"]:
        return []
    directions = (float(then["lower_better"]), float(now["lower_better"]))
    return [Finding(name, "direction", "lower is better (1: yes)", *directions, "no change")]


def sign(row: Mapping[str, Any]) -> float:
    """What a scorer's scores are multiplied with so that higher is better."""
    return -1.0 if row["lower_better"] else 1.0
