"""Content of the first and the last page of the report: the leaderboard over all datasets, and the versions."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from harness import statistics as st
from harness.leaderboard import table as leaderboard
from harness.report import charts
from harness.report.data import Cell, Contest
from harness.report.terms import BLOCKS, FIGURE_NAMES, MEANINGS, dataset_page

MEANS = ("wins", "mean", "weighted")
"""Over datasets, as :func:`harness.leaderboard.table.across_datasets` names them."""
NEVER_RATED = "never run on a dataset with human scores"


def overview(cells: Sequence[Cell], contests: Mapping[str, Contest | None] = MappingProxyType({})) -> dict[str, Any]:
    """Which scorer is ahead on each dataset and how sure that is; then all of them, a block per kind of training.

    Args:
        contests: Dataset to its scorers against each other.
    """
    datasets = sorted({cell.dataset for cell in cells}, key=lambda name: (not _rated(cells, name), name))
    means = _means(cells)
    blocks = []
    for aware, title, text in BLOCKS:
        chosen = [cell for cell in cells if cell.content["scorer"].get("opinion_aware") is aware]
        names = dict.fromkeys(cell.scorer for cell in chosen)
        rows = [_row(name, chosen, datasets, means) for name in names]
        rows.sort(key=_order)
        if rows:
            mark_best(rows, "means")
            blocks.append({"title": title, "text": text, "rows": mark_best(rows)})
    figures = {name: "srcc" if _rated(cells, name) else "l_test" for name in datasets}
    columns = [
        {"name": name, "page": dataset_page(name), "figure": FIGURE_NAMES[figure]} for name, figure in figures.items()
    ]
    shown = dict.fromkeys(figures.values())
    return {
        "rankings": [
            _ranking(name, [cell for cell in cells if cell.dataset == name], contests.get(name)) for name in datasets
        ],
        "columns": columns,
        "blocks": blocks,
        "with_means": bool(means),
        "meanings": [(FIGURE_NAMES[figure], MEANINGS[figure]) for figure in shown],
        "facts": _facts(cells),
    }


def short(cell: Cell, figure: str = "") -> dict[str, Any]:
    """A figure of a cell (its main one), with what qualifies it."""
    found = dict(cell.figure(figure or cell.main_figure))
    reason = found.get("reason", "") or ("" if found else str(cell.content.get("reason", "")))
    marks = []
    # Nobody's opinion of a ladder can have been seen, its photographs can.
    if cell.seen or (cell.has_opinions and cell.seen is None):
        marks.append("seen in training" if cell.seen else "training sets not all known")
    if cell.chosen_here:
        marks.append("variants chosen here")
    if cell.has_figures and not cell.complete:
        marks.append(str(cell.content["status"]))
    ends = {end: found.get(end) for end in ("value", "low", "high")}
    n = (cell.content["subsets"].get("all") or {}).get("n", 0)
    return {**ends, "n": n, "reason": reason, "marks": marks, "page": cell.page}


def _ranking(name: str, cells: Sequence[Cell], compared: Contest | None) -> dict[str, Any]:
    """The scorers of one dataset, best first, with the ranks that tests leave open."""
    shown = sorted((cell for cell in cells if value_of(cell) is not None), key=lambda cell: -(value_of(cell) or 0.0))
    figure = shown[0].main_figure if shown else "srcc"
    matrix = compared.matrices[0] if compared and compared.matrices else None
    tested = [cell.scorer for cell in shown if matrix and cell.scorer in matrix.names]
    ranks = st.rank_ranges(matrix) if matrix else {}
    letters = st.compact_letters(matrix, tested) if matrix and tested else {}
    rows = [
        {
            "scorer": cell.scorer,
            "rank": _rank(ranks.get(cell.scorer)),
            "letters": letters.get(cell.scorer, ""),
            "cell": short(cell),
            "whisker": whisker,
            "trained_on": _training(cell),
            "cost": _cost(cell),
        }
        for cell, whisker in zip(shown, charts.whiskers([cell.figure(figure) for cell in shown]), strict=True)
    ]
    return {
        "name": name,
        "page": dataset_page(name),
        "figure": FIGURE_NAMES[figure],
        "axis": charts.whisker_axis([cell.figure(figure) for cell in shown]),
        "rows": rows,
        "verdict": _verdict(tested, letters, matrix, len(shown)),
        "flattered": next((cell.scorer for cell in shown[:1] if cell.chosen_here), ""),
        "images": compared.images if compared and tested else 0,
        "left_out": compared.left_out if compared else 0,
        "untested": _untested(shown, tested, compared),
    }


def _untested(shown: Sequence[Cell], tested: Sequence[str], compared: Contest | None) -> str:
    """Why scorers have no rank; empty if all have one."""
    lacking = [cell for cell in shown if cell.scorer not in tested]
    if not lacking or (compared and not compared.matrices):
        return ""
    if compared is None:
        return f"Nothing is tested: {lacking[0].content.get('reason') or 'the tests were left out'}."
    return f"Not compared with the others: {', '.join(cell.scorer for cell in lacking)}."


def value_of(cell: Cell) -> float | None:
    """The figure that a cell is ranked by; none if it has none."""
    value = cell.figure(cell.main_figure).get("value")
    return None if value is None else float(value)


def _verdict(
    tested: Sequence[str], letters: Mapping[str, str], matrix: st.SignificanceMatrix | None, shown: int
) -> str:
    """One sentence on how sure the order of ``shown`` scorers is, of which some may not have been tested."""
    if matrix is None or len(tested) < 2:
        return "" if matrix is None else "One scorer has a value here: there is nothing to compare."
    if matrix.undecidable:
        return f"{matrix.undecidable}."
    first = tested[0]
    rivals = [name for name in tested[1:] if set(letters[name]) & set(letters[first])]
    if rivals:
        return f"{first} has the highest value, but no test separates it from {', '.join(rivals)}."
    others = "scorer here" if len(tested) == shown else "scorer that was compared"
    return f"{first} is better than every other {others}, and the tests confirm it."


def _rank(ends: tuple[int, int] | None) -> str:
    if ends is None:
        return ""
    low, high = ends
    return str(low) if low == high else f"{low}\N{EN DASH}{high}"


def _training(cell: Cell) -> str:
    scorer = cell.content["scorer"]
    if scorer.get("opinion_aware") is None:
        return "not recorded"
    return " ".join(scorer.get("trained_on") or ()) if scorer["opinion_aware"] else "no human scores"


def _cost(cell: Cell) -> float | None:
    """Milliseconds per image in the scorer; none if it was not measured."""
    images = cell.content["subsets"]["all"]["n"]
    return 1000 * cell.content["seconds"] / images if images and cell.content["seconds"] else None


def mark_best(rows: list[dict[str, Any]], part: str = "cells", lower: Container[int] = ()) -> list[dict[str, Any]]:
    """Mark the highest value of every column of a part, the lowest of the columns ``lower``; ties share.

    Where cells count images (``n``), only those with the most in their column can be best.
    """
    for index, column in enumerate(zip(*(row[part] for row in rows), strict=True)):
        known = [cell for cell in column if cell["value"] is not None]
        most = max((cell.get("n", 0) for cell in known), default=0)
        values = [cell["value"] for cell in known if cell.get("n", 0) == most]
        best = (min if index in lower else max)(values, default=None)
        for cell in column:
            cell["best"] = len(known) > 1 and cell.get("n", 0) == most and cell["value"] == best
    return rows


def versions(cells: Sequence[Cell]) -> dict[str, Any]:
    """Everything that identifies the numbers: scorers, datasets, runs, packages and settings."""
    measured = [cell for cell in cells if cell.has_figures]
    scorers = {(cell.scorer, _plain(cell.content["scorer"]["identity"])): cell for cell in measured}
    datasets = {(cell.dataset, cell.content["dataset"]["labels_hash"]): cell for cell in measured}
    return {
        "scorers": [
            {"name": name, "identity": identity, **_scorer_facts(cell)}
            for (name, identity), cell in sorted(scorers.items())
        ],
        "datasets": [{"name": name, **_dataset_facts(cell)} for (name, _), cell in sorted(datasets.items())],
        "runs": [{"cell": cell, **_run_facts(cell)} for cell in measured],
        "packages": _shared(_plain(cell.content["versions"]) for cell in measured),
        "settings": _shared(_plain(cell.content["settings"]) for cell in measured),
        "absent": [
            {"cell": cell, "reason": cell.content.get("reason", "")} for cell in cells if not cell.has_figures
        ],
    }


def _scorer_facts(cell: Cell) -> dict[str, Any]:
    scorer = cell.content["scorer"]
    return {
        "direction": "lower" if scorer["lower_better"] else "higher",
        "parameters": scorer["parameters"],
        "licence": scorer.get("licence") or "",
        "trained_on": ", ".join(scorer.get("trained_on") or ()),
    }


def _dataset_facts(cell: Cell) -> dict[str, Any]:
    data = cell.content["dataset"]
    declared = data["images_declared"]
    return {
        "version": data["version"],
        "images": f"{data['images']} of {declared}" if declared and declared != data["images"] else data["images"],
        "reading": _plain(data["reading"]),
        "labels": data["labels_hash"],
    }


def _run_facts(cell: Cell) -> dict[str, Any]:
    content = cell.content
    seconds = content["seconds"]
    return {
        "date": content["date"][:19].replace("T", " "),
        "device": "; ".join(content["device"]),
        "status": content["status"],
        "seconds": seconds,
        "rate": content["subsets"]["all"]["n"] / seconds if seconds else None,
        "fingerprint": content["scorer"]["fingerprint"],
    }


def _facts(cells: Sequence[Cell]) -> dict[str, Any]:
    measured = [cell for cell in cells if cell.has_figures]
    return {
        "scorers": len({cell.scorer for cell in measured}),
        "images": sum({cell.dataset: cell.content["dataset"]["images"] for cell in measured}.values()),
        "dates": sorted({cell.content["date"][:10] for cell in measured}),
        "devices": sorted({device for cell in measured for device in cell.content["device"]}),
    }


def _row(
    scorer: str,
    cells: Sequence[Cell],
    datasets: Sequence[str],
    means: Mapping[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    own = {cell.dataset: cell for cell in cells if cell.scorer == scorer}
    nothing: dict[str, Any] = {
        "value": None,
        "low": None,
        "high": None,
        "reason": "never run",
        "marks": [],
        "page": "",
    }
    shown = [short(own[name]) if name in own else dict(nothing) for name in datasets]
    reasons = {cell["reason"] for cell in shown if cell["value"] is None}
    stopped = all(cell["value"] is None for cell in shown) and len(reasons) == 1
    return {
        "scorer": scorer,
        "cells": shown,
        "why": reasons.pop() if stopped else "",
        "means": [dict(mean) for mean in means.get(scorer, [_mean(None, NEVER_RATED)] * len(MEANS))],
    }


def _order(row: Mapping[str, Any]) -> list[float]:
    """Best win rate first, then best on the first dataset, and so on; what is empty comes last."""
    values = [cell["value"] for cell in (row["means"][0], *row["cells"])]
    return [2.0 if value is None else -value for value in values]


def _rated(cells: Sequence[Cell], dataset: str) -> bool:
    return any(cell.has_opinions for cell in cells if cell.dataset == dataset)


def _mean(value: float | None, reason: str) -> dict[str, Any]:
    known = value is not None and not math.isnan(value)
    return {"value": value if known else None, "reason": "" if known else reason or "no set in common with another"}


def _means(cells: Sequence[Cell]) -> dict[str, list[dict[str, Any]]]:
    """Win rate, mean and mean weighted by images of each scorer; empty for fewer than two datasets."""
    rows = leaderboard.across_datasets([cell.content for cell in cells]).to_dict("records")
    return {row["scorer"]: [_mean(row[kind], row["reason"]) for kind in MEANS] for row in rows}


def _shared(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _plain(values: Mapping[str, Any]) -> str:
    words = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in words.items())
