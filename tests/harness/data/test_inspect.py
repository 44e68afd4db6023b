"""Looking at a dataset, fitting NIQE, comparing scorers from Python, and scorers that are commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import harness
from harness.cli import app
from harness.data.decode import Decoded
from harness.data.inspect import difference_hash, inspect, near_duplicates, report
from harness.data.open import open_dataset
from harness.report import write_report
from harness.report.data import contest, load_cells
from harness.results.measure import Settings
from harness.results.store import Store, StoreError
from harness.scorers.names import ScorerError
from harness.scorers.niqe_fit import fit_niqe, sharp_features
from harness.scorers.start import availability, create_scorer
from harness.statistics import fit_logistic, pitman_test
from qualiclip_plugin.utils.errors import DatasetError
from tests.support.harness_data import brightness, fake_scorer, opinion_folder, write_metadata


def test_a_sound_folder_is_described(tmp_path: Path) -> None:
    found = inspect(open_dataset(str(opinion_folder(tmp_path / "set", 6))))
    assert found.sound
    text = report(found)
    assert "set@local: 6 images" in text
    assert "sizes: 48x40 (6)" in text
    assert "unreadable: none" in text
    assert text.count("#") > 0


def test_duplicates_unreadable_and_near_duplicates_between_splits_are_named(
    tmp_path: Path, photographs: list[np.ndarray]
) -> None:
    for index, photo in enumerate(photographs[:3]):
        Image.fromarray(photo).save(tmp_path / f"{index}.png")
    Image.fromarray(photographs[0]).save(tmp_path / "again.jpg", quality=60)
    (tmp_path / "copy.png").write_bytes((tmp_path / "1.png").read_bytes())
    (tmp_path / "broken.png").write_bytes(b"nothing")
    names = {"0.png": "train", "1.png": "train", "2.png": "test", "again.jpg": "test", "copy.png": "train"}
    names["broken.png"] = "test"
    write_metadata(tmp_path, [{"file_name": n, "mos": i, "split": s} for i, (n, s) in enumerate(names.items())])
    found = inspect(open_dataset(str(tmp_path)))
    assert found.duplicates == [["1.png", "copy.png"]]
    assert set(found.unreadable) == {"broken.png"}
    assert {frozenset(pair[:2]) for pair in found.near} == {frozenset({"0.png", "again.jpg"})}
    assert found.splits == {"train": 3, "test": 3}
    result = CliRunner().invoke(app, ["data", "check", str(tmp_path)])
    assert result.exit_code == 1
    assert "again.jpg" in result.stdout


def test_difference_hash_compares_neighbours() -> None:
    ramp = np.broadcast_to(np.arange(90, dtype=np.uint8), (3, 80, 90))
    assert difference_hash(Decoded(0, np.ascontiguousarray(ramp))) == 2**64 - 1
    assert difference_hash(Decoded(0, np.ascontiguousarray(ramp[..., ::-1]))) == 0
    hashes = np.array([0, 0b1111, 0b11111], dtype=np.uint64)
    found = near_duplicates(["a", "b", "c"], hashes, np.ones(3, bool), pd.Series(["x", "y", "y"]))
    assert found == [("a", "b", 4)]


def test_niqe_features_are_pyiqas(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyiqa.archs.niqe_arch import calculate_niqe

    monkeypatch.setattr("harness.scorers.niqe_fit.SHARP", -1.0)
    image = torch.nn.functional.interpolate(images[:1], size=(300, 420), mode="bicubic").clamp(0, 1)
    features = torch.from_numpy(sharp_features(image))
    assert features.shape == (12, 36)
    generator = torch.Generator().manual_seed(0)
    mean = features.mean(dim=0) + 0.1 * torch.rand(36, generator=generator, dtype=torch.float64)
    basis = torch.rand(36, 36, generator=generator, dtype=torch.float64)
    covariance = basis @ basis.T + torch.eye(36)
    expected = calculate_niqe(image, mu_pris_param=mean, cov_pris_param=covariance)
    difference = mean - features.mean(dim=0)
    pooled = (covariance + torch.cov(features.T)) / 2
    distance = (difference @ torch.linalg.pinv(pooled) @ difference).sqrt()
    assert float(distance) == pytest.approx(float(expected), rel=1e-6)


def test_niqe_fitted_to_photographs_prefers_them_to_noise(tmp_path: Path, photographs: list[np.ndarray]) -> None:
    (tmp_path / "pristine").mkdir()
    for index, photo in enumerate(photographs):
        for turn in range(4):
            Image.fromarray(np.rot90(photo, turn).copy()).save(tmp_path / f"pristine/{index}-{turn}.png")
    result = CliRunner().invoke(app, ["fit-niqe", str(tmp_path / "pristine"), "--output", str(tmp_path / "own.mat")])
    assert result.exit_code == 0, result.output
    scorer = create_scorer(f"niqe@pretrained_model_path={tmp_path / 'own.mat'}", device="cpu")
    photo = torch.from_numpy(photographs[0][None].transpose(0, 3, 1, 2).copy()).float() / 255
    noisy = (photo + 0.2 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert float(scorer.score(photo)) < float(scorer.score(noisy))
    with pytest.raises(DatasetError, match="0 sharp patches"):
        fit_niqe([], tmp_path / "none.mat")


def test_evaluate_and_compare_from_python(tmp_path: Path) -> None:
    folder = opinion_folder(tmp_path / "set", 12)
    noise = torch.Generator().manual_seed(0)
    scorers = [
        fake_scorer(brightness, "good"),
        fake_scorer(lambda batch: torch.rand(len(batch), generator=noise), "random"),
    ]
    options = {"output": tmp_path / "results", "settings": Settings()}
    frame = harness.evaluate(scorers, [str(folder)], **options)
    assert frame["scorer"].tolist() == ["good", "random"]
    again = harness.evaluate([*scorers, "nonsense"], str(folder), **options)
    assert again["srcc"].tolist()[:2] == frame["srcc"].tolist()
    assert again["status"].tolist() == ["complete", "complete", "unavailable"]
    compared = harness.compare("good", "random", output=tmp_path / "results", draws=500)
    row = compared.iloc[0]
    assert (row["dataset"], row["figure"], row["n"]) == ("set", "srcc", 12)
    assert row["first"] == pytest.approx(frame["srcc"][0])
    assert row["difference"] == pytest.approx(frame["srcc"][0] - frame["srcc"][1])
    assert 0 < row["p"] <= 1
    turned = harness.compare("random", "good", output=tmp_path / "results", draws=500).iloc[0]
    assert turned["difference"] == pytest.approx(-row["difference"])
    assert turned["p"] == pytest.approx(row["p"])
    with pytest.raises(StoreError, match="no stored scores of 'missing'"):
        harness.compare("good", "missing", output=tmp_path / "results")


def test_stored_scores_come_with_file_names_and_labels(tmp_path: Path) -> None:
    folder = opinion_folder(tmp_path / "set", 6)
    (folder / "3.png").write_bytes(b"no image")
    options = {"output": tmp_path / "results", "settings": Settings(intervals=False)}
    harness.evaluate(fake_scorer(brightness, "dark", lower_better=True), str(folder), **options)
    rows = harness.load_scores("dark", "set", output=tmp_path / "results")
    assert rows["file_name"].tolist() == [f"{i}.png" for i in range(6)]
    assert rows["opinion"].tolist() == [1, 0, 2, 3, 4, 5]
    assert rows["score"].isna().tolist() == [False, False, False, True, False, False]
    assert rows["error"][3]
    assert rows.attrs == {"scorer_lower_better": True, "opinion_lower_better": False}
    with pytest.raises(StoreError, match=r"no stored scores of 'dark' on 'other'; there are some on set"):
        harness.load_scores("dark", "other", output=tmp_path / "results")


def test_cells_of_two_curves_are_compared_by_one(tmp_path: Path) -> None:
    folder = opinion_folder(tmp_path / "set", 16)
    flat = fake_scorer(lambda batch: brightness(batch).round(decimals=1), "flat")
    for scorer, form in ((fake_scorer(brightness, "bright"), "logistic5"), (flat, "logistic4")):
        harness.evaluate(scorer, str(folder), output=tmp_path / "results", settings=Settings(form=form))
    cells = sorted(load_cells(Store(tmp_path / "results")), key=lambda cell: cell.scorer)
    residuals = [
        fit_logistic("logistic5", cell.scores, cell.opinions).apply(cell.scores) - cell.opinions for cell in cells
    ]
    compared = contest(cells, draws=20)
    (errors,) = (matrix for matrix in compared.matrices if matrix.method == "pitman")
    assert errors.p_values[0, 1] == pytest.approx(pitman_test(*residuals).p_value, rel=1e-4)


def test_errors_are_compared_after_the_fit_that_the_cells_were_made_with(tmp_path: Path) -> None:
    folder = opinion_folder(tmp_path / "set", 16)
    scorers = [
        fake_scorer(brightness, "bright"),
        fake_scorer(lambda batch: brightness(batch).round(decimals=1), "flat"),
    ]
    settings = Settings(form="logistic5")
    harness.evaluate(scorers, str(folder), output=tmp_path / "results", settings=settings)
    cells = sorted(load_cells(Store(tmp_path / "results")), key=lambda cell: cell.scorer)
    residuals = [cell.fit.apply(cell.scores) - cell.opinions for cell in cells if cell.fit is not None]
    expected = pitman_test(*residuals).p_value
    compared = contest(cells, draws=20)
    assert compared is not None
    (errors,) = (matrix for matrix in compared.matrices if matrix.method == "pitman")
    assert errors.p_values[0, 1] == pytest.approx(expected, rel=1e-4)
    row = harness.compare("bright", "flat", output=tmp_path / "results", draws=20).iloc[0]
    assert row["p_pitman"] == pytest.approx(expected, rel=1e-4)


def test_only_images_that_both_have_scored_are_compared(tmp_path: Path) -> None:
    def within(low: float, high: float) -> Callable[[torch.Tensor], torch.Tensor]:
        def score(images: torch.Tensor) -> torch.Tensor:
            values = brightness(images)
            if not ((values > low) & (values < high)).all():
                raise ValueError("out of range")
            return values

        return score

    # The darkest of the twelve has no score by one, the two brightest have none by the other.
    scorers = [fake_scorer(within(0.05, 1), "one"), fake_scorer(within(0, 0.42), "two")]
    folder = str(opinion_folder(tmp_path / "set", 12))
    frame = harness.evaluate(scorers, folder, output=tmp_path / "results", settings=Settings(intervals=False))
    assert frame["n"].tolist() == [11, 10]
    row = harness.compare("one", "two", output=tmp_path / "results", draws=100).iloc[0]
    assert (row["n"], row["first"], row["second"]) == (9, pytest.approx(1), pytest.approx(1))


def test_scorers_that_met_different_labels_are_not_compared(tmp_path: Path) -> None:
    folder = opinion_folder(tmp_path / "set", 6)
    options = {"output": tmp_path / "results", "settings": Settings(intervals=False)}
    harness.evaluate(fake_scorer(brightness, "one"), str(folder), **options)
    metadata = pd.read_csv(folder / "metadata.csv")
    metadata.assign(mos=metadata["mos"].to_numpy()[::-1]).to_csv(folder / "metadata.csv", index=False)
    harness.evaluate(fake_scorer(brightness, "two"), str(folder), **options)
    row = harness.compare("one", "two", output=tmp_path / "results").iloc[0]
    assert row["reason"] == "Compared with different labels, and so not with each other: one; two. Run them again."
    assert pd.isna(row["difference"])


def test_figures_are_not_mixed_with_labels_that_a_later_run_wrote(tmp_path: Path) -> None:
    folder = opinion_folder(tmp_path / "set", 6)
    options = {"output": tmp_path / "results", "settings": Settings(intervals=False)}
    scorers = [fake_scorer(brightness, name) for name in ("one", "two", "three")]
    harness.evaluate(scorers[:2], str(folder), **options)
    # The same opinions under the other name: read with the direction stored before, every correlation turns round.
    metadata = pd.read_csv(folder / "metadata.csv").rename(columns={"mos": "dmos_lower_better"})
    metadata.assign(dmos_lower_better=-metadata["dmos_lower_better"]).to_csv(folder / "metadata.csv", index=False)
    harness.evaluate(scorers[2], str(folder), **options)
    row = harness.compare("one", "two", output=tmp_path / "results").iloc[0]
    assert row["reason"].startswith("one: its figures are of other labels")
    assert pd.isna(row["difference"])
    compared = contest(load_cells(Store(tmp_path / "results")), draws=0)
    assert compared is not None
    assert ([cell.scorer for cell in compared.cells], compared.other_labels) == (["three"], ["one", "two"])
    write_report(tmp_path / "results", tmp_path / "site", draws=0)
    page = (tmp_path / "site/cell-one--set.html").read_text()
    assert "its figures are of other labels" in page
    assert "<h2" not in page
    # A set that has become smaller leaves the others in the report too.
    metadata[:5].to_csv(folder / "metadata.csv", index=False)
    harness.evaluate(scorers[2], str(folder), **options)
    write_report(tmp_path / "results", tmp_path / "site", draws=0)


def test_published_results_without_labels_say_so(tmp_path: Path) -> None:
    folder = opinion_folder(tmp_path / "set", 6)
    scorers = [fake_scorer(brightness, "one"), fake_scorer(brightness, "two")]
    harness.evaluate(scorers, str(folder), output=tmp_path / "results", settings=Settings())
    next((tmp_path / "results/datasets").glob("*.parquet")).unlink()
    row = harness.compare("one", "two", output=tmp_path / "results").iloc[0]
    assert row["reason"].startswith("one: the labels are not in this results folder")
    write_report(tmp_path / "results", tmp_path / "site", draws=0)
    assert "the labels are not in this results folder" in (tmp_path / "site/cell-one--set.html").read_text()


def test_scorers_without_a_dataset_in_common_are_told_so(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = str(opinion_folder(tmp_path / f"of {name}", 6))
        harness.evaluate(
            fake_scorer(brightness, name), folder, output=tmp_path / "out", settings=Settings(intervals=False)
        )
    assert harness.compare("one", "two", output=tmp_path / "out").empty
    result = CliRunner().invoke(app, ["compare", "one", "two", "--output", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "no dataset has stored scores of both one and two" in str(result.exception)


def test_a_scorer_that_failed_on_every_image_is_not_compared(tmp_path: Path) -> None:
    def broken(images: torch.Tensor) -> torch.Tensor:
        raise ValueError("no")

    scorers = [fake_scorer(brightness, "one"), fake_scorer(broken, "two")]
    folder = str(opinion_folder(tmp_path / "set", 6))
    harness.evaluate(scorers, folder, output=tmp_path / "results", settings=Settings(intervals=False))
    row = harness.compare("one", "two", output=tmp_path / "results").iloc[0]
    assert row["reason"] == "two: no image has a score"
    assert pd.isna(row["difference"])


def test_ladders_are_compared_by_their_order(tmp_path: Path) -> None:
    levels = [(photo, level) for photo in range(4) for level in range(6)]
    for photo, level in levels:
        pixels = np.random.default_rng(photo).integers(100, 120, (32, 32, 3)) + 12 * level
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{photo}-{level}.png")
    rows = [
        {"file_name": f"{p}-{v}.png", "reference": str(p), "distortion": "bright" if v else "", "level": v}
        for p, v in levels
    ]
    write_metadata(tmp_path, rows)
    scorers = [fake_scorer(brightness, "down", lower_better=True), fake_scorer(brightness, "up")]
    options = {"output": tmp_path / "results", "settings": Settings()}
    frame = harness.evaluate(scorers, f"steps={tmp_path}", **options)
    assert frame["l_test"].tolist() == pytest.approx([1, -1])
    row = harness.compare("down", "up", output=tmp_path / "results").iloc[0]
    assert (row["figure"], row["difference"]) == ("l_test", pytest.approx(2))


PROGRAM = """
import json, sys
from PIL import Image
import numpy as np
values = {p.rsplit("/", 1)[-1]: float(np.asarray(Image.open(p)).mean()) for p in sys.argv[1:]}
print(json.dumps(values if "{kind}" == "object" else list(values.values())))
"""


@pytest.mark.parametrize("kind", ["object", "list"])
def test_a_command_scores_images(tmp_path: Path, images: torch.Tensor, kind: str) -> None:
    program = tmp_path / "score.py"
    program.write_text(PROGRAM.replace("{kind}", kind))
    scorer = create_scorer(f"cmd:{sys.executable} {program}@lower_better=false")
    pixels = (images * 255).round() / 255
    assert torch.allclose(scorer.score(pixels).float(), 255 * pixels.mean(dim=(1, 2, 3)), atol=1e-3)
    first = scorer.identity
    program.write_text(program.read_text() + "# changed\n")
    assert create_scorer(f"cmd:{sys.executable} {program}@lower_better=false").identity != first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys; sys.exit('no luck')", "ended with 1: no luck"),
        ("print('nonsense')", "did not print a JSON list"),
        ("print('{}')", "did not print a JSON list"),
    ],
)
def test_a_command_that_fails_says_so(tmp_path: Path, images: torch.Tensor, text: str, message: str) -> None:
    program = tmp_path / "score.py"
    program.write_text(text)
    scorer = create_scorer(f"cmd:{sys.executable} {program}@lower_better=false")
    with pytest.raises(ScorerError, match=message):
        scorer.score(images)
    with pytest.raises(ScorerError, match="declare its direction"):
        create_scorer(f"cmd:{sys.executable} {program}")
    with pytest.raises(ScorerError, match="no program 'nonsense'"):
        create_scorer("cmd:nonsense@lower_better=true")


def test_availability_downloads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked = ["piqe", "qualiclip", "cnniqa", "hyperiqa"]
    found = {start.name: start for start in availability(asked)}
    assert found["piqe"].reason == ""
    assert found["piqe"].parameters == 0
    assert "not here" in found["qualiclip"].reason
    # From pyiqa's store by urllib, and from the Hub through timm: one reason in one wording.
    assert all("its weights are not on this machine" in found[name].reason for name in ("cnniqa", "hyperiqa"))
    assert not list(tmp_path.rglob("*.pth"))
