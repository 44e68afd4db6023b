"""What the documents say of files and of simulations is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from harness.leaderboard.table import INTERVALS
from harness.results.store import Store
from harness.statistics import least_p

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"


def block(page: str, name: str) -> list[list[str]]:
    """Rows of the table between two comments of a page in `docs`, without its head."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (found,) = re.findall(rf"<!-- {re.escape(name)} -->\n(.*?)<!-- end -->", text, flags=re.DOTALL)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()[2:]]


def explained(name: str) -> list[str]:
    """Columns or keys that the first column of a table in ``result-files.md`` names, in their order."""
    return [key for row in block("result-files.md", name) for key in re.findall("`(.*?)`", row[0])]


@pytest.mark.parametrize("name", ["comparisons.csv", "timings.csv", "leaderboard.csv"])
def test_every_column_of_a_table_is_explained(name: str) -> None:
    columns = (RESULTS / name).read_text(encoding="utf-8").splitlines()[0].split(",")
    others = [column for column in columns if column not in INTERVALS]
    assert [column for column in explained(name) if column not in INTERVALS] == others


@pytest.mark.parametrize(("name", "pattern"), [("parts", "scores/*/*/*/*.parquet"), ("labels", "datasets/*.parquet")])
def test_every_column_of_stored_rows_is_explained(name: str, pattern: str) -> None:
    names = [set(pq.read_schema(path).names) for path in RESULTS.glob(pattern)]
    assert set().union(*names) == set(explained(name))


def test_every_key_of_a_cell_and_of_a_baseline_is_explained() -> None:
    for cell in Store(RESULTS).cells():
        if cell["subsets"]:
            assert {*cell, "ratio_splits"} == {*explained("cell")}
    baseline = json.loads((RESULTS / "baseline.json").read_text(encoding="utf-8"))
    assert baseline.keys() == {*explained("baseline.json")}


def test_the_smallest_p_is_what_the_page_says() -> None:
    for contents, smallest, pairs, _ in block("statistics.md", "smallest p"):
        p = least_p(int(contents.split()[0]))
        assert float(smallest) == pytest.approx(p, rel=0.01)
        assert int(pairs) == int(0.05 / p)


def test_percentiles_are_those_of_the_stored_scores() -> None:
    for pictures, *shown in block("what-a-score-means.md", "percentiles"):
        (panel,) = re.findall("`(.*?)`", pictures)
        (part,) = RESULTS.glob(f"scores/qualiclip-lite/{panel}@*/*/*.parquet")
        found = pd.read_parquet(part)["score"].quantile([0.05, 0.25, 0.5, 0.75, 0.95])
        assert [float(value) for value in shown] == pytest.approx(found.tolist(), abs=0.0051)


SIMULATIONS = {
    "sign flips, any statistic: ": ("size, sign flips", ""),
    "sign flips, L-test: ": ("size, sign flips, L-test", ""),
    "sign flips, SRCC, 8 images": ("size, sign flips, SRCC", "8 images"),
    "sign flips, SRCC, independent": ("size, sign flips, SRCC", "independent"),
    "Williams' t, independent": ("size, Williams", "independent"),
    "Williams' t, 40 images": ("size, Williams", "40 images"),
    "Pitman's test, independent": ("size, Pitman", "independent"),
    "intervals without": ("coverage, interval of (?!PLCC fitted|RMSE)", ""),
    "intervals with a": ("coverage, interval of (PLCC fitted|RMSE)", ""),
}
"""How a row of the page begins, and how the simulations behind it are called: what, and of which images."""


def test_simulations_say_what_the_page_quotes() -> None:
    simulated = pd.read_csv(RESULTS / "statistics" / "simulations.csv")
    rows = block("statistics.md", "simulations")
    assert len(rows) == len(SIMULATIONS)
    for (what, contents, share), (begin, (kind, images)) in zip(rows, SIMULATIONS.items(), strict=True):
        assert what.startswith(begin)
        low, high = (int(number) for number in (re.findall(r"\d+", contents) * 2)[:2])
        own = simulated[simulated["what"].str.match(kind) & simulated["images"].str.startswith(images)]
        found = own.loc[own["contents"].between(low, high), "share"]
        quoted = [float(number) for number in (re.findall(r"\.\d+", share) * 2)[:2]]
        assert quoted == pytest.approx([found.min(), found.max()], abs=6e-4), what
