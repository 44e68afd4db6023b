"""Content of the page of one scorer on one dataset: figures, scatter plot, distortions, ladders, misjudged images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness import statistics as st
from harness.report import charts
from harness.report.data import SHOWN, Cell, inversions
from harness.report.pictures import Gallery
from harness.report.terms import FIGURE_NAMES, MEANINGS


def cell(shown: Cell, gallery: Gallery) -> dict[str, Any]:
    """One scorer on one dataset."""
    plot = charts.scatter(shown)
    whole = shown.content["subsets"].get("all") or {}
    splits = shown.content.get("ratio_splits") or {}
    return {
        "cell": shown,
        "tiles": _tiles(whole),
        "undefined": [
            (FIGURE_NAMES[name], figure["reason"])
            for name, figure in whole.get("figures", {}).items()
            if figure["value"] is None
        ],
        "subsets": [
            {"name": name, "n": group["n"], "n_failed": group["n_failed"], "figures": group["figures"]}
            for name, group in shown.content["subsets"].items()
        ],
        "figure_names": FIGURE_NAMES,
        "splits": [(FIGURE_NAMES[name], splits[name]) for name in ("srcc", "plcc_raw") if name in splits],
        "scatter": plot,
        "points": _points(shown, plot, gallery) if plot else [],
        "charts": _bar_charts(shown),
        "ladders": charts.ladder_plots(shown),
        "misjudged": _misjudged(shown, gallery) if shown.has_opinions else [],
        "inversions": _inversions(shown, gallery) if shown.measured else [],
        "krasula": _krasula(whole),
    }


def _tiles(whole: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures that exist, each with its name and its meaning."""
    figures = whole.get("figures", {})
    return [
        {"name": FIGURE_NAMES[name], "meaning": MEANINGS[name], "figure": figures[name]}
        for name in FIGURE_NAMES
        if figures.get(name, {}).get("value") is not None
    ]


def _bar_charts(shown: Cell) -> list[dict[str, Any]]:
    """Bars by distortion, best first, and by level, where the dataset has them."""
    by_level = "srcc" if shown.has_opinions else "d_test"
    kinds, levels = (shown.content.get(key) or {} for key in ("distortions", "levels"))
    drawn = {
        "distortion": (shown.main_figure, charts.bars(kinds, shown.main_figure, ranked=True)),
        "level": (by_level, charts.bars(levels, by_level, ranked=False, labels=64, length=150)),
    }
    return [
        {"word": word, "title": f"{FIGURE_NAMES[figure]} by {word}", "bars": bars}
        for word, (figure, bars) in drawn.items()
        if bars
    ]


def _points(shown: Cell, plot: charts.Scatter, gallery: Gallery) -> list[dict[str, Any]]:
    rows = shown.rows.iloc[[i for i, _, _ in plot.points]].to_dict("records")
    pictures = gallery.addresses(shown.dataset, [row["image_hash"] for row in rows], "small")
    return [
        {
            "x": x,
            "y": y,
            "file": row["file_name"],
            "score": row["score"],
            "opinion": row["opinion"],
            "picture": picture,
        }
        for (_, x, y), row, picture in zip(plot.points, rows, pictures, strict=True)
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


def _krasula(whole: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    stored = whole.get("krasula") or {}
    if stored.get("reason"):
        return [("all three figures", {"value": None, **stored})]
    names = {
        "different_similar": "Different from similar, AUC",
        "better_worse": "Better from worse, AUC",
        "correct": "Pairs in the right order",
    }
    return [(text, stored[name]) for name, text in names.items() if name in stored]
