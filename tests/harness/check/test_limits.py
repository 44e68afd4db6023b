"""Bounds on somebody's images: every picture against its own score, and none may come or go without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageFilter
from typer.testing import CliRunner, Result

from harness.check import snapshot as snapshots
from harness.check.limits import Limits, hold
from harness.check.snapshot import IncomparableError, Snapshot
from harness.cli import app
from qualiclip_plugin.utils.errors import ConfigError


def snapshot_of(
    scores: dict[str, float], lower_better: bool = False, pixels: dict[str, str] | None = None
) -> Snapshot:
    """Of images whose pixels differ from each other, as far as ``pixels`` does not say otherwise."""
    row = {"lower_better": lower_better, "precision": "fp32", "identity": {}, "scores": scores, "failures": {}}
    row["figures"] = snapshots.figures(scores, lower_better=lower_better)
    return Snapshot({name: name for name in scores} | (pixels or {}), {"m": row}, {}, {}, "")


def found(now: Snapshot, then: Snapshot | None, limits: Limits) -> list[tuple[str, str]]:
    return [(finding.what, finding.name) for finding in hold(now, then, limits).findings]


def test_one_ruined_picture_of_twelve_fails_though_mean_and_worst_hold() -> None:
    then = snapshot_of({f"{number:02}": 0.9 for number in range(11)} | {"bad": 0.3})
    now = snapshot_of(then.scorers["m"]["scores"] | {"07": 0.39})
    assert found(now, then, Limits(max_drop=0.05)) == [("drop", "07")]
    figures = {figure.name: figure for figure in hold(now, then, Limits(max_drop=0.05)).figures}
    assert figures["mean"].baseline - figures["mean"].current < 0.05
    assert figures["worst"].image == "bad"
    assert (figures["largest drop"].image, figures["largest drop"].current) == ("07", 0.39)
    assert not found(now, then, Limits(max_drop=0.6))


def test_the_largest_drop_comes_first_and_mean_and_worst_last() -> None:
    then, now = snapshot_of({"a": 0.5, "b": 0.9, "c": 0.7}), snapshot_of({"a": 0.3, "b": 0.2, "c": 0.1, "d": 0.4})
    expected = [("drop", "b"), ("drop", "c"), ("drop", "a"), ("new", "d"), ("figure", "mean"), ("figure", "worst")]
    assert found(now, then, Limits(max_drop=0.1)) == expected
    assert found(now, None, Limits(min_score=0.25)) == [("limit", "c"), ("limit", "b")]


@pytest.mark.parametrize("lower_better", [False, True])
def test_limits_follow_the_direction(lower_better: bool) -> None:
    now = snapshot_of({"good": 0.2 if lower_better else 0.8, "bad": 0.9 if lower_better else 0.1}, lower_better)
    assert found(now, None, Limits(min_score=0.5)) == [("limit", "bad")]
    then = snapshot_of({"good": 0.5, "bad": 0.5}, lower_better)
    assert [name for what, name in found(now, then, Limits(max_drop=0.1)) if what == "drop"] == ["bad"]
    turned = snapshot_of({"good": 0.5, "bad": 0.5}, not lower_better)
    assert ("direction", "lower is better (1: yes)") in found(now, turned, Limits(max_drop=9.0))


def test_pictures_that_are_gone_new_or_renamed_fail_unless_allowed() -> None:
    then = snapshot_of({"a": 0.5, "b": 0.6, "c": 0.7})
    now = snapshot_of({"a": 0.5, "d": 0.6, "e": 0.7}, pixels={"d": "b"})
    assert found(now, then, Limits(max_drop=0.5)) == [("missing", "c"), ("new", "e"), ("renamed", "b -> d")]
    assert found(now, then, Limits(max_drop=0.5, renamed=True)) == [("missing", "c"), ("new", "e")]
    assert not found(now, then, Limits(max_drop=0.5, missing=True, new=True, renamed=True))


def test_a_renamed_picture_is_held_to_the_score_of_its_old_name() -> None:
    then, now = snapshot_of({"a": 0.5, "b": 0.6}), snapshot_of({"a": 0.5, "d": 0.1}, pixels={"d": "b"})
    assert ("drop", "d") in found(now, then, Limits(max_drop=0.2, renamed=True))
    # Of two equal pictures one is gone.
    then = snapshot_of({"a": 0.5, "b": 0.5}, pixels={"a": "same", "b": "same"})
    now = snapshot_of({"c": 0.5}, pixels={"c": "same"})
    assert found(now, then, Limits(max_drop=0.2)) == [("missing", "b"), ("renamed", "a -> c")]


def test_a_picture_without_a_score_fails_first() -> None:
    then, now = snapshot_of({"a": 0.5, "b": 0.9}), snapshot_of({"b": 0.1}, pixels={"a": "a"})
    now.scorers["m"]["failures"]["a"] = "ValueError: too small"
    assert found(now, then, Limits(max_drop=0.2))[:2] == [("failure", "a"), ("drop", "b")]


def test_a_drop_needs_a_baseline_of_the_scorer() -> None:
    with pytest.raises(IncomparableError, match="--max-drop needs the scores of m"):
        hold(snapshot_of({"a": 0.5}), None, Limits(max_drop=0.1))


@pytest.mark.parametrize(
    "limits",
    [{"min_score": float("nan")}, {"max_drop": float("nan")}, {"max_drop": -0.1}, {"max_drop": float("inf")}],
)
def test_a_limit_that_is_no_number_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="a number is needed"):
        Limits(**limits)


@pytest.fixture
def folder(images: torch.Tensor, tmp_path: Path) -> Path:
    """Four sharp pictures."""
    (tmp_path / "pictures").mkdir()
    for number, pixels in enumerate((images * 255).round().to(torch.uint8)):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "pictures" / f"{number}.png")
    return tmp_path / "pictures"


def check(folder: Path, *arguments: str) -> Result:
    options = ["--images", str(folder), "--scorer", "entropy", "--baseline", str(folder.parent / "own.json")]
    return CliRunner().invoke(app, ["check", *options, *arguments], catch_exceptions=False)


def test_the_command_names_what_dropped_and_what_is_gone(folder: Path) -> None:
    assert check(folder, "--update").exit_code == 0
    assert check(folder, "--max-drop", "0").exit_code == 0
    picture = Image.open(folder / "2.png")
    picture.filter(ImageFilter.BoxBlur(20)).save(folder / "2.png")
    (folder / "0.png").unlink()
    (folder / "1.png").rename(folder / "one.png")
    page = folder.parent / "report.html"
    failed = check(folder, "--max-drop", "0.05", "--report", str(page))
    assert failed.exit_code == 1
    rows = [line.replace("|", " ").split() for line in failed.output.splitlines()]
    assert ["entropy", "drop", "2.png"] in [row[:3] for row in rows]
    assert ["missing", "0.png"] in [row[:2] for row in rows]
    assert ["renamed", "1.png", "->", "one.png"] in [row[:4] for row in rows]
    text = page.read_text()
    assert text.count('<img src="data:image/jpeg;base64,') == 3  # the drop; as the worst and as the largest drop
    assert "http" not in text
    flags = ["--allow-missing", "--allow-renamed", "--max-drop", "9"]
    assert check(folder, *flags).exit_code == 0


def test_own_images_are_held_to_a_minimum(folder: Path) -> None:
    assert check(folder, "--min-score", "1").exit_code == 0
    failed = check(folder, "--min-score", "7.9", "--report", str(folder.parent / "report.json"))
    assert failed.exit_code == 1
    findings = json.loads((folder.parent / "report.json").read_text())["findings"]
    scores = [finding["current"] for finding in findings]
    assert {finding["what"] for finding in findings} == {"limit"}
    assert scores == sorted(scores)


@pytest.mark.parametrize("options", [["--allow-new"], ["--allow-missing", "--min-score", "1"]])
def test_what_may_come_or_go_has_an_effect_with_a_drop_alone(folder: Path, options: list[str]) -> None:
    with pytest.raises(ConfigError, match="have an effect with --max-drop alone"):
        check(folder, *options)
