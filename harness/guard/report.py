"""What a check found, as Markdown, JSON or JUnit XML."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET  # only written, never parsed
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from harness.guard.regression import Comparison, Finding
from qualiclip_plugin.errors import ConfigError
from qualiclip_plugin.files import atomic_write

MOST_ROWS = 50
"""Rows of the table that people read; the JSON holds all."""


def to_markdown(comparison: Comparison) -> str:
    """A verdict, a table of what moved and the versions that differ."""
    import pandas as pd

    findings = comparison.findings
    if not findings:
        lines = [f"**No score moved**: {comparison.checked} values are within tolerance."]
    else:
        rows = [_row(finding) for finding in findings[:MOST_ROWS]]
        lines = [
            f"**{len(findings)} of {comparison.checked} checks failed.**",
            pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True),
        ]
        if len(findings) > MOST_ROWS:
            lines.append(f"... and {len(findings) - MOST_ROWS} more.")
    if comparison.versions:
        changes = [f"- {name}: {then} -> {now}" for name, (then, now) in sorted(comparison.versions.items())]
        lines.append("Versions that differ:\n" + "\n".join(changes))
    for scorer, differences in comparison.identities.items():
        lines.append(f"{scorer} itself differs:\n" + "\n".join(f"- {line}" for line in differences))
    return "\n\n".join(lines) + "\n"


def to_json(comparison: Comparison) -> str:
    """Everything, for programs."""
    return json.dumps(asdict(comparison), indent=1, sort_keys=True) + "\n"


def to_junit(comparison: Comparison) -> str:
    """One test case per finding, all failed, or one that passed."""
    findings = comparison.findings
    suite = ET.Element(
        "testsuite", name="iqa-harness check", tests=str(max(1, len(findings))), failures=str(len(findings))
    )
    for finding in findings:
        case = ET.SubElement(suite, "testcase", classname=finding.scorer, name=f"{finding.what} {finding.name}")
        ET.SubElement(case, "failure", message=_sentence(finding))
    if not findings:
        ET.SubElement(suite, "testcase", classname="all", name=f"{comparison.checked} values within tolerance")
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


FORMATS: Mapping[str, Callable[[Comparison], str]] = {".md": to_markdown, ".json": to_json, ".xml": to_junit}
"""Report formats by file suffix."""


def check_report_path(path: Path) -> Path:
    """Return ``path`` if its suffix is a known format; raise ``ConfigError`` before any work otherwise."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"--report {path}: unknown format; use {', '.join(FORMATS)}")
    return path


def write_report(path: Path, comparison: Comparison) -> None:
    """Write a report in the format of the path's suffix, in one step."""
    with atomic_write(path, "w") as file:
        file.write(FORMATS[path.suffix](comparison))


def _row(finding: Finding) -> dict[str, str]:
    change = ""
    if finding.baseline is not None and finding.current is not None:
        change = f"{finding.current - finding.baseline:+.6g}"
    return {
        "scorer": finding.scorer,
        "what": finding.what,
        # A file name may hold anything; a table's cell may not.
        "name": " ".join(finding.name.split()).replace("|", "\\|"),
        "baseline": "" if finding.baseline is None else f"{finding.baseline:.6g}",
        "now": "" if finding.current is None else f"{finding.current:.6g}",
        "change": change,
        "allowed": finding.allowed,
    }


def _sentence(finding: Finding) -> str:
    row = _row(finding)
    return f"{row['baseline'] or '-'} -> {row['now'] or '-'} (allowed: {row['allowed']})"
