"""The guard over scores: what it must catch, what it must let pass, and what it must refuse to judge."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import weakref
import xml.etree.ElementTree as ET
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from harness.check import compare as regression
from harness.check import report as check_report
from harness.check import snapshot as snapshots
from harness.check.compare import Tolerance
from harness.check.findings import Comparison, Figure, Finding
from harness.check.images import CHANGES, guard_images
from harness.check.snapshot import IncomparableError
from harness.cli import app
from qualiclip_plugin.integrations.pytest_plugin import GROUP, load
from qualiclip_plugin.utils.errors import ConfigError, QualiCLIPError
from qualiclip_plugin.weights.checkpoint import save_checkpoint
from qualiclip_plugin.weights.loading import load_model
from tests.support.commands import run_main

pytest_plugins = ["pytester"]
RUNNER = CliRunner()


@pytest.fixture(scope="module")
def weights(tiny_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("guard") / "guarded.safetensors"
    save_checkpoint(path, tiny_model, {})
    return path


@pytest.fixture(scope="module")
def baseline(weights, tmp_path_factory) -> Path:
    """A baseline of the tiny model on the project's own pictures, taken through the command."""
    path = tmp_path_factory.mktemp("baseline") / "baseline.json"
    result = RUNNER.invoke(app, ["check", "--baseline", str(path), "--update", "--scorer", scorer(weights)])
    assert result.exit_code == 0, result.output
    return path


def scorer(weights: Path) -> str:
    return f"qualiclip@weights={weights}"


def run_check(baseline: Path, *arguments: str):
    return RUNNER.invoke(app, ["check", "--baseline", str(baseline), *arguments])


def changed_weights(weights: Path, change) -> None:
    model = load_model(weights, inference=False)
    with torch.no_grad():
        change(model)
    save_checkpoint(weights, model, {})


@pytest.fixture
def altered(weights):
    """Alter the guarded weights for one test: same path, other content."""
    original = weights.read_bytes()
    yield lambda change: changed_weights(weights, change)
    weights.write_bytes(original)


def test_pictures_are_the_same_bytes_everywhere():
    pictures = guard_images()
    assert len(pictures) == 5 * (1 + len(CHANGES))
    assert all(pixels.dtype == np.uint8 for pixels in pictures.values())
    for name, pixels in pictures.items():
        if not name.endswith("pristine"):
            assert not np.array_equal(pixels, pictures[name.split("/")[0] + "/pristine"])
    salt = (pictures["astronaut/salted"] == 255).all(axis=2).mean()
    assert 0.02 < salt < 0.06


def test_nothing_moved(baseline):
    result = run_check(baseline)
    assert result.exit_code == 0
    assert "Passed" in result.output


def test_altered_weight_is_caught(baseline, altered):
    altered(lambda model: model.image_encoder.layer2[0].conv1.weight.mul_(1.01))
    result = run_check(baseline)
    assert result.exit_code == 1
    assert "weights:" in result.output  # the report says that the weights differ


def test_changed_prompt_is_caught(baseline, altered):
    altered(lambda model: model.text_features[3].copy_(model.text_features[3].flip(0)))
    assert run_check(baseline).exit_code == 1


def test_changed_resize_is_caught(baseline, monkeypatch):
    from qualiclip_plugin.utils import images

    def shrunk(pixels):
        return torch.nn.functional.interpolate(pixels.float() / 255, scale_factor=0.5, mode="area")

    monkeypatch.setattr(images, "to_float", shrunk)
    assert run_check(baseline).exit_code == 1


def test_flipped_direction_is_caught(baseline, monkeypatch):
    original = snapshots.create_scorer

    def flipped(*args, **kwargs):
        return replace(original(*args, **kwargs), lower_better=True)

    monkeypatch.setattr(snapshots, "create_scorer", flipped)
    result = run_check(baseline)
    assert result.exit_code == 1
    assert "direction" in result.output


def test_missing_baseline_scorer_or_image_is_no_comparison(baseline, tmp_path, weights):
    assert_incomparable(["--baseline", str(tmp_path / "none.json")], "no baseline at")
    (tmp_path / "broken.json").write_text('{"schema_version": 1}')
    assert_incomparable(["--baseline", str(tmp_path / "broken.json")], "not a baseline")
    (tmp_path / "old.json").write_text('{"schema_version": 0}')
    assert_incomparable(["--baseline", str(tmp_path / "old.json")], "schema version 0")
    content = json.loads(baseline.read_text())
    content["images"]["astronaut/pristine"] = "0" * 64
    (tmp_path / "images.json").write_text(json.dumps(content))
    assert_incomparable(["--baseline", str(tmp_path / "images.json")], "it was altered after it was written")
    del content["seal"]  # as in baselines of earlier releases
    (tmp_path / "images.json").write_text(json.dumps(content))
    assert_incomparable(["--baseline", str(tmp_path / "images.json")], "astronaut/pristine (sha256 000000000000 -> ")
    assert_incomparable(["--baseline", str(baseline), "--scorer", "entropy"], "the baseline lacks entropy")
    assert_incomparable(
        ["--baseline", str(baseline), "--scorer", scorer(weights), "--scorer", "no-such-metric"], "missing now"
    )
    assert_incomparable(["--baseline", str(baseline), "--scorer", "no-such-metric"], "no scorer could start")


def assert_incomparable(arguments: list[str], reason: str) -> None:
    result = RUNNER.invoke(app, ["check", *arguments])
    assert isinstance(result.exception, QualiCLIPError), result.output
    assert reason in str(result.exception)


def test_the_command_exits_with_2_when_it_cannot_compare(tmp_path):
    command = [sys.executable, "-m", "harness", "check", "--baseline", str(tmp_path / "none.json")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: no baseline at")


def test_update_says_what_changed_and_only_runs_when_asked(baseline, tmp_path, altered):
    copy = tmp_path / "copy.json"
    copy.write_bytes(baseline.read_bytes())
    altered(lambda model: model.text_features[0].copy_(model.text_features[0].flip(0)))
    assert run_check(copy).exit_code == 1
    assert copy.read_bytes() == baseline.read_bytes()
    result = run_check(copy, "--update")
    assert result.exit_code == 0
    assert "**Findings: " in result.output  # what changed
    assert run_check(copy).exit_code == 0


def test_an_update_asks_for_a_new_version_of_scores_that_moved(baseline, tmp_path, monkeypatch):
    from harness.scorers import kinds
    from qualiclip_plugin.utils import images

    copy = tmp_path / "baseline.json"
    copy.write_bytes(baseline.read_bytes())
    monkeypatch.setattr(images, "to_float", lambda pixels: pixels.float() / 255 * 0.9)
    with pytest.raises(ConfigError, match=r"raise it in harness/scorers/identity\.py"):
        raise run_check(copy, "--update").exception
    assert copy.read_bytes() == baseline.read_bytes()
    monkeypatch.setattr(kinds, "SCORES_VERSION", 99)
    assert run_check(copy, "--update").exit_code == 0


def test_update_says_which_images_and_scorers_come_and_go(folder, tmp_path):
    baseline = tmp_path / "own.json"
    arguments = ["--images", str(folder), "--update"]
    assert run_check(baseline, *arguments, "--scorer", "entropy").exit_code == 0
    (folder / "0.png").rename(folder / "1.png")
    Image.new("RGB", (300, 300), "grey").save(folder / "2.png")
    result = run_check(baseline, *arguments, "--scorer", "piqe", "--scorer", "entropy")
    assert result.exit_code == 0, result.exception
    rows = [" ".join(line.replace("|", " ").split()) for line in result.output.splitlines()]
    for row in ("image 1.png added", "image 0.png removed", "image 2.png changed", "scorer piqe added"):
        assert row in rows
    assert run_check(baseline, "--images", str(folder)).exit_code == 0


def test_a_changed_prompt_is_caught_where_the_weights_bring_their_own_features(baseline, monkeypatch):
    pairs = (("Good photo.", "Awful photo."), *snapshots.PROMPT_PAIRS[1:])
    monkeypatch.setattr(snapshots, "PROMPT_PAIRS", pairs)
    result = run_check(baseline)
    assert result.exit_code == 1
    assert "Good photo. / Bad photo. -> Good photo. / Awful photo." in result.output


def test_a_file_that_is_read_as_other_pixels_is_named(folder, tmp_path, monkeypatch):
    from qualiclip_plugin.utils import images

    arguments = ["--images", str(folder), "--scorer", "entropy"]
    baseline = tmp_path / "own.json"
    assert run_check(baseline, *arguments, "--update").exit_code == 0
    original = images.read_image
    monkeypatch.setattr(snapshots, "read_image", lambda path: (original(path) // 32) * 32)
    result = run_check(baseline, *arguments)
    assert result.exit_code == 1
    assert "The same files are read as other pixels" in result.output
    assert "0.png: sha256 " in result.output
    monkeypatch.undo()
    Image.new("RGB", (300, 300), "grey").save(folder / "0.png")
    assert_incomparable(["--baseline", str(baseline), *arguments], "0.png (sha256")


def test_precision_is_the_scorers_own(weights, tmp_path):
    baseline = tmp_path / "half.json"
    half = f"{scorer(weights)},precision=bf16"
    names = ["--scorer", half, "--scorer", scorer(weights), "--scorer", "entropy"]
    assert run_check(baseline, *names, "--update", "--precision", "fp32").exit_code == 0
    rows = json.loads(baseline.read_text())["scorers"]
    assert [rows[name]["precision"] for name in (half, scorer(weights), "entropy")] == ["bf16", "fp32", "fp32"]
    # Another precision of one scorer is held to the looser of the two tolerances.
    result = run_check(baseline, "--scorer", scorer(weights), "--precision", "bf16")
    assert "precision" in result.output
    assert run_check(baseline, "--scorer", scorer(weights), "--precision", "bf16", "--tolerance", "1").exit_code == 0


def test_order_may_be_bounded_from_the_command_line():
    then = snapshot_of({f"{i}": i * 1e-6 for i in range(10)})
    now = snapshot_of({f"{i}": (i + 2 * (i == 3)) * 1e-6 for i in range(10)})
    assert {finding.what for finding in regression.compare(now, then).findings} == {"order"}
    assert not regression.compare(now, then, {}, {"": 0.9}).findings
    assert regression.compare(now, then, {}, {"": 0.9, "m": 1.0}).findings


def test_a_comparison_that_cannot_be_made_is_reported_too(baseline, tmp_path):
    for suffix, expected in ((".md", "No comparison could be made"), (".json", '"error": "'), (".xml", "<error ")):
        report = tmp_path / f"report{suffix}"
        assert_incomparable(["--baseline", str(tmp_path / "none.json"), "--report", str(report)], "no baseline at")
        assert expected in report.read_text()


@pytest.mark.parametrize("suffix", [".md", ".json", ".xml"])
def test_reports(baseline, tmp_path, altered, suffix):
    altered(lambda model: model.image_encoder.layer1[0].conv1.weight.mul_(1.1))
    report = tmp_path / f"report{suffix}"
    assert run_check(baseline, "--report", str(report)).exit_code == 1
    text = report.read_text()
    if suffix == ".json":
        findings = json.loads(text)["findings"]
        assert {finding["what"] for finding in findings} >= {"score", "figure"}
    elif suffix == ".xml":
        suite = ET.fromstring(text)  # noqa: S314 (just written here)
        assert int(suite.get("failures")) == len(suite.findall("testcase/failure")) > 0
    else:
        assert "| scorer" in text
        assert "astronaut/pristine" in text


@pytest.mark.parametrize("name", ["0.png", "*.png", "none"])
def test_what_is_no_folder_is_named(folder, name):
    assert_incomparable(["--images", str(folder / name), "--min-score", "0.1"], f"{name}: no such folder")


def test_unknown_report_format_is_refused_before_work(baseline, tmp_path):
    assert_incomparable(["--baseline", str(baseline), "--report", str(tmp_path / "r.docx")], "unknown format")


@pytest.mark.parametrize("value", ["x", "niqe=-1", "nan"])
def test_bad_tolerances_are_named(baseline, value):
    assert_incomparable(["--baseline", str(baseline), "--tolerance", value], "a number")


@pytest.mark.parametrize("value", ["99", "entropy=-0.5"])
def test_a_rank_correlation_that_none_can_reach_is_refused(baseline, value):
    assert_incomparable(["--baseline", str(baseline), "--rank", value], "a number from 0 to 1 is needed")


def test_bounds_of_a_scorer_that_is_not_checked_are_refused(baseline):
    arguments = ["--baseline", str(baseline), "--tolerance", "0.1", "--rank", "qualiclip-lit=0.9"]
    assert_incomparable(arguments, "--tolerance or --rank of 'qualiclip-lit': the scorers are ")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--update", "--max-drop", "0.1"], "--update takes a new baseline, however good the images are"),
        (["--update", "--tolerance", "0.1"], "have no effect with --update"),
        (["--update", "--report", "changes.md"], "--report with --update says what changes, and there is no "),
        (["--min-score", "0.1", "--rank", "0.9"], "have no effect with --min-score or --max-drop"),
    ],
)
def test_options_without_effect_beside_another_are_refused(folder, tmp_path, options, reason):
    stored = tmp_path / "b.json"
    assert_incomparable(["--images", str(folder), "--baseline", str(stored), *options], reason)
    assert not stored.exists()


def test_tolerances_are_chosen_per_scorer():
    assert regression.tolerance_of("niqe", "fp32", {}) == regression.SCORER_TOLERANCES["niqe"]
    assert regression.tolerance_of("qualiclip-lite", "fp32", {"": 0.5}).absolute == 0.5
    assert regression.tolerance_of("qualiclip-lite", "fp32", {"": 0.5, "qualiclip-lite": 0.1}).absolute == 0.1
    assert Tolerance(0.1, 0.0).allows(1.0, 1.1 - 1e-9)
    assert not Tolerance(0.1, 0.0).allows(1.0, 1.2)
    assert not Tolerance().allows(0.5, float("nan"))


def snapshot_of(scores: dict[str, float], lower_better: bool = False) -> snapshots.Snapshot:
    row = {"lower_better": lower_better, "precision": "fp32", "identity": {}, "scores": scores, "failures": {}}
    row["figures"] = snapshots.figures(scores, lower_better=lower_better)
    return snapshots.Snapshot(dict.fromkeys(scores, "h"), {"m": row}, {}, {}, "")


def test_order_is_guarded_apart_from_the_size_of_the_change():
    then = snapshot_of({f"{i}": i * 1e-6 for i in range(10)})
    now = snapshot_of({f"{i}": (9 - i) * 1e-6 for i in range(10)})
    assert {finding.what for finding in regression.compare(now, then).findings} == {"order"}


@pytest.mark.parametrize("number", [3, 5, 12])
def test_two_nearly_equal_scores_may_change_places_among_few(number):
    scores = {f"{i:02}": i / 10 for i in range(1, number)}
    then, now = (snapshot_of(scores | {"00": 0.1 + shift}) for shift in (-1e-5, 1e-5))
    assert not regression.compare(now, then).findings
    assert {finding.what for finding in regression.compare(now, then, {}, {"": 0.999}).findings} == {"order"}
    two = snapshot_of(
        {
            name: scores[f"{number - 1:02}"] + 1e-5 if name == "00" else value
            for name, value in now.scorers["m"]["scores"].items()
        }
    )
    assert "order" in {finding.what for finding in regression.compare(two, then).findings}


def test_scores_that_have_become_all_the_same_have_lost_their_order():
    then, now = snapshot_of({f"{i}": i / 10 for i in range(5)}), snapshot_of({f"{i}": 0.2 for i in range(5)})
    (found,) = regression.compare(now, then, {"": 1.0}).findings
    assert (found.what, found.current) == ("order", None)
    assert not regression.compare(now, now).findings
    assert "all scores are the same now" in check_report.to_markdown(regression.compare(now, then, {"": 1.0}))


def test_the_verdict_tells_findings_from_values():
    then = snapshot_of({f"{i}": i / 10 for i in range(5)})
    now = snapshot_of({f"{i}": 1 + (4 - i) / 10 for i in range(5)})
    # Five scores, the mean, the worst one and the order of all.
    assert check_report.to_markdown(regression.compare(now, then)).startswith("**Findings: 8.** Values checked: 7.\n")


@pytest.mark.parametrize("back", [False, True])
def test_a_score_that_is_gone_or_back_is_a_failure(back):
    both = [snapshot_of({"a": 0.1, "b": 0.2}), replace(snapshot_of({"a": 0.1}), images={"a": "h", "b": "h"})]
    then, now = reversed(both) if back else both
    found = regression.compare(now, then).findings
    assert ("failure", "b") in {(finding.what, finding.name) for finding in found}


def test_an_image_that_was_taken_out_of_a_baseline_by_hand_is_named():
    now = replace(snapshot_of({"a": 0.1, "b": 0.2}), files={"a": "f", "b": "f"})
    with pytest.raises(IncomparableError, match=r"other images than the baseline's: b \(added\)"):
        regression.compare(now, replace(now, images={"a": "h"}))


@pytest.fixture
def folder(photographs, tmp_path) -> Path:
    """Two sharp photographs."""
    target = tmp_path / "pictures"
    target.mkdir()
    for index in (0, 2):
        Image.fromarray(photographs[index][:300, :300]).save(target / f"{index}.png")
    return target


def test_empty_folder_and_unreadable_image_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    assert_incomparable(["--images", str(tmp_path / "empty"), "--min-score", "0"], "no image in this folder")
    (tmp_path / "empty" / "broken.png").write_bytes(b"no picture")
    assert_incomparable(["--images", str(tmp_path / "empty"), "--min-score", "0"], "broken.png")


def test_an_unreadable_image_is_found_before_any_scorer_starts(folder, monkeypatch):
    (folder / "zzz.png").write_bytes(b"no picture")
    monkeypatch.setattr(snapshots, "create_scorer", lambda *_, **__: pytest.fail("started"))
    assert_incomparable(["--images", str(folder), "--min-score", "0"], "zzz.png")


def test_no_more_than_two_images_are_held_at_a_time(folder, tmp_path, monkeypatch):
    for level in range(6):
        Image.new("RGB", (64, 64), (level,) * 3).save(folder / f"level{level}.png")
    held, most = [], []
    read = snapshots.read_image

    def counted(path):
        pixels = read(path).numpy()
        held.append(path)
        weakref.finalize(pixels, held.pop)
        most.append(len(held))
        return torch.from_numpy(pixels)

    monkeypatch.setattr(snapshots, "read_image", counted)
    arguments = ["--images", str(folder), "--scorer", "entropy", "--scorer", "piqe", "--update"]
    assert run_check(tmp_path / "own.json", *arguments).exit_code == 0
    assert max(most) <= 2
    assert len(json.loads((tmp_path / "own.json").read_text())["images"]) == 8


def test_names_that_are_no_utf8_are_guarded_and_reported(folder, tmp_path, monkeypatch):
    (folder / "2.png").rename(folder / "caf\udce9.png")
    common = ["--images", str(folder), "--scorer", "entropy", "--baseline", str(tmp_path / "b\udce9.json")]
    assert run_main(monkeypatch, "iqa-harness", "check", *common, "--update") == 0
    for suffix in (".md", ".json", ".xml"):
        report = tmp_path / f"r\udce9{suffix}"
        assert run_main(monkeypatch, "iqa-harness", "check", *common, "--report", report) == 0
        assert report.exists()


def test_an_image_that_changes_meanwhile_is_named(folder, tmp_path, monkeypatch):
    start = snapshots.create_scorer

    def change_and_start(*arguments, **options):
        Image.new("RGB", (300, 300), "grey").save(folder / "2.png")
        return start(*arguments, **options)

    monkeypatch.setattr(snapshots, "create_scorer", change_and_start)
    arguments = ["--images", str(folder), "--scorer", "entropy", "--min-score", "0"]
    assert_incomparable(arguments, "2.png: it was changed while it was scored")


def test_markdown_survives_odd_names():
    finding = Finding("m", "score", "a|b\nc<img src=x>", 0.1, 0.2, "")
    figure = Figure("m", "worst", None, 0.2, "a|b\nc<img src=x>")
    text = check_report.to_markdown(Comparison([finding], figures=[figure], checked=1))
    assert text.count("a\\|b c\\<img src=x\\>") == 2
    shown = check_report.to_text(Comparison([replace(finding, name="a|b\n<c>\x1b[2J")], checked=1))
    assert "a|b <c>\\x1b[2J" in shown
    ET.fromstring(check_report.to_junit(Comparison([replace(finding, name="\x1b\ud800")])))  # noqa: S314


DOCUMENT = Path(__file__).parents[3] / "docs" / "ci.md"
COMMANDS = re.findall(r"(?:^|- run: |- |entry: )(iqa-harness check .+)$", DOCUMENT.read_text(), re.MULTILINE)


def test_documented_commands_run(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert len(COMMANDS) == 4
    for command in COMMANDS:  # in the order of the page: the first takes the baseline
        result = RUNNER.invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, (command, result.output, result.exception)
    Image.new("RGB", (300, 300), "grey").save(folder / "flat.png")
    Image.new("RGB", (300, 300), "black").save(folder / "black.png")
    assert RUNNER.invoke(app, shlex.split(COMMANDS[1])[1:]).exit_code == 1


def test_pytest_fixture(pytester, folder):
    pytester.makepyfile(f"""
        import pytest

        def test_good(assert_quality):
            assert assert_quality({str(folder / "0.png")!r}, metric="entropy", min=1) > 1

        def test_bad(assert_quality):
            with pytest.raises(AssertionError, match="at least 100"):
                assert_quality({str(folder / "0.png")!r}, metric="entropy", min=100)

        def test_wrong_side(assert_quality):
            with pytest.raises(ValueError, match="give min="):
                assert_quality({str(folder / "0.png")!r}, metric="entropy", max=1)

        def test_lower_is_better(assert_quality):
            assert_quality({str(folder / "0.png")!r}, metric="piqe", max=100)

        def test_no_number(assert_quality):
            with pytest.raises(AssertionError, match="is nan"):
                assert_quality({str(folder / "0.png")!r}, metric="tests.support.harness_data:undefined", min=0)

        def test_the_generator_of_a_test_goes_on(assert_quality):
            import torch

            torch.manual_seed(1)
            expected = torch.rand(2)
            torch.manual_seed(1)
            first = torch.rand(1)
            assert_quality({str(folder / "0.png")!r}, metric="entropy", min=0)
            assert torch.cat([first, torch.rand(1)]).equal(expected)
    """)
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=6)


@pytest.mark.parametrize("module", ["json.guard", "keyword.guard"])
def test_a_package_that_hides_the_fixtures_own_is_named(module):
    name = module.partition(".")[0]
    entry = EntryPoint("assert_quality", f"{module}:check_quality", GROUP)
    with pytest.raises(pytest.UsageError, match=rf"needs the package '{name}'.* hides it: .*{name}"):
        load(entry)


def test_the_plugin_of_pytest_loads_without_the_harness():
    assert {entry.value for entry in entry_points(group="pytest11", name="qualiclip")} == {load.__module__}
    code = f"import sys, {load.__module__}; print({{'harness', 'torch', 'numpy'}} & {{*sys.modules}})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
