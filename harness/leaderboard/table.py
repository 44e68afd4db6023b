"""The stored cells as one table of plain numbers, with the rules of the protocol."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness import statistics as st
from harness.results.measure import FIGURES
from qualiclip_plugin.utils.shown import printable

if TYPE_CHECKING:
    import pandas as pd

CellJson = Mapping[str, Any]

INTERVALS = tuple(f"{figure}_{end}" for figure in FIGURES for end in ("low", "high"))
OVER_SPLITS = tuple(f"{figure}_splits_{what}" for figure in ("srcc", "plcc_raw") for what in ("median", "std"))
COLUMNS = ("scorer", "dataset", "subset", "n", "n_failed", *FIGURES, *OVER_SPLITS, "seen", *INTERVALS)
"""Columns of ``leaderboard.csv``; ``docs/result-files.md`` explains each."""

TIMINGS = ("scorer", "dataset", "images", "seconds", "images_per_second", "device", "date")
"""Columns of ``timings.csv``. Timings are separate, because they differ in every run."""

BLOCKS = ("opinion-unaware", "opinion-aware", "training unknown")
SEEN = {True: "yes", False: "no", None: ""}


def table(cells: Iterable[CellJson]) -> pd.DataFrame:
    """One row per scorer, dataset and subset, best first.

    Returns:
        The columns ``COLUMNS``, and for rendering ``reason`` (figure to text), ``block`` and ``status``.
    """
    import pandas as pd

    rows = [row for cell in cells for row in _rows(cell)]
    numbers = dict.fromkeys((*FIGURES, *INTERVALS, *OVER_SPLITS), "float64")
    types = {"n": "Int64", "n_failed": "Int64", **numbers}
    frame = pd.DataFrame(rows, columns=[*COLUMNS, "reason", "block", "status", "chosen"]).astype(types)
    order = frame.assign(rank=-frame["srcc"].fillna(frame["l_test"]).fillna(-2))
    order = order.sort_values(["dataset", "subset", "rank", "scorer"], kind="stable")
    return frame.loc[order.index].reset_index(drop=True)


def to_csv(frame: pd.DataFrame) -> str:
    """Plain numbers; an undefined figure is an empty cell. Names stand on one line."""
    shown = frame[list(COLUMNS)].assign(**{name: frame[name].map(printable) for name in COLUMNS[:3]})
    return shown.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def timings(cells: Iterable[CellJson]) -> pd.DataFrame:
    """How long each scorer took on each dataset, where, and when: the columns ``TIMINGS``, by dataset and scorer."""
    import pandas as pd

    rows = []
    for cell in cells:
        if not cell["subsets"]:
            continue
        images, seconds = cell["subsets"]["all"]["n"], cell["seconds"]
        rate = images / seconds if seconds else np.nan
        where = (printable(cell["scorer"]["name"]), printable(cell["dataset"]["name"]))
        rows.append((*where, images, seconds, rate, "; ".join(cell["device"]), cell["date"]))
    return pd.DataFrame(rows, columns=list(TIMINGS)).sort_values(["dataset", "scorer"], ignore_index=True)


def seen(cell: CellJson) -> bool | None:
    """Whether the scorer's training saw the dataset's opinions; none if not all training sets are known."""
    trained_on = set(cell["scorer"].get("trained_on") or ())
    if trained_on & {cell["dataset"]["name"], *cell["dataset"].get("seen_by", ())}:
        return True
    return None if "?" in trained_on or cell["scorer"].get("opinion_aware") is None else False


def chosen_here(cell: CellJson) -> bool:
    """Whether the dataset's opinions chose between variants of the scorer, which flatters it there."""
    return cell["dataset"]["name"] in (cell["scorer"].get("chosen_on") or ())


def block(cell: CellJson) -> str:
    """The block of a table that a scorer belongs to."""
    known: dict[bool | None, str] = {False: BLOCKS[0], True: BLOCKS[1], None: BLOCKS[2]}
    return known[cell["scorer"].get("opinion_aware")]


ACROSS = ("scorer", "block", "mean", "weighted", "wins", "sets", "seen", "reason")


def across_datasets(cells: Sequence[CellJson]) -> pd.DataFrame:
    """How the scorers of each block stand over all datasets with human scores.

    Means are over the sets that no scorer of the block was trained on, win rates over the sets that neither of two
    was; see :func:`harness.statistics.standings`. Only cells with every image count. A scorer that lacks a set of
    the mean, or whose cells are not alike (:func:`unlike`), has none, with the reason.

    Returns:
        The columns ``ACROSS``, best win rate first: ``sets`` that the mean is over, ``seen`` by the scorer (names),
        ``reason``; empty for fewer than two datasets.
    """
    import pandas as pd

    rated = [cell for cell in cells if not cell["subsets"] or cell["dataset"].get("opinion")]
    datasets = sorted({cell["dataset"]["name"] for cell in rated if cell["subsets"]})
    if len(datasets) < 2:
        return pd.DataFrame(columns=list(ACROSS))
    reasons = unlike(rated)
    rows = []
    for name in BLOCKS:
        own = [cell for cell in rated if block(cell) == name]
        rows += _block_rows(name, own, datasets, reasons)
    frame = pd.DataFrame(rows, columns=list(ACROSS))
    order = ["wins", "mean", "scorer"]
    return frame.sort_values(order, ascending=[False, False, True], ignore_index=True)


def _block_rows(
    name: str, cells: Sequence[CellJson], datasets: Sequence[str], reasons: Mapping[str, str]
) -> list[tuple[Any, ...]]:
    scorers = sorted({cell["scorer"]["name"] for cell in cells})
    # What is not alike is compared with nobody.
    by_place = {
        (cell["scorer"]["name"], cell["dataset"]["name"]): cell
        for cell in cells
        if cell["scorer"]["name"] not in reasons
    }
    grid = _grid(by_place, scorers, datasets)
    rows = []
    for number, (scorer, standing) in enumerate(st.standings(grid).items()):
        seen_sets = [dataset for dataset, own in zip(datasets, grid.seen[number], strict=True) if own]
        why = reasons.get(scorer, standing.mean.reason)
        values = (standing.mean.value, standing.weighted.value, standing.wins.value)
        rows.append((scorer, name, *values, " ".join(standing.sets), " ".join(seen_sets), why))
    return rows


def unlike(cells: Iterable[CellJson]) -> dict[str, str]:
    """Scorers whose cells do not belong in one mean, and why: versions of the scorer, or labels of a dataset."""
    measured = [cell for cell in cells if cell["subsets"]]
    by_scorer, by_dataset = (_grouped(measured, what) for what in ("scorer", "dataset"))
    disputed = [name for name, own in by_dataset.items() if len(label_groups(own)) > 1]
    reasons = {}
    for name, own in by_scorer.items():
        identities = [cell["scorer"]["identity"] for cell in own]
        keys = sorted(set().union(*identities))
        changed = [key for key in keys if any(one.get(key) != identities[0].get(key) for one in identities)]
        relabelled = [cell["dataset"]["name"] for cell in own if cell["dataset"]["name"] in disputed]
        if changed:
            reasons[name] = f"scored by different versions ({', '.join(changed)}); run it again"
        elif relabelled:
            reasons[name] = f"different labels on {', '.join(relabelled)}; run all scorers again"
    return reasons


def label_groups(cells: Iterable[CellJson]) -> list[list[str]]:
    """The scorers of one dataset, grouped by the labels that they were run with."""
    groups: dict[str, list[str]] = {}
    for cell in cells:
        if cell["subsets"]:
            data = cell["dataset"]
            labels = json.dumps([data["version"], data["labels_hash"], data["opinion"]], sort_keys=True)
            groups.setdefault(labels, []).append(cell["scorer"]["name"])
    return list(groups.values())


def label_note(cells: Iterable[CellJson]) -> str:
    """A sentence if the scorers of one dataset were run with different labels; else empty."""
    groups = label_groups(cells)
    if len(groups) < 2:
        return ""
    names = "; ".join(", ".join(group) for group in groups)
    return f"Compared with different labels, and so not with each other: {names}. Run them again."


def _grouped(cells: Iterable[CellJson], what: str) -> dict[str, list[CellJson]]:
    groups: dict[str, list[CellJson]] = {}
    for cell in cells:
        groups.setdefault(cell[what]["name"], []).append(cell)
    return groups


@cache
def reported() -> Mapping[tuple[str, str, str], Mapping[str, Any]]:
    """Published figures by scorer, dataset and subset, from ``reported.csv``."""
    with (Path(__file__).parent / "reported.csv").open(encoding="utf-8", newline="") as file:
        return {(row["scorer"], row["dataset"], row["subset"]): row for row in csv.DictReader(file)}


def _rows(cell: CellJson) -> Iterable[dict[str, Any]]:
    name = {"scorer": cell["scorer"]["name"], "dataset": cell["dataset"]["name"]}
    name |= {"block": block(cell), "seen": SEEN[seen(cell)], "status": cell["status"]}
    name["chosen"] = chosen_here(cell)
    if not cell["subsets"]:
        yield {**name, "subset": "all", "reason": {"all": cell["reason"]}}
    for subset, group in cell["subsets"].items():
        # A cell written before a figure existed lacks it until its next run.
        figures = {name: group["figures"].get(name, _NOT_COMPUTED) for name in FIGURES}
        yield {
            **name,
            "subset": subset,
            "n": group["n"],
            "n_failed": group["n_failed"],
            **{figure: figures[figure]["value"] for figure in FIGURES},
            **{f"{figure}_{end}": figures[figure].get(end) for figure in FIGURES for end in ("low", "high")},
            **(_over_splits(cell) if subset == "all" else {}),
            "reason": {figure: figures[figure].get("reason", "") for figure in FIGURES},
        }


def _over_splits(cell: CellJson) -> dict[str, float | None]:
    found = cell.get("ratio_splits", {})
    return {
        f"{figure}_splits_{what}": found[figure][what]
        for figure in ("srcc", "plcc_raw")
        if figure in found
        for what in ("median", "std")
    }


_NOT_COMPUTED = {"value": None, "reason": "not computed; run the cell again"}


def _grid(by_place: Mapping[tuple[str, str], CellJson], scorers: Sequence[str], datasets: Sequence[str]) -> st.Cells:
    shape = (len(scorers), len(datasets))
    values, complete, trained = np.full(shape, np.nan), np.zeros(shape, bool), np.zeros(shape, bool)
    sizes = np.ones(len(datasets))
    for i, scorer in enumerate(scorers):
        for j, dataset in enumerate(datasets):
            cell = by_place.get((scorer, dataset))
            if cell is None or not cell["subsets"]:
                continue
            value = cell["subsets"]["all"]["figures"]["srcc"]["value"]
            values[i, j] = np.nan if value is None else value
            complete[i, j] = cell["status"] == "complete"
            trained[i, j] = bool(seen(cell))
            sizes[j] = cell["dataset"]["images"]
    return st.Cells(values, complete, trained, sizes, scorers, datasets)
