"""The installed command as a user runs it: a process of its own, its two streams and its exit code."""

from __future__ import annotations

import csv
import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from qualiclip_plugin import __version__, cli
from qualiclip_plugin.utils.images import read_image, to_float
from qualiclip_plugin.weights.loading import load_cards, load_model
from tests.support.commands import Unwritable, run_main
from tests.support.rounding import bound_of

COMMAND = [sys.executable, "-m", "qualiclip_plugin"]


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **variables}


def qualiclip(*arguments: str | Path, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env=environment(**variables),
    )


@pytest.fixture(scope="module")
def album(photographs: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two good images, odd names and three files without a score."""
    folder = tmp_path_factory.mktemp("album")
    Image.fromarray(photographs[0][:160, :200]).save(folder / "b good.png")
    Image.fromarray(photographs[1][:160, :200]).save(folder / "a\ngood 图像.jpg")
    Image.new("RGB", (1, 1)).save(folder / "one pixel.png")
    (folder / "zero.png").touch()
    (folder / "text.jpg").write_text("not a picture")
    (folder / "notes.txt").write_text("not meant to be one")
    (folder / "loop").symlink_to(folder)
    return folder


@pytest.fixture(scope="module")
def scored(album: Path) -> subprocess.CompletedProcess[str]:
    """One run over the album that writes a CSV file beside it."""
    return qualiclip("score", album, "--attributes", "--output", album.parent / "scores.csv")


def test_the_table_is_on_stdout_and_has_one_line_an_image(
    scored: subprocess.CompletedProcess[str], album: Path
) -> None:
    header, *lines = [line.split("\t") for line in scored.stdout.splitlines()]
    assert header[:2] == ["path", "score"]
    assert header[-4:] == ["width", "height", "error", "note"]
    names = ["a\\ngood 图像.jpg", "b good.png", "one pixel.png", "text.jpg", "zero.png"]
    assert [line[0] for line in lines] == [f"{album}/{name}" for name in names]
    errors = [line[header.index("error")] for line in lines]
    assert errors[:2] == ["", ""]
    for error, reason in zip(errors[2:], ("1x1 pixels is too small", "not an image", "empty"), strict=True):
        assert reason in error


def test_failed_images_make_exit_code_1_and_progress_goes_to_stderr(
    scored: subprocess.CompletedProcess[str],
) -> None:
    assert scored.returncode == 1, scored.stderr
    assert "scoring" in scored.stderr
    assert "3 of 5 images have no score" in scored.stderr
    assert "Traceback" not in scored.stderr
    assert "scoring" not in scored.stdout


def test_the_scores_are_the_ones_of_the_model(scored: subprocess.CompletedProcess[str], album: Path) -> None:
    with (album.parent / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    model = load_model("lite")
    bound = bound_of(model)
    assert [row["path"] for row in rows[:2]] == [f"{album}/a\ngood 图像.jpg", f"{album}/b good.png"]
    for row in rows[:2]:
        score, attributes = model(to_float(read_image(row["path"])).unsqueeze(0), attributes=True)
        assert float(row["score"]) == pytest.approx(score.item(), abs=bound)
        for name, values in attributes.items():
            assert float(row[name]) == pytest.approx(values.item(), abs=bound)


def test_all_fine_is_exit_code_0(album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(album)
    output = tmp_path / "new" / "s.parquet"
    assert run_main(monkeypatch, "qualiclip", "score", "*good*", "b good.png", "--output", str(output)) == 0
    frame = pd.read_parquet(output)
    assert frame["path"].tolist() == ["a\ngood 图像.jpg", "b good.png"]
    assert frame["error"].isna().all()


def test_a_pipe_that_closes_early_leaves_no_traceback() -> None:
    # More text than a pipe holds, so that the writer meets the closed end.
    code = (
        "import sys; from qualiclip_plugin import cli; import typer;"
        "cli.app.command('long')(lambda: typer.echo('p' * 1_000_000)); sys.argv = ['qualiclip', 'long']; cli.main()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1) == b"p"
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode in (0, 1)  # click before 8.5 says 1


@pytest.mark.parametrize(("reason", "code"), [(errno.ENOSPC, 2), (errno.EPIPE, 1), (None, 0)])
def test_the_file_is_written_whatever_becomes_of_standard_output(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], reason, code
) -> None:
    monkeypatch.setattr(sys, "stdout", Unwritable(reason) if reason else None)
    path = tmp_path / "scores.csv"
    assert run_main(monkeypatch, "qualiclip", "score", album / "b good.png", "--output", path) == code
    assert pd.read_csv(path)["score"].notna().all()
    assert [file.name for file in tmp_path.iterdir()] == ["scores.csv"]
    errors = capfd.readouterr().err
    assert ("error: output: No space left on device" in errors) == (reason == errno.ENOSPC)
    assert "Traceback" not in errors


def test_a_terminal_gets_a_drawn_table(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run_main(monkeypatch, "qualiclip", "score", str(album / "b good.png")) == 0
    assert "┃" in terminal.getvalue()
    assert "b good.png" in terminal.getvalue()


def test_a_terminal_of_another_encoding(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1", write_through=True))
    assert run_main(monkeypatch, "qualiclip", "score", str(album / "a\ngood 图像.jpg")) == 0
    assert b"a\\ngood \\u56fe\\u50cf.jpg" in written.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png"], "missing.png: no such file or folder"),
        (["*.nothing"], "*.nothing: the pattern matches nothing"),
        (["b good.png", "--output", "scores.xlsx"], "scores.xlsx: the name must end in .csv, .jsonl, .parquet"),
        (["b good.png", "--output", "."], "must end in"),
        (["b good.png", "--background", "sky"], "unknown colour 'sky'"),
        (["b good.png", "--background", "#ffffff00"], "must be opaque"),
        (["b good.png", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["b good.png", "--device", "meta"], "device 'meta' cannot be used"),
        (["b good.png", "--precision", "fp7"], "fp7"),
        (["b good.png", "--scale", "mine"], "--scale"),
        (["b good.png", "--batch-size", "-1"], "--batch-size"),
        (["b good.png", "--workers", "many"], "--workers"),
        (["b good.png", "--scale", "authors"], "carries its own scale"),
        (["b good.png", "--weights", "lit"], "did you mean lite"),
        (["b good.png", "--weights", "b good.png"], "b good.png"),
        (["b good.png", "--unknown"], "--unknown"),
        ([], "PATH"),
    ],
)
def test_what_cannot_start_is_exit_code_2(
    album: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(album)
    monkeypatch.setenv("COLUMNS", "200")
    before = sorted(album.iterdir())
    assert run_main(monkeypatch, "qualiclip", "score", *arguments) == 2
    output = capfd.readouterr()
    assert message in output.err
    assert output.out == ""
    assert sorted(album.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["degrade", "x.png", "--distortion", "jpeg", "--seed", "99999999999999999999"], "'--seed'"),
        (["degrade", "x.png", "--distortion", "jpeg", "--seed", "-1"], "'--seed'"),
    ],
)
def test_numbers_that_cannot_be_are_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Image.new("RGB", (40, 40)).save("x.png")
    assert run_main(monkeypatch, "qualiclip", *arguments) == 2
    assert message in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_a_declared_error_has_no_traceback(
    album: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert run_main(monkeypatch, "qualiclip", "score", str(album / "b good.png"), "--weights", "official") == 2
    output = capfd.readouterr()
    assert output.err.startswith("error: the weights 'official' are not here")
    assert "Traceback" not in output.err


def test_the_environment_chooses_the_weights_and_the_option_wins(
    album: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, image = CliRunner(), str(album / "b good.png")

    def score(*options: str) -> str:
        result = runner.invoke(cli.app, ["score", image, *options])
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()[1].split("\t")[1]

    lite, tiny = score(), score("--weights", str(tiny_checkpoint))
    assert lite != tiny
    monkeypatch.setenv("QUALICLIP_WEIGHTS", str(tiny_checkpoint))
    assert score() == tiny
    assert score("--weights", "lite") == lite


def test_the_options_of_the_score_reach_the_model(album: Path, tmp_path: Path) -> None:
    clear = tmp_path / "clear.png"
    picture = Image.open(album / "b good.png").convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(clear, exif=exif)
    runner = CliRunner()

    def row(*options: str) -> list[str]:
        result = runner.invoke(cli.app, ["score", str(clear), *options])
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()[1].split("\t")

    plain = row()
    assert plain[2:4] == ["160", "200"]
    assert row("--no-exif")[2:4] == ["200", "160"]
    assert row("--background", "black")[1] != plain[1]
    assert row("--background", "#fff") == row("--background", "rgb(255,255,255)") == plain
    assert row("--batch-size", "4", "--workers", "0") == plain


def test_the_scale_reaches_the_model(album: Path, use_official: Path) -> None:
    runner, image = CliRunner(), str(album / "b good.png")
    scores = [
        float(
            runner.invoke(cli.app, ["score", image, "--weights", "official", *scale])
            .stdout.split("\n")[1]
            .split("\t")[1]
        )
        for scale in ((), ("--scale", "pyiqa"), ("--scale", "authors"))
    ]
    assert scores[0] == scores[1] != scores[2]


def test_degrade_writes_one_picture_or_a_sheet(album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner, image = CliRunner(), str(album / "b good.png")
    result = runner.invoke(cli.app, ["degrade", image, "--distortion", "jpeg", "--level", "4"])
    assert result.stdout.strip() == "b good_jpeg_4.png", result.output
    result = runner.invoke(cli.app, ["degrade", image, "--distortion", "jpeg", "--level", "0", "--output", "0.png"])
    assert torch.equal(read_image("0.png"), read_image(image))
    assert not torch.equal(read_image("b good_jpeg_4.png"), read_image(image))
    result = runner.invoke(cli.app, ["degrade", image, "--sheet", "sheet.png", "--distortion", "jpeg"])
    assert result.stdout.strip() == "sheet.png", result.output
    assert read_image("sheet.png").shape[2] > 5 * 160


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["b good.png"], "give --distortion"),
        (["b good.png", "--distortion", "jpg"], "jpeg"),
        (["b good.png", "--distortion", "jpeg", "--level", "9"], "levels 0 to 5"),
        (["b good.png", "--distortion", "jpeg", "--output", "x.jpg"], "x.jpg"),
        (["b good.png", "--distortion", "jpeg", "--output", "b good.png"], "overwrite"),
        (["b good.png", "--distortion", "jpeg", "--output", "zero.png/x.png"], "cannot be written"),
        (["b good.png", "--sheet", "a.png", "--output", "b.png"], "give one of them"),
        (["zero.png", "--sheet", "a.png"], "empty"),
        (["missing.png", "--distortion", "jpeg"], "no such file"),
    ],
)
def test_degrade_refuses(
    album: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(album)
    before = sorted(album.iterdir())
    assert run_main(monkeypatch, "qualiclip", "degrade", *arguments) == 2
    assert message in capfd.readouterr().err
    assert sorted(album.iterdir()) == before


def test_weights_list_names_every_card() -> None:
    result = CliRunner().invoke(cli.app, ["weights", "list"])
    assert result.exit_code == 0
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [line[0] for line in lines[1:]] == list(load_cards())
    assert dict(zip(lines[0], next(line for line in lines if line[0] == "lite"), strict=True)) == {
        "name": "lite",
        "state": "in the package",
        "human scores": "no",
        "licence": load_cards()["lite"].licence,
        "description": load_cards()["lite"].description,
    }


def test_weights_path_and_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    runner = CliRunner()
    assert runner.invoke(cli.app, ["weights", "path", "official"]).stdout.strip() == str(
        tmp_path / "hub" / "pyiqa" / "QualiCLIP.pth"
    )
    lite = runner.invoke(cli.app, ["weights", "fetch", "lite"]).stdout.strip()
    assert Path(lite).is_file()
    for arguments in (["fetch", "official"], ["path", "unknown"]):
        result = runner.invoke(cli.app, ["weights", *arguments])
        assert type(result.exception).__name__ == "WeightsError"


def test_version_and_help() -> None:
    assert qualiclip("--version").stdout.strip() == f"qualiclip-plugin {__version__}"
    run = qualiclip("--help")
    assert run.returncode == 0
    for command in ("score", "degrade", "train", "export", "weights"):
        assert command in run.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from qualiclip_plugin import cli;"
        "print([name for name in ('torch', 'pandas', 'PIL', 'open_clip', 'pyiqa', 'numpy') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
def test_the_gpu_is_chosen_by_itself(album: Path) -> None:
    assert qualiclip("score", album / "b good.png").returncode == 0
