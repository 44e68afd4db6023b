"""What a check found, as text, Markdown or a web page with notes, JSON or JUnit XML."""

from __future__ import annotations

import base64
import json
import xml.etree.ElementTree as ET  # only written, never parsed
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from harness.check.findings import Comparison, Figure, Finding
from harness.check.snapshot import Pictures
from qualiclip_plugin.utils.atomic import atomic_write
from qualiclip_plugin.utils.errors import ConfigError, ImageError
from qualiclip_plugin.utils.shown import in_markdown, printable

MOST_ROWS = 50
"""Rows of the table that people read; the JSON holds all."""

MEANINGS: Mapping[str, str] = {
    "score": "the score of one image moved by more than the tolerance: the same picture is judged differently now",
    "figure": "the mean, the worst score or the D-test over all images moved by more than allowed",
    "order": "the images are ranked differently: the rank correlation of the scores then and now is too low, or "
    "there is none as all scores are the same now",
    "direction": "the scorer's declared direction changed: what was better is worse now",
    "prompt": "the prompts that a score is made of changed",
    "failure": "an image has no score now, or had none then",
    "limit": "an image is worse than --min-score allows",
    "drop": "an image is worse than it was in the baseline, by more than --max-drop allows",
    "missing": "an image of the baseline is not there; --allow-missing accepts that",
    "new": "an image that the baseline lacks, and so nothing to compare it with; --allow-new accepts that",
    "renamed": "an image has another name than in the baseline and the same pixels; --allow-renamed accepts that",
    "image": "an image of the baseline",
    "scorer": "a scorer of the baseline",
}
"""Kinds of findings, for people."""


def to_markdown(comparison: Comparison) -> str:
    """A verdict, a table of what moved with notes, the summary figures and what differs besides."""
    return _page(comparison, in_markdown)


def to_text(comparison: Comparison) -> str:
    """The same for a terminal, where a backslash of Markdown would be read as a part of the text."""
    return _page(comparison, printable)


def _page(comparison: Comparison, shown: Callable[[str], str]) -> str:
    def escape(text: str) -> str:
        return shown(" ".join(text.split()))

    if comparison.error:
        return f"**No comparison could be made**: {escape(comparison.error)}\n"
    findings = comparison.findings
    parts = [_verdict(comparison)]
    if findings:
        parts.append(_table([_row(finding, escape) for finding in findings[:MOST_ROWS]]))
        if len(findings) > MOST_ROWS:
            parts.append(f"... and {len(findings) - MOST_ROWS} more.")
        kinds = dict.fromkeys(finding.what for finding in findings)
        parts.append("What this means:\n" + "\n".join(f"- {kind}: {MEANINGS[kind]}" for kind in kinds))
    if comparison.figures:
        parts.append(_table([_figure(figure, escape) for figure in comparison.figures]))
    for title, lines in _differing(comparison).items():
        parts.append("\n".join([f"{escape(title)}:", *(f"- {escape(line)}" for line in lines)]))
    return "\n\n".join(parts) + "\n"


def _verdict(comparison: Comparison) -> str:
    if comparison.findings:
        # Findings are no part of the values: an order, a prompt or an image that is gone is none of them.
        return f"**Findings: {len(comparison.findings)}.** Values checked: {comparison.checked}."
    return f"**Passed**: {comparison.checked} values are within their bounds."


def _differing(comparison: Comparison) -> dict[str, list[str]]:
    """What differs besides scores: a title to its lines."""
    found = {"Versions that differ": [f"{name}: {a} -> {b}" for name, (a, b) in sorted(comparison.versions.items())]}
    found |= {f"{scorer} itself differs": lines for scorer, lines in comparison.identities.items()}
    found["The same files are read as other pixels"] = [
        f"{name}: sha256 {then[:16]} -> {now[:16]}" for name, (then, now) in comparison.images.items()
    ]
    return {title: lines for title, lines in found.items() if lines}


def to_json(comparison: Comparison) -> str:
    """Everything, for programs."""
    return json.dumps(asdict(comparison), indent=1, sort_keys=True) + "\n"


def to_junit(comparison: Comparison) -> str:
    """One test case per finding, all failed; or one that passed, or that could not be run."""
    findings = comparison.findings
    suite = ET.Element(
        "testsuite",
        name="iqa-harness check",
        tests=str(max(1, len(findings))),
        failures=str(len(findings)),
        errors=str(int(bool(comparison.error))),
    )
    for finding in findings:
        name = printable(f"{finding.what} {finding.name}")
        case = ET.SubElement(suite, "testcase", classname=printable(finding.scorer), name=name)
        then, now = (_number(value) or "-" for value in (finding.baseline, finding.current))
        ET.SubElement(case, "failure", message=printable(f"{then} -> {now} (allowed: {finding.allowed})"))
    if comparison.error:
        case = ET.SubElement(suite, "testcase", classname="all", name="comparison")
        ET.SubElement(case, "error", message=printable(comparison.error))
    elif not findings:
        ET.SubElement(suite, "testcase", classname="all", name=f"{comparison.checked} values within their bounds")
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def to_html(comparison: Comparison, pictures: Pictures) -> str:
    """One web page that needs no other file, with a small picture of every image that is named and there."""
    from harness.report import environment, stylesheet

    shown = comparison.findings[:MOST_ROWS]
    named = {finding.name for finding in shown} | {figure.image for figure in comparison.figures}
    return (
        environment()
        .get_template("check.html.j2")
        .render(
            error=comparison.error,
            verdict=_verdict(comparison).replace("**", ""),
            failed=bool(comparison.findings or comparison.error),
            findings=[{**_row(finding, str), "image": finding.name} for finding in shown],
            more=len(comparison.findings) - len(shown),
            meanings=[
                (kind, MEANINGS[kind]) for kind in dict.fromkeys(finding.what for finding in comparison.findings)
            ],
            figures=[{**_figure(figure, str), "image": figure.image} for figure in comparison.figures],
            thumbnails={name: _thumbnail(pictures, name) for name in named & {*pictures.names}},
            circumstances=_differing(comparison),
            style=stylesheet(),
        )
    )


def _thumbnail(pictures: Pictures, name: str) -> str:
    """A picture as an address that holds it; empty if it cannot be read."""
    from harness.report.pictures import SIZES
    from qualiclip_plugin.gallery.thumbnails import jpeg

    try:
        return (
            f"data:image/jpeg;base64,{base64.b64encode(jpeg(pictures.pixels(name), *SIZES['small'])).decode('ascii')}"
        )
    except ImageError:
        return ""


FORMATS: Mapping[str, Callable[[Comparison, Pictures], str]] = {
    ".md": lambda comparison, _: to_markdown(comparison),
    ".html": to_html,
    ".json": lambda comparison, _: to_json(comparison),
    ".xml": lambda comparison, _: to_junit(comparison),
}
"""Report formats by file suffix."""


def check_report_path(path: Path) -> Path:
    """Return ``path`` if its suffix is a known format; raise ``ConfigError`` before any work otherwise."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"--report {path}: unknown format; use {', '.join(FORMATS)}")
    return path


def write_report(path: Path, comparison: Comparison, pictures: Pictures = Pictures()) -> None:
    """Write a report in the format of the path's suffix, in one step.

    Args:
        path: Where to; see ``FORMATS``.
        pictures: The images of the check, for a report that shows them.
    """
    with atomic_write(path) as file:
        file.write(FORMATS[path.suffix](comparison, pictures).encode("utf-8", "backslashreplace"))


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    import pandas as pd

    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def _row(finding: Finding, escape: Callable[[str], str]) -> dict[str, str]:
    return {
        "scorer": escape(finding.scorer),
        "what": finding.what,
        "name": escape(finding.name),
        "baseline": _number(finding.baseline),
        "now": _number(finding.current),
        "change": _change(finding.baseline, finding.current),
        "allowed": escape(finding.allowed),
    }


def _figure(figure: Figure, escape: Callable[[str], str]) -> dict[str, str]:
    return {
        "scorer": escape(figure.scorer),
        "figure": figure.name + (f" ({escape(figure.image)})" if figure.image else ""),
        "baseline": _number(figure.baseline),
        "now": _number(figure.current),
        "change": _change(figure.baseline, figure.current),
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _change(then: float | None, now: float | None) -> str:
    return "" if then is None or now is None else f"{now - then:+.6g}"
