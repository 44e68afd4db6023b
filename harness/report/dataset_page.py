"""Content of the page of one dataset: every scorer with intervals, significance, distortions and gMAD pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness import statistics as st
from harness.data.spec import DatasetSpec
from harness.leaderboard.table import label_note
from harness.report import charts
from harness.report.data import Cell, Contest
from harness.report.overview import mark_best, short
from harness.report.pictures import Gallery
from harness.report.terms import FIGURE_NAMES, MEANINGS, TESTS
from harness.results.measure import FIGURES


def dataset(
    name: str, cells: Sequence[Cell], compared: Contest | None, gallery: Gallery, spec: DatasetSpec | None
) -> dict[str, Any]:
    """One dataset.

    Args:
        spec: What is known of the dataset; none for a local folder.
    """
    shown = [figure for figure in FIGURES if any(c.figure(figure).get("value") is not None for c in cells)]
    main = next((cell.main_figure for cell in cells if cell.has_figures), "srcc")
    order = sorted(cells, key=lambda cell: -_or(cell.figure(main).get("value"), -2.0))
    return {
        "name": name,
        "facts": next((c.content["dataset"] for c in cells if c.has_figures), {}),
        "spec": spec,
        "label_note": label_note(cell.content for cell in cells),
        "columns": [{"key": f, "name": FIGURE_NAMES[f], "lower": st.STATISTICS[f].lower_better} for f in shown],
        "meanings": [(FIGURE_NAMES[f], MEANINGS[f]) for f in shown],
        "main": FIGURE_NAMES[main],
        "rows": _rows(order, shown, main),
        "matrices": _matrices(compared, order),
        "by_distortion": _by_distortion(order, main),
        "compared": compared,
        "axis": charts.whisker_axis([cell.figure(main) for cell in order]),
        "ceiling": _ceiling(order),
        "gmad": _gmad(compared, gallery, [cell.scorer for cell in order]),
    }


def _rows(order: Sequence[Cell], shown: Sequence[str], main: str) -> list[dict[str, Any]]:
    whiskers = charts.whiskers([cell.figure(main) for cell in order])
    rows = []
    for cell, whisker in zip(order, whiskers, strict=True):
        whole = cell.content["subsets"].get("all") or {}
        qualified = short(cell)
        rows.append(
            {
                "cell": cell,
                "cells": [short(cell, figure) for figure in shown],
                "marks": qualified["marks"],
                "why": "" if cell.measured or whole else qualified["reason"],
                "whisker": whisker,
                "n": whole.get("n"),
                "n_failed": whole.get("n_failed"),
            }
        )
    return mark_best(rows, lower={index for index, figure in enumerate(shown) if st.STATISTICS[figure].lower_better})


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _matrices(compared: Contest | None, order: Sequence[Cell]) -> list[dict[str, Any]]:
    if compared is None:
        return []
    return [_matrix(matrix, order) for matrix in compared.matrices]


def _matrix(matrix: st.SignificanceMatrix, order: Sequence[Cell]) -> dict[str, Any]:
    names = [cell.scorer for cell in order if cell.scorer in matrix.names]
    index = {name: matrix.names.index(name) for name in names}
    rows = []
    for first in names:
        entries = []
        for second in names:
            i, j = index[first], index[second]
            pair = (first, second) if (first, second) in matrix.reasons else (second, first)
            entries.append(
                {
                    "other": second,
                    "verdict": matrix.verdicts[i][j],
                    "difference": float(matrix.differences[i, j]),
                    "p": float(matrix.p_values[i, j]),
                    "reason": matrix.reasons.get(pair, ""),
                    "self": first == second,
                }
            )
        rows.append({"name": first, "entries": entries})
    title, text = TESTS[matrix.method]
    return {
        "title": title,
        "text": text,
        "names": names,
        "rows": rows,
        "statistic": FIGURE_NAMES[matrix.statistic],
        "contents": matrix.contents,
        "undecidable": matrix.undecidable,
    }


def _by_distortion(cells: Sequence[Cell], main: str) -> dict[str, Any] | None:
    names = sorted({name for cell in cells for name in cell.content.get("distortions") or {}})
    measured = [cell for cell in cells if cell.content.get("distortions")]
    if not names:
        return None
    rows = []
    for name in names:
        groups = [cell.content["distortions"].get(name, {}) for cell in measured]
        rows.append({"name": name, "figures": [group.get("figures", {}).get(main, {}) for group in groups]})
    return {"scorers": [cell.scorer for cell in measured], "rows": rows}


def _ceiling(cells: Sequence[Cell]) -> list[tuple[str, float]]:
    """What the opinions themselves reach in the tests of severity."""
    found = next((c.content["subsets"]["all"].get("ceiling") for c in cells if c.has_figures), None) or {}
    return [(FIGURE_NAMES[key], value) for key, value in found.items()]


def _gmad(compared: Contest | None, gallery: Gallery, order: Sequence[str]) -> list[dict[str, Any]]:
    """Pairs for every two scorers, the best ones first: these are what the page opens on."""
    if compared is None:
        return []
    files = compared.rows["file_name"].tolist()
    hashes = compared.rows["image_hash"].tolist()

    def side(index: int) -> dict[str, str]:
        address = gallery.address(compared.dataset, hashes[index], "large") if compared else ""
        return {"file": files[index], "picture": address, "map": gallery.map_of(address)}

    return [
        {
            "defender": rival.defender,
            "attacker": rival.attacker,
            "images": len(files),
            "pairs": [
                {
                    "level": pair.level,
                    "preferred": side(pair.preferred),
                    "rejected": side(pair.rejected),
                    "gap": round(pair.gap * (len(files) - 1)),
                    "own": round(pair.defender_gap * (len(files) - 1)),
                }
                for pair in rival.pairs
            ],
        }
        for rival in sorted(compared.rivals, key=lambda r: (order.index(r.defender), order.index(r.attacker)))
    ]
