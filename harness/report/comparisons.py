"""Comparisons of scorers, stored beside published results whose labels often may not be shared.

The tests need the labels. Their outcome is stored as ``comparisons/<dataset>.json``, with the fingerprints of the
scores and the hash of the labels: it is used only for the same scores and labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness import statistics as st
from harness.report.data import Cell, Contest, contest, load_cells
from harness.results.schemas import COMPARISONS
from harness.results.store import DamagedError, Store, StoreError, slug
from harness.statistics.matrix import Result, filled
from qualiclip_plugin.utils.atomic import inside
from qualiclip_plugin.utils.json_yaml import read_document
from qualiclip_plugin.utils.progress import track

if TYPE_CHECKING:
    import pandas as pd

PAIR = ("first", "second", "difference", "low", "high", "p", "verdict", "reason")
COLUMNS = ("dataset", "test", "statistic", "n", "contents", *PAIR)
"""Of ``comparisons.csv``; ``docs/result-files.md`` explains each."""


def contests(store: Store, cells: Sequence[Cell], *, draws: int = 2000, seed: int = 0) -> dict[str, Contest | None]:
    """The scorers of every dataset against each other: tested where the labels are here, else as it is stored.

    Args:
        draws: Random sign patterns, at least; 0 leaves the tests out, stored ones too.
        seed: Same seed, same result.

    Returns:
        Dataset to its contest; none if there are neither labels nor stored tests of these cells.

    Raises:
        StoreError: A stored comparison cannot be read or was altered.
    """
    found, names = {}, sorted({cell.dataset for cell in cells})
    for name in track(names, "Comparing scorers", len(names)):
        own = [cell for cell in cells if cell.dataset == name]
        made = contest(own, draws=draws, seed=seed)
        found[name] = made if made or not draws else _stored(store, name, own)
    return found


def compare_all(store: Store, *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Test all scorers of every dataset against each other, and store the outcome for readers without labels.

    Writes ``comparisons/<dataset>.json`` for the datasets whose labels are here, and ``comparisons.csv`` of all.

    Returns:
        One row for every test of two scorers, the columns ``COLUMNS``: ``p`` is adjusted by Holm over the pairs of a
        dataset, ``verdict`` is that of ``first``, a difference above 0 favours it.

    Raises:
        StoreError: Results cannot be read, or the folder not be written.
    """
    import pandas as pd

    tested = [found for found in contests(store, load_cells(store), draws=draws, seed=seed).values() if found]
    for found in tested:
        if not found.stored:
            store.write_cell(_path(store, found.dataset), _record(found))
    rows = [row for found in tested for matrix in found.matrices for row in _rows(found, matrix)]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    text = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    store.write_text(store.root / "comparisons.csv", text)
    return frame


def _path(store: Store, dataset: str) -> Path:
    return inside(store.root, "comparisons", f"{slug(dataset)}.json", error=StoreError)


def _made_of(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """What a comparison depends on, by scorer."""
    parts = {cell.scorer: (cell.content["scorer"], cell.content["dataset"]) for cell in cells if cell.has_figures}
    return {name: [scorer["fingerprint"], dataset["labels_hash"]] for name, (scorer, dataset) in parts.items()}


def _record(found: Contest) -> dict[str, Any]:
    return {
        "dataset": found.dataset,
        "made_of": _made_of(found.cells),
        "n": found.images,
        "left_out": found.left_out,
        "tests": [
            {
                "test": matrix.method,
                "statistic": matrix.statistic,
                "contents": matrix.contents,
                "undecidable": matrix.undecidable,
                "pairs": _pairs(matrix),
            }
            for matrix in found.matrices
        ],
    }


def _pairs(matrix: st.SignificanceMatrix) -> list[dict[str, Any]]:
    numbers = {"difference": matrix.differences, "low": matrix.lows, "high": matrix.highs, "p": matrix.p_values}
    index = {name: at for at, name in enumerate(matrix.names)}
    pairs = []
    for first, second in combinations(matrix.names, 2):
        place = index[first], index[second]
        values = {key: float(table[place]) if np.isfinite(table[place]) else None for key, table in numbers.items()}
        verdict = matrix.verdicts[place[0]][place[1]]
        reason = matrix.reasons.get((first, second), "")
        pairs.append({"first": first, "second": second, **values, "verdict": verdict, "reason": reason})
    return pairs


def _rows(found: Contest, matrix: st.SignificanceMatrix) -> list[dict[str, Any]]:
    head = {"dataset": found.dataset, "test": matrix.method, "statistic": matrix.statistic, "n": found.images}
    pairs = [{**pair, "reason": pair["reason"] or matrix.undecidable} for pair in _pairs(matrix)]
    return [{**head, "contents": matrix.contents, **pair} for pair in pairs]


def _stored(store: Store, dataset: str, cells: Sequence[Cell]) -> Contest | None:
    path = _path(store, dataset)
    if not path.exists():
        return None
    record = read_document(path, COMPARISONS, DamagedError, what := "a comparison of scorers")
    named = {name for test in record["tests"] for pair in test["pairs"] for name in (pair["first"], pair["second"])}
    if unknown := named - record["made_of"].keys():
        raise DamagedError(f"{path}: not {what}: it does not say of which scores of {', '.join(sorted(unknown))}")
    present = _made_of(cells)
    if any(present.get(name) != made_of for name, made_of in record["made_of"].items()):
        return None  # of scores or labels that later ones have replaced
    import pandas as pd

    return Contest(
        dataset,
        [cell for cell in cells if cell.scorer in record["made_of"]],
        pd.DataFrame({"file_name": [], "image_hash": []}),
        [_matrix(test, tuple(record["made_of"])) for test in record["tests"]],
        left_out=record["left_out"],
        images=record["n"],
        stored=True,
    )


def _matrix(test: Mapping[str, Any], names: tuple[str, ...]) -> st.SignificanceMatrix:
    results = {}
    for pair in test["pairs"]:
        known = {key: np.nan if pair[key] is None else pair[key] for key in ("difference", "low", "high", "p")}
        results[pair["first"], pair["second"]] = Result(**known, verdict=pair["verdict"], reason=pair["reason"])
    return filled(names, test["test"], test["statistic"], results, test["contents"], test["undecidable"])
