"""What tests said of published scores can be read where the labels may not be passed on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import harness
from harness.data.open import open_dataset
from harness.leaderboard.render import render
from harness.report import write_report
from harness.report.comparisons import COLUMNS, contests
from harness.report.data import Contest, load_cells
from harness.report.overview import overview
from harness.results.measure import Settings
from harness.results.store import Store, StoreError
from harness.run.engine import evaluate
from harness.scorers.names import facts
from tests.support.commands import run_main
from tests.support.harness_data import brightness, fake_scorer, opinion_folder

QUICK = Settings(intervals=False)


def contrast(images: torch.Tensor) -> torch.Tensor:
    """Spread of the grey values; none of a very dark image."""
    return torch.where(brightness(images) > 0.06, images.std(dim=(1, 2, 3)), torch.nan)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Contest]:
    """Results of three scorers, with the tests that were made of them and without the labels."""
    root = tmp_path_factory.mktemp("published")
    images, store = open_dataset(str(opinion_folder(root / "rated", 20))), Store(root / "results")
    for scorer in (
        fake_scorer(),
        fake_scorer(contrast, "contrast"),
        fake_scorer(brightness, "dark", lower_better=True),
    ):
        evaluate(scorer, images, store, settings=QUICK)
    made = contests(store, load_cells(store), draws=100)["rated"]
    assert made is not None
    assert made.left_out > 0
    harness.compare_all(output=store.root, draws=100)
    store.labels_path(images.spec.key).unlink()
    return store, made


def test_without_labels_the_tests_are_those_that_were_made(published: tuple[Store, Contest]) -> None:
    store, made = published
    found = contests(store, load_cells(store), draws=100)["rated"]
    assert found is not None
    assert (found.stored, found.images, found.left_out) == (True, made.images, made.left_out)
    assert [matrix.method for matrix in found.matrices] == ["flip", "williams", "pitman"]
    for now, then in zip(found.matrices, made.matrices, strict=True):
        order = [now.names.index(name) for name in then.names]
        for part in ("differences", "lows", "highs", "p_values"):
            np.testing.assert_array_equal(getattr(now, part)[np.ix_(order, order)], getattr(then, part))
        assert tuple(tuple(now.verdicts[i][j] for j in order) for i in order) == then.verdicts
        assert (now.contents, now.undecidable, dict(now.reasons)) == (then.contents, then.undecidable, then.reasons)


def test_the_first_page_ranks_by_them_and_says_on_how_many_images(published: tuple[Store, Contest]) -> None:
    store, made = published
    cells = load_cells(store)
    (ranking,) = overview(cells, contests(store, cells))["rankings"]
    assert ranking["verdict"] == "fake is better than every other scorer here, and the tests confirm it."
    assert ranking["rows"][0]["rank"] == "1"
    assert all(row["rank"] and row["letters"] for row in ranking["rows"])
    assert (ranking["images"], ranking["left_out"], ranking["untested"]) == (made.images, made.left_out, "")


def test_a_scorer_that_is_in_no_test_is_not_behind_the_first(
    published: tuple[Store, Contest], tmp_path: Path
) -> None:
    store = Store(shutil.copytree(published[0].root, tmp_path / "results"))
    cell = {key: value for key, value in store.cells()[0].items() if key != "seal"}
    store.write_cell(store.cell_path("new", "rated"), {**cell, "scorer": {**cell["scorer"], "name": "new"}})
    cells = load_cells(store)
    (ranking,) = overview(cells, contests(store, cells))["rankings"]
    assert ranking["verdict"] == "fake is better than every other scorer that was compared, and the tests confirm it."
    assert ranking["untested"] == "Not compared with the others: new."


def test_a_set_that_chose_between_variants_is_said_to(published: tuple[Store, Contest], tmp_path: Path) -> None:
    store = Store(shutil.copytree(published[0].root, tmp_path / "results"))
    path = store.cell_path("fake", "rated")
    cell = {key: value for key, value in store.read_cell(path).items() if key != "seal"}
    store.write_cell(path, {**cell, "scorer": {**cell["scorer"], "chosen_on": ["rated"]}})
    (ranking,) = overview(load_cells(store))["rankings"]
    assert ranking["flattered"] == "fake"
    assert ranking["rows"][0]["cell"]["marks"] == ["training sets not all known", "variants chosen here"]
    assert "| fake‡§ " in render(store.cells())
    assert facts("qualiclip-lite").chosen_on == ("livec_panel", "biq2021_panel", "agiqa3k_panel")


def test_every_test_is_a_row_of_the_table(published: tuple[Store, Contest]) -> None:
    store, made = published
    rows = pd.read_csv(store.root / "comparisons.csv")
    assert tuple(rows.columns) == COLUMNS
    assert set(zip(rows["test"], rows["first"] + " " + rows["second"], strict=True)) >= {("flip", "contrast dark")}
    assert set(rows["n"]) == {made.images}
    pd.testing.assert_frame_equal(rows[["p"]], harness.compare_all(output=store.root)[["p"]], rtol=1e-5)


def test_tests_of_other_scores_or_labels_are_not_used(published: tuple[Store, Contest], tmp_path: Path) -> None:
    root = shutil.copytree(published[0].root, tmp_path / "results")
    store = Store(root)
    cell = {**store.read_cell(path := store.cell_path("contrast", "rated"))}
    cell.pop("seal")
    cell["dataset"]["labels_hash"] = "0" * 64
    store.write_cell(path, cell)
    cells = load_cells(store)
    found = contests(store, cells)
    assert found == {"rated": None}
    (ranking,) = overview(cells, found)["rankings"]
    assert ranking["untested"].startswith("Nothing is tested: the labels are not in this results folder")
    assert {row["rank"] for row in ranking["rows"]} == {""}


@pytest.mark.parametrize("change", [{"n": -1}, {"made_of": {}}, {"tests": [{"test": "guess"}]}, {}, "huge"])
def test_an_altered_comparison_is_refused(
    published: tuple[Store, Contest], tmp_path: Path, change: dict[str, object] | str
) -> None:
    store = Store(shutil.copytree(published[0].root, tmp_path / "results"))
    path = store.root / "comparisons" / "rated.json"
    content = json.loads(path.read_text())
    if change == "huge":
        content["tests"][0]["pairs"][0]["difference"] = 10**400
    content |= change if isinstance(change, dict) else {}
    if change:
        content.pop("seal")
    else:
        content["left_out"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=r"rated\.json: not a comparison of scorers"):
        contests(store, load_cells(store))


def test_the_command_compares_all_where_no_names_are_given(
    published: tuple[Store, Contest], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--output", published[0].root)
    assert run_main(monkeypatch, "iqa-harness", "compare", *place) == 0
    assert "| rated     | flip     |" in capsys.readouterr().out
    assert run_main(monkeypatch, "iqa-harness", "compare", "dark", *place) == 2
    assert "Give two names, or none" in capsys.readouterr().err


def test_the_pages_have_figures_counts_and_failures_without_the_labels(
    published: tuple[Store, Contest], tmp_path: Path
) -> None:
    site = write_report(published[0].root, tmp_path / "site").parent
    pages = {path.name: path.read_text() for path in site.glob("*.html")}
    assert '<small class="mark">failed images</small>' in pages["index.html"]
    assert "that some scorer lacks" in pages["index.html"]
    assert "<b>20</b> images" in pages["dataset-rated.html"]
    assert "the tests were made with them elsewhere, on these scores" in pages["dataset-rated.html"]
    cell = pages["cell-contrast--rated.html"]
    assert "No images are shown one by one: the labels are not in this results folder" in cell
    assert "<span>SRCC</span>" in cell
    assert "Failed images: " in cell
