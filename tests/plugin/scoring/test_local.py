"""Rows of scores: order, batches, errors, files. A tiny model stands in where the numbers do not matter."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from qualiclip_plugin.models.precision import exact_fp32
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.scoring import local as scoring
from qualiclip_plugin.scoring.local import BATCH_TOLERANCE, ScoredImage, check_device, score_files
from qualiclip_plugin.scoring.table import check_output, plain_table, rich_table, to_frame, write_scores
from qualiclip_plugin.utils.decode_ahead import AHEAD
from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.weights.loading import load_model


class MeanModel(nn.Module):
    """Scores an image by its mean value and keeps the shapes of the batches it was given."""

    attributes = ("red", "green")

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor, attributes: bool = False) -> Any:
        self.batches.append(tuple(images.shape))
        scores = images.double().mean(dim=(1, 2, 3)).unsqueeze(1)
        if not attributes:
            return scores
        return scores, {"red": images[:, 0].mean(dim=(1, 2)), "green": images[:, 1].mean(dim=(1, 2))}


def save_grey(path: Path, value: int, size: tuple[int, int] = (40, 40)) -> Path:
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


@pytest.fixture
def greys(tmp_path: Path) -> list[Path]:
    """Twelve images of three sizes whose mean tells their place in the list."""
    sizes = [(40, 40), (64, 40), (40, 64)]
    return [save_grey(tmp_path / f"{index:02}.png", index * 20, sizes[index % 3]) for index in range(12)]


@pytest.mark.parametrize("workers", [0, 1, 5])
@pytest.mark.parametrize("batch_size", [0, 1, 3, 100])
def test_rows_come_in_the_order_of_the_files(greys: list[Path], workers: int, batch_size: int) -> None:
    for files in (greys, greys[::-1], [greys[3], greys[3], greys[0]]):
        rows = list(score_files(files, MeanModel(), workers=workers, batch_size=batch_size))
        assert [row.path for row in rows] == [str(file) for file in files]
        assert [row.score for row in rows] == pytest.approx([int(file.stem) * 20 / 255 for file in files])
        assert all(row.error is None and row.note is None for row in rows)


def test_images_of_equal_size_are_scored_together(greys: list[Path]) -> None:
    model = MeanModel()
    list(score_files(greys, model, batch_size=3))
    assert sorted(model.batches) == sorted(
        [(3, 3, 40, 40), (1, 3, 40, 40), (3, 3, 40, 64), (1, 3, 40, 64), (3, 3, 64, 40), (1, 3, 64, 40)]
    )


def test_large_images_make_small_batches(greys: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BATCH_PIXELS", 2 * 40 * 40)
    model = MeanModel()
    list(score_files(greys, model, batch_size=100))
    assert {shape[0] for shape in model.batches if shape[2:] == (40, 40)} == {2}
    assert {shape[0] for shape in model.batches if shape[2:] == (40, 64)} == {1}


def test_images_that_wait_for_their_size_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "WAITING_PIXELS", 8 * 40 * 40)
    files = [save_grey(tmp_path / f"{index:02}.png", index, (40 + index, 40)) for index in range(20)]
    model = MeanModel()
    decoded: list[int] = []

    def count(paths: list[Path]) -> Iterator[Path]:
        for index, path in enumerate(paths):
            decoded.append(index)
            waiting = index - len(model.batches)
            assert waiting <= 9
            yield path

    rows = list(score_files(count(files), model, batch_size=10, workers=0))  # type: ignore[arg-type]
    assert len(rows) == len(decoded) == 20
    assert [row.width for row in rows] == [40 + index for index in range(20)]


def test_decoding_stays_a_few_images_ahead(greys: list[Path]) -> None:
    taken = []

    def paths() -> Iterator[Path]:
        for path in greys:
            taken.append(path)
            yield path

    rows = score_files(paths(), MeanModel(), workers=2)  # type: ignore[arg-type]
    next(rows)
    assert len(taken) <= AHEAD * 2 + 1
    rows.close()  # type: ignore[attr-defined]  # a reader that stops early leaves no thread behind


def test_each_unreadable_file_is_a_row_with_its_reason(greys: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    whole = greys[1].read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    files = [greys[0], tmp_path / "empty.png", tmp_path / "text.png", tmp_path / "half.png", tmp_path / "gone.png"]
    rows = list(score_files([*files, greys[1]], MeanModel(), batch_size=4))
    assert [row.score is None for row in rows] == [False, True, True, True, True, False]
    for file, row, reason in zip(files[1:], rows[1:5], ("empty", "not an image", "", "no such file"), strict=True):
        assert row.error is not None
        assert str(file) in row.error
        assert reason in row.error
        assert (row.width, row.height) == (None, None)


@pytest.mark.parametrize("size", [(1, 1), (31, 200), (200, 31)])
def test_an_image_below_the_smallest_size_is_a_clear_row(
    tmp_path: Path, tiny_model: QualiCLIP, size: tuple[int, int]
) -> None:
    small = save_grey(tmp_path / "small.png", 9, size)
    fine = save_grey(tmp_path / "fine.png", 9, (32, 32))
    row, other = score_files([small, fine], tiny_model, batch_size=8)
    assert row.score is None
    assert f"{small}: image of {size[0]}x{size[1]} pixels is too small: each side needs at least 32" == row.error
    assert (row.width, row.height) == size
    assert other.score is not None


def test_notes_say_what_was_done(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.new("RGBA", (40, 60), (0, 0, 0, 0)).save(path, exif=exif)
    (row,) = score_files([path], MeanModel(), background=(255, 0, 0))
    assert (row.width, row.height) == (60, 40)
    assert row.note == "EXIF rotation applied (orientation 6); transparency composited on (255, 0, 0)"
    assert row.score == pytest.approx(1 / 3)
    (row,) = score_files([path], MeanModel(), exif=False)
    assert (row.width, row.height) == (40, 60)
    assert row.score == pytest.approx(1)


def test_attributes(greys: list[Path]) -> None:
    rows = list(score_files(greys, MeanModel(), attributes=True, batch_size=4))
    assert [dict(row.attributes) for row in rows] == [
        {"red": pytest.approx(i * 20 / 255), "green": pytest.approx(i * 20 / 255)} for i in range(12)
    ]


def test_a_score_that_is_no_number_is_an_error(greys: list[Path]) -> None:
    class Broken(MeanModel):
        def forward(self, images: torch.Tensor, attributes: bool = False) -> Any:
            scores = super().forward(images)
            return torch.where(scores > 0.5, torch.nan, scores)

    rows = list(score_files(greys, Broken(), batch_size=4))
    assert [row.error is not None for row in rows] == [index * 20 / 255 > 0.5 for index in range(12)]
    assert "finite" in str(rows[-1].error)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        MemoryError(),
    ],
)
def test_a_batch_without_memory_is_scored_one_by_one(greys: list[Path], error: Exception) -> None:
    class Small(MeanModel):
        def forward(self, images: torch.Tensor, attributes: bool = False) -> Any:
            if images[..., 0, 0].numel() > 3 or images.shape[2] > 40:
                raise error
            return super().forward(images)

    rows = list(score_files(greys, Small(), batch_size=4))
    for index, row in enumerate(rows):
        if index % 3 == 2:
            assert row.error == f"{greys[index]}: not enough memory on cpu to score it"
        else:
            assert row.score == pytest.approx(index * 20 / 255)


def test_a_fault_of_the_model_is_not_hidden(greys: list[Path]) -> None:
    class Wrong(MeanModel):
        def forward(self, images: torch.Tensor, attributes: bool = False) -> Any:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        list(score_files(greys, Wrong()))


def test_negative_numbers_are_refused_before_any_work() -> None:
    for wrong in ({"batch_size": -1}, {"workers": -1}):
        with pytest.raises(ConfigError, match="negative"):
            score_files(["x.png"], MeanModel(), **wrong)


FP32_SETTINGS = {
    "neither API": "",
    "old": "torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True",
    "new, products": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "new, convolutions": "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "new, all": "torch.backends.fp32_precision = 'tf32'",
}


@pytest.mark.parametrize("setting", FP32_SETTINGS)
def test_exact_fp32_in_programs_of_either_api(setting: str) -> None:
    if setting.startswith("new") and not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("this torch has no precision by operator")
    # A process of its own: once used, the two APIs of torch do not mix.
    program = f"""
import torch
from qualiclip_plugin.models.precision import exact_fp32, fp32_settings
{FP32_SETTINGS[setting]}
torch.backends.cudnn.benchmark = True
before = fp32_settings()
with exact_fp32():
    assert fp32_settings()[0] in ("highest", ["ieee", "ieee"]), fp32_settings()
    assert fp32_settings()[1] in ([False], ["ieee", "ieee"], [False, "ieee", "ieee"]), fp32_settings()
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)
    if {setting != "new, convolutions"}:
        assert not torch.backends.cudnn.allow_tf32  # other libraries ask in the old way
    torch.nn.functional.conv2d(torch.rand(1, 3, 8, 8), torch.rand(4, 3, 3, 3)) @ torch.rand(6, 6)
assert fp32_settings() == before
assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (False, True)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_exact_fp32_of_threads_that_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    first, second = exact_fp32(), exact_fp32()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False), "second is at work"
    second.__exit__(None, None, None)
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (False, True)


def test_devices() -> None:
    assert check_device("cpu") == "cpu"
    assert check_device("auto") in ("cpu", "cuda")
    for wrong in ("gpu", "cuda:99", "", "cpu cpu", "meta"):
        with pytest.raises(ConfigError, match="device"):
            check_device(wrong)


# The same image, the same score


@pytest.fixture(scope="module")
def lite() -> QualiCLIP:
    return load_model("lite")


@pytest.fixture(scope="module")
def photo_files(photographs: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Crops of photographs in two sizes."""
    folder = tmp_path_factory.mktemp("photos")
    files = []
    for index, photo in enumerate(photographs * 2):
        height, width = ((160, 200), (96, 128))[index // len(photographs)]
        files.append(folder / f"{index}.png")
        Image.fromarray(photo[20 * index : 20 * index + height, 50 : 50 + width]).save(files[-1])
    return files


@pytest.fixture(scope="module")
def alone(photo_files: list[Path], lite: QualiCLIP) -> dict[Path, float | None]:
    return {file: next(score_files([file], lite)).score for file in photo_files}


def test_the_photographs_have_scores_of_their_own(alone: dict[Path, float | None]) -> None:
    assert len(set(alone.values())) == len(alone)
    assert all(score is not None and 0 <= score <= 1 for score in alone.values())


@settings(max_examples=6, deadline=None)
@given(order=st.permutations(range(8)), count=st.integers(1, 8), workers=st.integers(0, 3))
def test_cpu_scores_are_the_same_bits_in_any_company(
    photo_files: list[Path],
    lite: QualiCLIP,
    alone: dict[Path, float | None],
    order: list[int],
    count: int,
    workers: int,
) -> None:
    files = [photo_files[index] for index in order[:count]]
    assert [row.score for row in score_files(files, lite, workers=workers)] == [alone[file] for file in files]


@pytest.mark.parametrize("batch_size", [2, 4, 8])
def test_batches_stay_within_the_declared_tolerance(
    photo_files: list[Path], lite: QualiCLIP, alone: dict[Path, float | None], batch_size: int
) -> None:
    scores = [row.score for row in score_files(photo_files, lite, batch_size=batch_size)]
    assert scores == pytest.approx(list(alone.values()), rel=0, abs=BATCH_TOLERANCE)


def test_threads_stay_within_the_declared_tolerance(
    photo_files: list[Path], lite: QualiCLIP, alone: dict[Path, float | None]
) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            scores = [row.score for row in score_files(photo_files, lite)]
            assert scores == pytest.approx(list(alone.values()), rel=0, abs=BATCH_TOLERANCE)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.05), ("fp16", 0.05 / 8)])  # 8 and 11 bits of mantissa
def test_half_precisions_repeat_their_bits_and_stay_near(
    photo_files: list[Path], alone: dict[Path, float | None], precision: str, bound: float
) -> None:
    model = load_model("lite", precision=precision)
    scores = [row.score for row in score_files(photo_files, model)]
    assert [row.score for row in score_files(photo_files[::-1], model, workers=0)] == scores[::-1]
    assert scores == pytest.approx(list(alone.values()), rel=0, abs=bound)
    assert scores != list(alone.values())


def test_fp32_on_a_gpu_is_not_rounded_and_settings_are_put_back(greys: list[Path]) -> None:
    class Watch(MeanModel):
        seen: tuple[bool, ...] = ()

        def forward(self, images: torch.Tensor, attributes: bool = False) -> Any:
            cudnn = torch.backends.cudnn
            self.seen = (cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark)
            return super().forward(images)

    before = (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    model = Watch()
    for _ in score_files(greys[:2], model):
        after = (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
        assert after == before
    assert model.seen == (False, True, False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_scores_stay_within_a_tenth_of_a_thousandth(
    photo_files: list[Path], alone: dict[Path, float | None]
) -> None:
    model = load_model("lite", device="cuda")
    for batch_size in (1, 0):
        scores = [row.score for row in score_files(photo_files, model, batch_size=batch_size)]
        assert scores == pytest.approx(list(alone.values()), rel=0, abs=1e-4)


# Tables and files

ODD_NAMES = ["a b.png", "new\nline.png", "cr\rlf\r\n.png", "tab\t.png", 'quo"te,.png', "图像.png", "NA", "=1+1.png",
             "[red]markup[/red].png", "\x1b[31m.png", "line\u2028sep.png", " lead.png", "null", "1"]  # fmt: skip


@pytest.fixture
def odd_frame() -> pd.DataFrame:
    rows = [ScoredImage(name, 0.1 + index / 64, {"red": 0.5}, 40, 30) for index, name in enumerate(ODD_NAMES)]
    return to_frame([*rows, ScoredImage("bad\n.png", error="bad\\n.png: the file is empty")], ["red"])


def read_back(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return pd.read_parquet(path).to_dict("records")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".CSV"])
def test_every_name_and_score_survives_every_format(odd_frame: pd.DataFrame, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scores{suffix}"
    write_scores(odd_frame, path)
    rows = read_back(path.rename(tmp_path / f"scores{suffix.lower()}"))
    assert [row["path"] for row in rows] == [*ODD_NAMES, "bad\n.png"]
    assert [float(row["score"]) for row in rows[:-1]] == [0.1 + index / 64 for index in range(len(ODD_NAMES))]
    assert [int(row["width"]) for row in rows[:-1]] == [40] * len(ODD_NAMES)
    assert {float(row["red"]) for row in rows[:-1]} == {0.5}
    assert rows[-1]["score"] in ("", None) or np.isnan(rows[-1]["score"])
    assert rows[-1]["error"] == "bad\\n.png: the file is empty"


def test_pandas_reads_the_csv(odd_frame: pd.DataFrame, tmp_path: Path) -> None:
    write_scores(odd_frame, tmp_path / "scores.csv")
    read = pd.read_csv(tmp_path / "scores.csv", keep_default_na=False, na_values={"score": [""]})
    assert read["path"].tolist() == odd_frame["path"].tolist()
    assert np.array_equal(read["score"], odd_frame["score"], equal_nan=True)


@settings(max_examples=50, deadline=None)
@given(name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1))
def test_any_name_survives_csv_and_jsonl(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    frame = to_frame([ScoredImage(name, 0.5)])
    for suffix in (".csv", ".jsonl"):
        path = tmp_path_factory.getbasetemp() / f"any{suffix}"
        write_scores(frame, path)
        (row,) = read_back(path)
        assert row["path"] == name


def test_no_scored_image_still_has_every_column() -> None:
    frame = to_frame([ScoredImage("x", error="x: the file is empty")], ["red", "green"])
    assert list(frame.columns) == ["path", "score", "red", "green", "width", "height", "error", "note"]
    assert frame["red"].dtype == float


def test_writing_is_atomic(odd_frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("before")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail)
    with pytest.raises(ConfigError, match=r"scores\.csv: cannot be written: No space left on device"):
        write_scores(odd_frame, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["scores.txt", "scores", "scores.csv.gz", ".csv"])
def test_an_unknown_suffix_is_a_usage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.csv, \.jsonl, \.parquet"):
        check_output(tmp_path / name)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a folder"):
        check_output(tmp_path / "folder.csv")
    with pytest.raises(ConfigError, match="no folder that can be written"):
        check_output(tmp_path / "file" / "scores.csv")
    assert check_output(tmp_path / "new" / "folder" / "scores.csv").suffix == ".csv"
    assert not (tmp_path / "new").exists()


def test_the_plain_table_has_one_line_an_image(odd_frame: pd.DataFrame) -> None:
    lines = plain_table(odd_frame).split("\n")
    assert len(lines) == 2 + len(ODD_NAMES)
    assert lines[0].split("\t") == ["path", "score", "red", "width", "height", "error", "note"]
    assert all(len(line.split("\t")) == 7 and line.replace("\t", "").isprintable() for line in lines)
    assert lines[2].split("\t")[:5] == ["new\\nline.png", "0.115625", "0.500000", "40", "30"]


def test_the_table_for_terminals_shows_names_as_they_are(odd_frame: pd.DataFrame) -> None:
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(rich_table(odd_frame))
    text = console.export_text()
    assert "[red]markup[/red].png" in text
    assert "\x1b" not in text
    assert "0.1156" in text
    assert "error" in text
    assert "note" not in text.split("\n")[1], "a column without content is left out"
