"""Tables for people: Markdown, LaTeX (booktabs) and HTML from the same cells."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.leaderboard.table import BLOCKS, CellJson, across_datasets, label_note, reported, table, to_csv
from harness.results.measure import FIGURES
from harness.statistics import STATISTICS
from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.utils.shown import in_html, in_latex, in_markdown

if TYPE_CHECKING:
    import pandas as pd

MAX_REASON = 300
PREFACE = (
    "Signed values: a scorer whose declared direction is lower-is-better is negated once, nothing is made "
    "positive. 95 % intervals in parentheses, † trained on this dataset, § its opinions chose between variants of "
    "the scorer, which flatters it here, ‡ training sets not all known. The highest value is bold, which decides "
    "nothing: `iqa-harness report` and `compare` say which differences do. The README.md in the folder results of "
    "qualiclip-plugin explains every column."
)


@dataclass(frozen=True)
class Format:
    """How to write the parts of a page.

    Attributes:
        escape: Plain text to text of this format.
        heading: Of a level and an escaped title.
        grid: Table of escaped cells: header, rows.
    """

    escape: Callable[[str], str]
    bold: Callable[[str], str]
    heading: Callable[[int, str], str]
    paragraph: Callable[[str], str]
    items: Callable[[Sequence[str]], str]
    grid: Callable[[Sequence[str], Sequence[Sequence[str]]], str]
    page: Callable[[Sequence[str]], str]


def render(cells: Sequence[CellJson], form: str = "markdown", *, with_reported: bool = False) -> str:
    """The leaderboard as a page.

    Args:
        form: ``markdown``, ``csv``, ``latex`` or ``html``.
        with_reported: Show published SRCC beside the measured one.

    Raises:
        ConfigError: Unknown format.
    """
    frame = table(cells)
    if form == "csv":
        return to_csv(frame)
    if form not in FORMATS:
        raise ConfigError(f"--format is {form!r}; one of csv, {', '.join(FORMATS)} is needed")
    style = FORMATS[form]
    parts = [style.heading(1, "Leaderboard"), style.paragraph(style.escape(PREFACE))]
    for (dataset, subset), group in frame.groupby(["dataset", "subset"], sort=True):
        title = str(dataset) + (f", {subset}" if subset != "all" else "")
        parts.append(style.heading(2, style.escape(title)))
        parts += _blocks(group, style, with_reported)
        parts += _notes(group, style)
        named = set(group["scorer"])
        here = [c for c in cells if c["dataset"]["name"] == dataset and c["scorer"]["name"] in named]
        parts += _provenance(here, style)
    parts += _across(across_datasets(cells), style)
    return style.page(parts)


def _blocks(group: pd.DataFrame, style: Format, with_reported: bool) -> list[str]:
    present = [name for name in BLOCKS if (group["block"] == name).any()]
    parts = []
    for name in present:
        if len(present) > 1:
            parts.append(style.heading(3, name.capitalize()))
        parts.append(_grid(group[group["block"] == name], group, style, with_reported))
    return parts


def _grid(rows: pd.DataFrame, group: pd.DataFrame, style: Format, with_reported: bool) -> str:
    shown = [name for name in FIGURES if group[name].notna().any()]
    splits = bool(group["srcc_splits_median"].notna().any())
    header = ["scorer", "n", "n_failed", *shown, *(["srcc of 10 splits"] if splits else [])]
    header += ["srcc ours / reported"] if with_reported else []
    # A figure over the images that a scorer did not fail on is no rival of one over all of them.
    rivalling = (rows["n"] == group["n"].max()).fillna(False).to_numpy(dtype=bool)
    rivals = rows[rivalling]
    best = {name: rivals[name].min() if STATISTICS[name].lower_better else rivals[name].max() for name in shown}
    lines = []
    for row, rival in zip(rows.to_dict("records"), rivalling, strict=True):
        mark = "" if row["seen"] == "no" or row["status"] == "unavailable" else "†" if row["seen"] else "‡"
        mark += "§" if row["chosen"] else ""
        line = [style.escape(row["scorer"] + mark), _text(row["n"], 0), _text(row["n_failed"], 0)]
        line += [_figure(row, name, best[name] if rival else math.nan, style) for name in shown]
        if splits:
            median, std = (_text(row[f"srcc_splits_{what}"], 3) for what in ("median", "std"))
            line.append(style.escape(f"{median} ± {std}" if median else ""))
        if with_reported:
            line.append(style.escape(_beside_reported(row)))
        lines.append(line)
    return style.grid([style.escape(name) for name in header], lines)


def _beside_reported(row: Mapping[Any, Any]) -> str:
    known = reported().get((row["scorer"], row["dataset"], row["subset"]))
    if known is None:
        return ""
    mark = "" if known["citable"] == "yes" else " (no citable source)"
    return f"{_text(row['srcc'], 4) or '-'} / {known['srcc']}{mark}"


def _figure(row: Mapping[Any, Any], name: str, best: float, style: Format) -> str:
    digits = STATISTICS[name].digits
    text = style.escape(_text(row[name], digits))
    if text and round(row[name], digits) == round(best, digits):
        text = style.bold(text)
    low, high = _text(row[f"{name}_low"], 2), _text(row[f"{name}_high"], 2)
    return f"{text} ({style.escape(low)} to {style.escape(high)})" if STATISTICS[name].headline and low else text


def _notes(group: pd.DataFrame, style: Format) -> list[str]:
    notes: dict[str, list[str]] = {}
    shown = [name for name in FIGURES if group[name].notna().any()] or list(FIGURES[:1])
    for scorer, reasons in zip(group["scorer"].tolist(), group["reason"].tolist(), strict=True):
        if "all" in reasons:
            notes.setdefault(one_line(reasons["all"]), []).append(scorer)
        lacking = {name: one_line(reasons[name]) for name in shown if reasons.get(name)}
        if len(lacking) == len(shown) and len(set(lacking.values())) == 1:
            notes.setdefault(lacking[shown[0]], []).append(scorer)
            continue
        for name, reason in lacking.items():
            notes.setdefault(reason, []).append(f"{scorer} {name}")
    if not notes:
        return []
    lines = [style.escape(f"{', '.join(names)}: {reason}") for reason, names in notes.items()]
    return [style.paragraph("Empty cells:"), style.items(lines)]


def _provenance(cells: Sequence[CellJson], style: Format) -> list[str]:
    measured = [cell for cell in cells if cell["subsets"]]
    if not measured:
        return []
    dates = sorted({cell["date"][:10] for cell in measured})
    devices = sorted({device for cell in measured for device in cell["device"]})
    versions = sorted({f"{k} {v}" for cell in measured for k, v in cell["versions"].items()})
    text = f"Measured {' and '.join(dates)} on {'; '.join(devices)}. Versions: {', '.join(versions)}."
    parts = [style.paragraph(style.escape(text))]
    if ceiling := measured[0]["subsets"]["all"].get("ceiling"):
        reached = ", ".join(f"{name} {value:.4f}" for name, value in sorted(ceiling.items()))
        parts.append(style.paragraph(style.escape(f"The human scores themselves reach {reached}.")))
    if note := label_note(measured):
        parts.append(style.paragraph(style.escape(note)))
    for cell in measured:
        if cell["status"] != "complete":
            failed = "; ".join(f"{f['file_name']}: {one_line(f['error'])}" for f in cell["failures"][:5])
            more = f"; and {len(cell['failures']) - 5} more" if len(cell["failures"]) > 5 else ""
            data = cell["dataset"]
            absent = f", {data['missing']} images missing" if data.get("missing") else ""
            declared = data.get("images_declared") or data["images"]
            fewer = f", {data['images']} images of {declared}" if declared != data["images"] else ""
            text = f"{cell['scorer']['name']}: {cell['status']}{fewer}{absent}"
            text += f" ({failed}{more})" if failed else ""
            parts.append(style.paragraph(style.escape(text)))
    return parts


def _across(frame: pd.DataFrame, style: Format) -> list[str]:
    if frame.empty:
        return []
    parts = [
        style.heading(2, "All datasets with human scores"),
        style.paragraph(
            style.escape(
                "SRCC over complete cells. mean and weighted (by number of images): over the sets that no scorer of "
                "the table was trained on; a scorer that lacks one of them, or was scored by different versions, has "
                "none. wins: share of the sets on which it has the higher value, mean over the other scorers, on the "
                "sets that neither of the two was trained on."
            )
        ),
    ]
    present = [name for name in BLOCKS if (frame["block"] == name).any()]
    for name in present:
        if len(present) > 1:
            parts.append(style.heading(3, name.capitalize()))
        rows = frame[frame["block"] == name]
        lines = [
            [
                style.escape(row["scorer"]),
                *(style.escape(_text(row[column], digits)) for column, digits in _MEANS),
                style.escape(row["sets"]),
                style.escape(row["seen"]),
                style.escape(row["reason"]),
            ]
            for row in rows.to_dict("records")
        ]
        parts.append(
            style.grid(["scorer", *(column for column, _ in _MEANS), "mean over", "seen", "why empty"], lines)
        )
    return parts


_MEANS = (("wins", 2), ("mean", 4), ("weighted", 4))


def one_line(reason: str) -> str:
    """A reason without line breaks, shortened between two words."""
    return textwrap.shorten(reason, MAX_REASON, placeholder=" ...")


def _text(value: Any, digits: int) -> str:
    import pandas as pd

    return "" if pd.isna(value) else f"{value:.{digits}f}"


def _markdown_grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from tabulate import tabulate

    align = ["left"] + ["right"] * (len(header) - 1)
    return tabulate(rows, headers=header, tablefmt="pipe", disable_numparse=True, colalign=align if rows else None)


def _latex_grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    start = [f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule"]
    lines = [" & ".join(row) + r" \\" for row in (header, *rows)]
    return "\n".join([*start, lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}"])


def _html_grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    body = "\n".join("<tr>" + "".join(f"<td>{text}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _html_page(parts: Sequence[str]) -> str:
    head = '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Leaderboard</title></head>\n<body>\n'
    return head + "\n".join(parts) + "\n</body></html>\n"


FORMATS: Mapping[str, Format] = {
    "markdown": Format(
        escape=in_markdown,
        bold=lambda text: f"**{text}**",
        heading=lambda level, text: f"{'#' * level} {text}",
        paragraph=lambda text: text,
        items=lambda lines: "\n".join(f"- {line}" for line in lines),
        grid=_markdown_grid,
        page=lambda parts: "\n\n".join(parts) + "\n",
    ),
    "latex": Format(
        escape=in_latex,
        bold=lambda text: f"\\textbf{{{text}}}",
        heading=lambda level, text: f"\\{('section', 'subsection', 'subsubsection')[level - 1]}*{{{text}}}",
        paragraph=lambda text: f"{text}\n",
        items=lambda lines: "\n".join([r"\begin{itemize}", *(f"\\item {line}" for line in lines), r"\end{itemize}"]),
        grid=_latex_grid,
        page=lambda parts: "% needs \\usepackage{booktabs}\n" + "\n\n".join(parts) + "\n",
    ),
    "html": Format(
        escape=in_html,
        bold=lambda text: f"<b>{text}</b>",
        heading=lambda level, text: f"<h{level}>{text}</h{level}>",
        paragraph=lambda text: f"<p>{text}</p>",
        items=lambda lines: "<ul>\n" + "\n".join(f"<li>{line}</li>" for line in lines) + "\n</ul>",
        grid=_html_grid,
        page=_html_page,
    ),
}
