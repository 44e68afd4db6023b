"""The command line of the harness, from start to table."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from harness.cli import _p_value, app
from harness.results.store import Store
from qualiclip_plugin import __version__
from qualiclip_plugin.utils.errors import QualiCLIPError
from tests.support.commands import Unwritable, run_main
from tests.support.harness_data import opinion_folder, write_images

FUNCTION = "tests.support.harness_data:brightness"


def call(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


def test_help_answers_without_heavy_imports() -> None:
    code = "import sys; import harness.cli; print([m for m in ('torch', 'pandas', 'datasets') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
    assert "run" in subprocess.check_output([sys.executable, "-m", "harness", "--help"], text=True)


def test_run_prints_and_stores_the_leaderboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    folder = opinion_folder(tmp_path / "photos", 8)
    output = tmp_path / "results"
    options = ["--dataset", str(folder), "--output", str(output), "--quiet"]
    printed = call("run", "--scorer", FUNCTION, "--scorer", "piqe", "--scorer", "qualiclip", *options, code=1)
    assert printed.count("| ") > 8
    assert "qualiclip: the weights 'official' are not here" in printed
    frame = pd.read_csv(output / "leaderboard.csv").set_index("scorer")
    assert frame.loc[FUNCTION, "n"] == 8
    assert frame.loc[FUNCTION, "srcc"] > 0.9
    assert pd.isna(frame.loc["qualiclip", "n"])
    assert (output / "leaderboard.md").read_text().strip() == printed.strip()
    cell = Store(output).read_cell(Store(output).cell_path(FUNCTION, "photos"))
    assert {"versions", "device", "date", "settings", "failures", "subsets"} <= cell.keys()
    assert cell["scorer"]["lower_better"] is False
    labels = pd.read_parquet(Store(output).labels_path("photos@local"))
    assert labels["file_name"].tolist() == [f"{i}.png" for i in range(8)]
    (output / "leaderboard.md").unlink()
    assert call("table", "--output", str(output)).strip() == printed.strip()
    (output / "leaderboard.md").unlink()
    monkeypatch.setattr(sys, "stdout", Unwritable(errno.EPIPE))
    assert run_main(monkeypatch, "iqa-harness", "table", "--output", output) == 1
    assert (output / "leaderboard.md").read_text().strip() == printed.strip()


def test_json_log_is_one_object_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = opinion_folder(tmp_path / "photos", 5)
    command = ["--dataset", str(folder), "--output", str(tmp_path / "r"), "--no-intervals", "--json-log"]
    result = CliRunner().invoke(app, ["run", "--scorer", FUNCTION, "--scorer", "nonsense", *command])
    assert result.exit_code == 1  # of a scorer that was asked for
    assert result.stderr.splitlines().pop().startswith("nonsense has no score on photos: no scorer named")
    events = [json.loads(line) for line in result.stderr.splitlines()[:-1]]
    assert [event["event"] for event in events] == ["start", "progress", "finish", "note"]
    assert events[2]["done"] == events[2]["total"] == 5
    assert "no scorer named 'nonsense'" in events[3]["text"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--dataset", "laders"], "did you mean ladders"),
        (["list", "things"], "datasets or scorers"),
        (["run", "--fit", "linear", "--dataset", "ladders"], "logistic4 or logistic5"),
        (["run", "--include", "nowhere"], "nowhere: not a folder"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_two(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, "iqa-harness", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["abc", "nan", "-1"])
def test_a_wrong_time_between_writes_is_refused_before_any_work(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_WRITE_EVERY", wrong)
    folder = opinion_folder(tmp_path / "photos", 3)
    with pytest.raises(QualiCLIPError, match=f"HARNESS_WRITE_EVERY is '{wrong}': a number of seconds is needed"):
        call("run", "--scorer", FUNCTION, "--dataset", str(folder), "--output", str(tmp_path / "results"))
    assert not (tmp_path / "results").exists()


def test_bad_data_leaves_no_result_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = opinion_folder(tmp_path / "good", 4)
    write_images(tmp_path / "bad", 3)
    (tmp_path / "bad/metadata.csv").write_text("file_name,mos\n0.png,1\n1.png,x\n2.png,3\n")
    command = ["run", "--scorer", FUNCTION, "--dataset", str(good), "--dataset", str(tmp_path / "bad")]
    assert run_main(monkeypatch, "iqa-harness", *command, "--output", tmp_path / "results") == 2
    assert "line 3 (1.png): mos is 'x'" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("command", ["run", "report"])
def test_datasets_of_one_name_do_not_replace_each_other(tmp_path: Path, command: str) -> None:
    output = tmp_path / "results"
    first, second = (str(opinion_folder(tmp_path / part / "test", number)) for part, number in (("a", 4), ("b", 5)))
    stored = ["--scorer", FUNCTION, "--output", str(output), "--no-intervals", "--quiet"]
    call("run", "--dataset", first, *stored)
    before = (output / "leaderboard.csv").read_bytes()
    options = {"run": stored, "report": ["--results", str(output), "--output", str(tmp_path / "site")]}[command]
    with pytest.raises(QualiCLIPError, match="are both named 'test'"):
        call(command, "--dataset", first, "--dataset", second, *options)
    assert (output / "leaderboard.csv").read_bytes() == before
    assert not (tmp_path / "site").exists()


def test_a_scorer_that_cannot_start_keeps_the_measured_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    folder = opinion_folder(tmp_path / "photos", 4)
    options = ["--dataset", str(folder), "--output", str(tmp_path / "r"), "--no-intervals", "--quiet"]
    name = f"qualiclip@weights={tmp_path / 'weights.safetensors'}"
    (tmp_path / "weights.safetensors").write_bytes(tiny_checkpoint.read_bytes())
    call("run", "--scorer", name, *options)
    measured = (tmp_path / "r/leaderboard.csv").read_text()
    (tmp_path / "weights.safetensors").unlink()
    assert "unknown weights" in call("run", "--scorer", name, *options, code=1)
    assert (tmp_path / "r/leaderboard.csv").read_text() == measured


def test_a_run_that_left_something_out_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = opinion_folder(tmp_path / "photos", 4)
    options = ["run", "--dataset", str(folder), "--output", str(tmp_path / "r"), "--no-intervals", "--quiet"]
    call(*options, "--scorer", FUNCTION)
    failed = CliRunner().invoke(app, [*options, "--scorer", "tests.support.harness_data:undefined"])
    assert failed.exit_code == 1
    assert "tests.support.harness_data:undefined: 4 of 4 images of photos have no score" in failed.stderr
    absent = CliRunner().invoke(app, [*options, "--scorer", "cmd:no-such-program@lower_better=true"])
    assert absent.exit_code == 1
    assert "no program 'no-such-program'" in absent.stderr
    # Of the default list only what can start here was asked for.
    monkeypatch.setattr("harness.run.runner.DEFAULT_SCORERS", (FUNCTION, "nonsense"))
    assert "nonsense" in call(*options)
    monkeypatch.setattr("harness.run.runner.DEFAULT_SCORERS", ("nonsense",))
    call(*options, code=1)


def test_a_part_of_a_dataset_is_marked_and_enters_no_table(tmp_path: Path) -> None:
    folder, output = opinion_folder(tmp_path / "photos", 8), tmp_path / "r"
    options = [
        "run",
        "--scorer",
        FUNCTION,
        "--dataset",
        str(folder),
        "--output",
        str(output),
        "--no-intervals",
        "--quiet",
    ]
    assert "the first 5 images alone" in call(*options, "--limit", "5")
    assert not list(output.glob("leaderboard.*"))
    assert not list(Store(output).cells())
    whole = call(*options)
    assert "images alone" not in whole
    call(*options, "--limit", "5")
    call(*options, "--limit", "8")
    assert (output / "leaderboard.md").read_text() == whole


def test_a_label_names_a_scorer_of_any_kind(tmp_path: Path) -> None:
    folder = opinion_folder(tmp_path / "photos", 5)
    options = ["run", "--dataset", str(folder), "--output", str(tmp_path / "r"), "--no-intervals", "--quiet"]
    printed = call(*options, "--scorer", f"bright={FUNCTION}", "--scorer", f"dark={FUNCTION}@lower_better=true")
    assert FUNCTION not in printed
    assert {cell["scorer"]["name"] for cell in Store(tmp_path / "r").cells()} == {"bright", "dark"}
    compared = call("compare", "bright", "dark", "--output", str(tmp_path / "r"), "--draws", "100")
    columns = [word.strip() for word in compared.splitlines()[0].split("|")]
    assert columns[5:7] == ["bright", "dark"]
    for wrong, reason in (
        ([f"niqe={FUNCTION}"], "niqe is the name of a metric"),
        (["a=piqe", "a=niqe"], "named 'a'"),
    ):
        with pytest.raises(QualiCLIPError, match=reason):
            call(*options, *(word for name in wrong for word in ("--scorer", name)))


def test_a_small_p_value_is_no_zero() -> None:
    assert [_p_value(value) for value in (None, 0.5, 1e-4, 9e-5, 0.0)] == ["", "0.5000", "0.0001", "< 1e-4", "< 1e-4"]


@pytest.mark.parametrize("program", ["qualiclip", "iqa-harness"])
def test_both_commands_say_their_version(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, program, "--version") == 0
    assert capsys.readouterr().out == f"qualiclip-plugin {__version__}\n"


def test_a_results_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(QualiCLIPError, match=f"{tmp_path / 'resluts'}: no results"):
        call("table", "--output", str(tmp_path / "resluts"))
    assert not (tmp_path / "resluts").exists()


def test_lists() -> None:
    assert "ladders@3" in call("list", "datasets")
    scorers = call("list", "scorers")
    assert "qualiclip-lite" in scorers
    assert "koniq10k" in scorers
