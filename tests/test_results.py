"""The committed results are those of the present code, and the tables, cells, scores and picture belong together.

Where one of these fails: ``python results/renew.py``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from harness.leaderboard.render import render
from harness.leaderboard.table import table, timings, to_csv
from harness.report.data import load_cell
from harness.results.measure import Directions, Settings, cell_figures
from harness.results.store import Store
from harness.run.engine import score_key
from harness.scorers.start import create_scorer

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
RENEW = "python results/renew.py leaderboard"
CELLS = Store(RESULTS).cells()
MEASURED = [cell for cell in CELLS if cell["subsets"]]


def cells_on(dataset: str) -> list[dict[str, Any]]:
    return [cell for cell in MEASURED if cell["dataset"]["name"] == dataset]


def named(cell: Mapping[str, Any]) -> str:
    return f"{cell['scorer']['name']}-{cell['dataset']['name']}"


def test_the_tables_are_those_of_the_cells() -> None:
    assert (RESULTS / "leaderboard.md").read_text(encoding="utf-8") == render(CELLS)
    assert (RESULTS / "leaderboard.csv").read_text(encoding="utf-8") == to_csv(table(CELLS))
    measured = timings(CELLS).to_csv(index=False, float_format="%.4g", lineterminator="\n")
    assert (RESULTS / "timings.csv").read_text(encoding="utf-8") == measured


def test_every_dataset_has_the_scorers_that_start_with_parameters_alone() -> None:
    for dataset in ("ladders", "livec_panel", "biq2021_panel", "agiqa3k_panel"):
        assert {cell["scorer"]["name"] for cell in cells_on(dataset)} >= {
            "qualiclip-lite",
            "niqe",
            "brisque",
            "piqe",
            "entropy",
        }


@pytest.mark.parametrize("cell", cells_on("ladders"), ids=named)
def test_figures_follow_from_the_committed_scores(cell: dict[str, Any]) -> None:
    loaded = load_cell(Store(RESULTS), cell)
    found = cell_figures(loaded.rows, Directions(cell["scorer"]["lower_better"], False), Settings(intervals=False))
    for kind in ("subsets", "distortions", "levels"):
        assert values(found[kind]) == pytest.approx(values(cell[kind]), abs=1e-12), RENEW


def values(groups: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        f"{group} {name}": figure["value"] for group in groups for name, figure in groups[group]["figures"].items()
    }


@pytest.mark.parametrize("cell", MEASURED, ids=named)
def test_the_scores_of_a_cell_are_there_and_no_others(cell: dict[str, Any]) -> None:
    scorer, dataset = cell["scorer"], cell["dataset"]
    folder = RESULTS / "scores" / scorer["name"] / f"{dataset['name']}@{dataset['version']}"
    assert [path.name for path in folder.iterdir()] == [scorer["fingerprint"][:16]], RENEW


@pytest.mark.parametrize("name", ["qualiclip-lite", "piqe", "entropy"])
def test_scores_are_those_of_the_present_code_and_weights(name: str) -> None:
    """Versions of libraries differ from machine to machine; what is this project's own must be the same."""
    from harness.data.open import ImageSet
    from harness.data.spec import shipped_specs

    (cell,) = (cell for cell in cells_on("ladders") if cell["scorer"]["name"] == name)
    scorer = create_scorer(name, device="cpu")
    for part in ("scores_version", "weights", "options", "metric"):
        assert scorer.identity.get(part) == cell["scorer"]["identity"].get(part), f"{part}: {RENEW}"
    labels = load_cell(Store(RESULTS), cell).rows
    key = score_key(scorer, ImageSet(shipped_specs()["ladders"], labels, None))
    identity = Store(RESULTS).identity(name, key.dataset, cell["scorer"]["fingerprint"])
    own = {part: key.identity["reading"][part] for part in ("version", "exif_applied", "background", "shorter_side")}
    assert {part: identity["reading"][part] for part in own} == own, RENEW


@pytest.fixture(scope="module")
def one_ladder() -> pd.DataFrame:
    """One photograph of the ladders at the third level of every kind, made now; ``pixels`` beside the labels."""
    from harness.data.ladders import PHOTOGRAPHS, photograph, rows

    name = next(iter(PHOTOGRAPHS))
    made = rows({name: photograph(name)})
    return pd.DataFrame({**row, "pixels": pixels} for row, pixels in made if row["level"] == 3)


def test_the_ladders_are_those_of_the_present_distortions(one_ladder: pd.DataFrame) -> None:
    (key,) = {f"ladders@{cell['dataset']['version']}" for cell in cells_on("ladders")}
    stored = Store(RESULTS).labels(key)[0].merge(one_ladder, on="file_name", suffixes=("", "_now"))
    assert len(stored) == len(one_ladder) > 20
    for quality, rounding in (("psnr", 0.05), ("ssim", 1e-3), ("gmsd", 1e-3)):
        moved = stored.loc[(stored[f"full_reference_{quality}"] - stored[quality]).abs() > rounding, "file_name"]
        assert moved.empty, f"{quality} of {list(moved)}: raise the version in ladders.yaml, then {RENEW}"


def test_a_score_that_moves_has_a_new_version(one_ladder: pd.DataFrame) -> None:
    (cell,) = (cell for cell in cells_on("ladders") if cell["scorer"]["name"] == "qualiclip-lite")
    stored = load_cell(Store(RESULTS), cell).rows.set_index("file_name")["score"]
    scorer = create_scorer("qualiclip-lite", device="cpu")
    for row in one_ladder.head(8).to_dict("records"):
        image = torch.from_numpy(row["pixels"]).permute(2, 0, 1)[None] / 255
        now = float(scorer.score(image))
        # One pixel of an image may be rounded otherwise on another processor.
        assert now == pytest.approx(stored[row["file_name"]], abs=1e-3), f"raise SCORES_VERSION, then {RENEW}"


def test_no_labels_of_others_and_no_place_of_this_machine_are_in_the_results() -> None:
    assert not [path for path in RESULTS.glob("datasets/*") if not path.name.startswith("ladders@") and tracked(path)]
    for path in (*RESULTS.glob("cells/*/*.json"), *RESULTS.glob("*.csv"), RESULTS / "leaderboard.md"):
        text = path.read_text(encoding="utf-8")
        assert str(Path.home()) not in text
        assert "/shared" not in text


@pytest.mark.parametrize("dataset", ["ladders", "livec_panel", "biq2021_panel", "agiqa3k_panel"])
def test_the_stored_tests_are_of_these_scores(dataset: str) -> None:
    """Of all scorers: the tables of a reader without the labels say which differences are decided."""
    compared = json.loads((RESULTS / "comparisons" / f"{dataset}.json").read_text(encoding="utf-8"))
    assert compared["made_of"] == {
        cell["scorer"]["name"]: [cell["scorer"]["fingerprint"], cell["dataset"]["labels_hash"]]
        for cell in cells_on(dataset)
    }, RENEW
    rows = pd.read_csv(RESULTS / "comparisons.csv")
    assert len(rows[(rows["dataset"] == dataset) & (rows["test"] == "flip")]) == len(compared["tests"][0]["pairs"])


def test_the_readme_claims_what_the_tests_decide() -> None:
    spec = importlib.util.spec_from_file_location("renew", RESULTS / "renew.py")
    assert spec is not None
    assert spec.loader is not None
    renew = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(renew)
    assert renew.BEGIN + renew.claim() + renew.END in (ROOT / "README.md").read_text(encoding="utf-8"), RENEW


def tracked(path: Path) -> bool:
    patterns = (RESULTS / ".gitignore").read_text().splitlines()
    return not any(fnmatch(path.relative_to(RESULTS).as_posix(), pattern) for pattern in patterns)


def test_the_picture_of_the_report_is_that_of_the_table() -> None:
    from PIL import Image

    picture = ROOT / "docs" / "report.png"
    assert picture.stat().st_size < 400_000
    with Image.open(picture) as opened:
        opened.load()
        made_from = opened.info["leaderboard"]
    table_now = hashlib.sha256((RESULTS / "leaderboard.csv").read_bytes()).hexdigest()
    assert made_from == table_now, "python results/renew.py picture"
