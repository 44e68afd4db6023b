"""What each page of the report says, as plain records for the templates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness import leaderboard
from harness import statistics as st
from harness.figures import FIGURES, LOWER_IS_BETTER
from harness.report import charts
from harness.report.data import SHOWN, Cell, Contest, inversions
from harness.report.pictures import Gallery
from harness.store import slug

FIGURE_NAMES = {
    "srcc": "SRCC",
    "krcc": "KRCC",
    "plcc_raw": "PLCC raw",
    "plcc_fit": "PLCC fitted",
    "rmse": "RMSE",
    "d_test": "D-test",
    "l_test": "L-test",
    "p_test": "P-test",
}
BLOCKS = (
    (False, "Opinion-unaware", "Trained without any human opinion score."),
    (True, "Opinion-aware", "Trained on human opinion scores; a dataset seen in training is marked."),
    (None, "Training unknown", "Nothing is recorded about their training."),
)


def dataset_page(dataset: str) -> str:
    """File name of a dataset's page."""
    return f"dataset-{slug(dataset)}.html"


def overview(cells: Sequence[Cell]) -> dict[str, Any]:
    """The leaderboard over all datasets, in one block per kind of training."""
    datasets = sorted({cell.dataset for cell in cells}, key=lambda name: (not _rated(cells, name), name))
    rated = [name for name in datasets if _rated(cells, name)]
    means = _means(cells)
    blocks = []
    for aware, title, text in BLOCKS:
        chosen = [cell for cell in cells if cell.content["scorer"].get("opinion_aware") is aware]
        rows = [_overview_row(name, chosen, datasets, means) for name in dict.fromkeys(c.scorer for c in chosen)]
        rows.sort(key=_overview_order)
        if rows:
            blocks.append({"title": title, "text": text, "rows": rows})
    columns = [
        {"name": name, "page": dataset_page(name), "figure": "SRCC" if name in rated else "L-test"}
        for name in datasets
    ]
    return {"columns": columns, "blocks": blocks, "with_means": bool(means)}


def _overview_order(row: Mapping[str, Any]) -> list[float]:
    """Best mean first, then best on the first dataset, and so on; what is empty comes last."""
    mean = row["means"][0]
    values = [None if mean.reason else mean.value, *(cell["value"] for cell in row["cells"])]
    return [-_or(value, -2.0) for value in values]


def _rated(cells: Sequence[Cell], dataset: str) -> bool:
    return any(cell.has_opinions for cell in cells if cell.dataset == dataset)


def _overview_row(
    scorer: str, cells: Sequence[Cell], datasets: Sequence[str], means: Mapping[str, list[st.Estimate]]
) -> dict[str, Any]:
    own = {cell.dataset: cell for cell in cells if cell.scorer == scorer}
    return {
        "scorer": scorer,
        "cells": [_short(own[name]) if name in own else _nothing("never run") for name in datasets],
        "means": means.get(scorer, [st.undefined("never run on a dataset with human scores")] * 3),
    }


def _short(cell: Cell) -> dict[str, Any]:
    figure = dict(cell.figure(cell.main_figure))
    reason = figure.get("reason", "") or ("" if figure else str(cell.content.get("reason", "")))
    marks = []
    if cell.has_opinions and cell.seen is not False:
        marks.append("seen in training" if cell.seen else "training sets not all known")
    if cell.measured and not cell.complete:
        marks.append(str(cell.content["status"]))
    return {
        "value": figure.get("value"),
        "low": figure.get("low"),
        "high": figure.get("high"),
        "reason": reason,
        "marks": marks,
        "page": cell.page,
    }


def _nothing(reason: str) -> dict[str, Any]:
    return {"value": None, "low": None, "high": None, "reason": reason, "marks": [], "page": ""}


def _means(cells: Sequence[Cell]) -> dict[str, list[st.Estimate]]:
    """Mean, mean weighted by images and average rank of each scorer; empty for fewer than two datasets."""
    rows = leaderboard.across_datasets([cell.content for cell in cells]).to_dict("records")
    return {
        row["scorer"]: [st.Estimate(row[kind], row["reason"]) for kind in ("mean", "weighted", "rank")]
        for row in rows
    }


def dataset(name: str, cells: Sequence[Cell], compared: Contest | None, gallery: Gallery) -> dict[str, Any]:
    """One dataset: every scorer with intervals, significance, distortions and gMAD pairs."""
    shown = [figure for figure in FIGURES if any(c.figure(figure).get("value") is not None for c in cells)]
    main = next((cell.main_figure for cell in cells if cell.measured), "srcc")
    order = sorted(cells, key=lambda cell: -_or(cell.figure(main).get("value"), -2.0))
    whiskers = charts.whiskers([cell.figure(main) for cell in order])
    rows = [
        {
            "cell": cell,
            "figures": [cell.figure(figure) for figure in shown],
            "whisker": whisker,
            "short": _short(cell),
            "n": (cell.content["subsets"].get("all") or {}).get("n"),
            "n_failed": (cell.content["subsets"].get("all") or {}).get("n_failed"),
        }
        for cell, whisker in zip(order, whiskers, strict=True)
    ]
    return {
        "name": name,
        "facts": next((c.content["dataset"] for c in cells if c.measured), {}),
        "columns": [{"key": f, "name": FIGURE_NAMES[f], "lower": f in LOWER_IS_BETTER} for f in shown],
        "main": FIGURE_NAMES[main],
        "rows": rows,
        "matrix": _matrix(compared, order),
        "by_distortion": _by_distortion(order, main),
        "compared": compared,
        "gmad": _gmad(compared, gallery),
    }


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _matrix(compared: Contest | None, order: Sequence[Cell]) -> dict[str, Any] | None:
    if compared is None or compared.matrix is None:
        return None
    matrix = compared.matrix
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
    return {"names": names, "rows": rows, "statistic": FIGURE_NAMES[compared.statistic]}


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


def _gmad(compared: Contest | None, gallery: Gallery) -> list[dict[str, Any]]:
    if compared is None:
        return []
    files = compared.rows["file_name"].tolist()
    hashes = compared.rows["image_hash"].tolist()

    def side(index: int) -> dict[str, str]:
        address = gallery.address(compared.dataset, hashes[index], "large") if compared else ""
        return {"file": files[index], "picture": address}

    return [
        {
            "defender": rival.defender,
            "attacker": rival.attacker,
            "pairs": [
                {
                    "level": pair.level,
                    "preferred": side(pair.preferred),
                    "rejected": side(pair.rejected),
                    "gap": round(pair.gap, 3),
                    "own": round(pair.defender_gap, 3),
                }
                for pair in rival.pairs
            ],
        }
        for rival in compared.rivals
    ]


def cell(shown: Cell, gallery: Gallery) -> dict[str, Any]:
    """One scorer on one dataset: figures, scatter plot, distortions, ladders, misjudged images, failures."""
    plot = charts.scatter(shown)
    points = _points(shown, plot, gallery) if plot else []
    return {
        "cell": shown,
        "subsets": [
            {"name": name, "n": group["n"], "n_failed": group["n_failed"], "figures": group["figures"]}
            for name, group in shown.content["subsets"].items()
        ],
        "figure_names": FIGURE_NAMES,
        "scatter": plot,
        "points": points,
        "bars": charts.distortion_bars(shown),
        "bar_figure": FIGURE_NAMES[shown.main_figure],
        "ladders": charts.ladder_plots(shown),
        "misjudged": _misjudged(shown, gallery) if shown.has_opinions else [],
        "inversions": _inversions(shown, gallery) if shown.measured else [],
        "krasula": _krasula(shown),
    }


def _points(shown: Cell, plot: charts.Scatter, gallery: Gallery) -> list[dict[str, Any]]:
    rows = shown.rows.to_dict("records")
    return [
        {
            "x": x,
            "y": y,
            "file": rows[i]["file_name"],
            "score": rows[i]["score"],
            "opinion": rows[i]["opinion"],
            "picture": gallery.address(shown.dataset, rows[i]["image_hash"], "small"),
        }
        for i, x, y in plot.points
    ]


def _misjudged(shown: Cell, gallery: Gallery) -> list[dict[str, Any]]:
    fit = shown.fit
    if not shown.measured or fit is None or fit.reason:
        return []
    sign = -1.0 if shown.content["dataset"]["opinion"]["lower_better"] else 1.0
    fitted = sign * fit.apply(shown.scores)
    found = []
    for index in st.misjudged(shown.scores, shown.opinions, fit, SHOWN):
        row = shown.rows.iloc[int(index)]
        found.append(
            {
                "file": row["file_name"],
                "picture": gallery.address(shown.dataset, row["image_hash"], "large"),
                "score": float(row["score"]),
                "fitted": float(fitted[index]),
                "opinion": float(row["opinion"]),
                "verdict": "overrated" if sign * (fitted[index] - row["opinion"]) > 0 else "underrated",
            }
        )
    return found


def _inversions(shown: Cell, gallery: Gallery) -> list[dict[str, Any]]:
    found = []
    for inversion in inversions(shown.rows, shown.scores):
        steps = [shown.rows.iloc[inversion.milder], shown.rows.iloc[inversion.worse]]
        found.append(
            {
                "distortion": steps[1]["distortion"],
                "reference": steps[1]["reference"],
                "gap": inversion.gap,
                "steps": [
                    {
                        "level": int(step["level"]),
                        "score": float(step["score"]),
                        "file": step["file_name"],
                        "picture": gallery.address(shown.dataset, step["image_hash"], "large"),
                    }
                    for step in steps
                ],
            }
        )
    return found


def _krasula(shown: Cell) -> list[tuple[str, Mapping[str, Any]]]:
    stored = (shown.content["subsets"].get("all") or {}).get("krasula") or {}
    names = {
        "different_similar": "Different from similar, AUC",
        "better_worse": "Better from worse, AUC",
        "correct": "Pairs in the right order",
    }
    return [(text, stored[name]) for name, text in names.items() if name in stored]


def versions(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Everything that identifies each measured cell."""
    found = []
    for shown in cells:
        content = shown.content
        facts: dict[str, str] = {}
        if shown.measured:
            scorer, data = content["scorer"], content["dataset"]
            facts = {
                "measured": f"{content['date']} on {', '.join(content['device'])}",
                "images": f"{data['images']} of {data['images_declared'] or 'an undeclared number'}",
                "status": str(content["status"]),
                "dataset version": f"{data['version']}, labels {data['labels_hash'][:16]}",
                "reading": _plain(data["reading"]),
                "scorer fingerprint": str(scorer["fingerprint"]),
                "scorer identity": _plain(scorer["identity"]),
                "parameters": "unknown" if scorer["parameters"] is None else f"{scorer['parameters']:,}",
                "licence": str(scorer.get("licence") or "not recorded"),
                "trained on": ", ".join(scorer.get("trained_on") or ()) or "nothing recorded",
                "statistics": _plain(content["settings"]),
                "packages": _plain(content["versions"]),
            }
        found.append({"cell": shown, "facts": facts, "reason": str(content.get("reason", ""))})
    return found


def _plain(values: Mapping[str, Any]) -> str:
    words = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in words.items())
