"""The engine: only what is missing is scored, failures are named, nothing is lost by a kill."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.data.metadata import local_spec
from harness.data.open import ImageSet, open_dataset
from harness.leaderboard.render import render
from harness.results.measure import Settings
from harness.results.store import Store
from harness.run import runner
from harness.run.engine import evaluate, score_key, unavailable_cell
from harness.run.progress import Silent
from harness.run.runner import RunRequest, run_all
from harness.run.score import Options
from harness.scorers.kinds import Scorer
from harness.scorers.names import Facts
from qualiclip_plugin.utils import images as images_module
from qualiclip_plugin.utils.errors import DatasetError, MachineError
from tests.support.harness_data import brightness, fake_scorer, opinion_folder, write_images, write_metadata

pytestmark = pytest.mark.usefixtures("one_thread")

FAST = Settings()
ROOT = Path(__file__).parents[3]


class Counting:
    """A scorer that counts the images it is given."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.images += len(images)
        return brightness(images)


class Notes(Silent):
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_second_run_scores_nothing_and_gives_the_same_cell(tmp_path: Path) -> None:
    images = open_dataset(str(opinion_folder(tmp_path / "set", 8)))
    store, counting = Store(tmp_path / "results"), Counting()
    first = evaluate(fake_scorer(counting), images, store, settings=FAST)
    assert counting.images == 8
    assert evaluate(fake_scorer(counting), images, store, settings=FAST) == first
    assert counting.images == 8
    assert first["subsets"]["all"]["n"] == 8
    assert first["status"] == "complete"
    assert 0.9 < first["subsets"]["all"]["figures"]["srcc"]["value"] < 1


def test_a_run_with_nothing_to_do_makes_no_hash_of_labels_and_mends_altered_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, store = str(opinion_folder(tmp_path / "set", 8)), Store(tmp_path / "results")
    first = evaluate(fake_scorer(), open_dataset(folder), store, settings=FAST)
    path = store.labels_path("set@local")
    kept = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(ImageSet, "labels_hash", property(lambda self: pytest.fail("made again")))
        assert evaluate(fake_scorer(), open_dataset(folder), store, settings=FAST) == first
    path.write_bytes(kept[:-1])
    assert evaluate(fake_scorer(), open_dataset(folder), store, settings=FAST) == first
    assert path.read_bytes() == kept


def test_a_stored_score_is_read_and_not_computed(tmp_path: Path) -> None:
    images = open_dataset(str(opinion_folder(tmp_path / "set", 8)))
    store, scorer = Store(tmp_path / "results"), fake_scorer()
    sentinel = {"image_hash": images.table["image_hash"][3], "score": 12345.0, "error": "", "seconds": 0.0}
    sentinel |= {"height": 1, "width": 1, "finished": "2020-01-01", "device": "sentinel"}
    store.append(score_key(scorer, images), [sentinel])
    cell = evaluate(scorer, images, store, settings=FAST)
    scores = store.scores(score_key(scorer, images)).set_index("image_hash")["score"]
    assert scores[images.table["image_hash"][3]] == 12345.0
    assert "sentinel" in cell["device"]


def test_a_changed_fingerprint_scores_everything_again(tmp_path: Path) -> None:
    images = open_dataset(str(opinion_folder(tmp_path / "set", 8)))
    store, counting = Store(tmp_path / "results"), Counting()
    evaluate(fake_scorer(counting, version=1), images, store, settings=FAST)
    evaluate(fake_scorer(counting, version=2), images, store, settings=FAST)
    assert counting.images == 16


def test_what_is_said_of_labels_and_training_enters_a_stored_cell(tmp_path: Path) -> None:
    images = open_dataset(str(opinion_folder(tmp_path / "set", 8)))
    store, counting = Store(tmp_path / "results"), Counting()
    first = evaluate(fake_scorer(counting), images, store, settings=FAST)
    assert images.spec.opinion is not None
    reversed_spec = dataclasses.replace(
        images.spec, opinion=dataclasses.replace(images.spec.opinion, lower_better=True), seen_by=("others",)
    )
    reversed_set = dataclasses.replace(images, spec=reversed_spec)
    second = evaluate(fake_scorer(counting), reversed_set, store, settings=FAST)
    assert figure(second) == -figure(first)
    assert second["dataset"]["seen_by"] == ["others"]
    trained = evaluate(fake_scorer(counting, facts=Facts(trained_on=("set",))), images, store, settings=FAST)
    assert trained["scorer"]["trained_on"] == ["set"]
    assert counting.images == 8


def figure(cell: Mapping[str, Any]) -> float:
    return float(cell["subsets"]["all"]["figures"]["srcc"]["value"])


def test_a_new_image_alone_is_scored(tmp_path: Path) -> None:
    store, counting = Store(tmp_path / "results"), Counting()
    evaluate(fake_scorer(counting), open_dataset(str(opinion_folder(tmp_path / "set", 8))), store, settings=FAST)
    cell = evaluate(
        fake_scorer(counting), open_dataset(str(opinion_folder(tmp_path / "set", 10))), store, settings=FAST
    )
    assert counting.images == 10
    assert cell["subsets"]["all"]["n"] == 10


def test_failed_images_are_counted_named_and_retried_only_when_asked(tmp_path: Path) -> None:
    folder = opinion_folder(tmp_path / "set", 8)
    (folder / "2.png").write_bytes(b"no image")
    images = open_dataset(str(folder))
    broken = True

    def picky(batch: torch.Tensor) -> torch.Tensor:
        scores = brightness(batch)
        if broken and bool((scores > 0.2).any()):
            raise RuntimeError("too bright")
        return scores

    store = Store(tmp_path / "results")
    cell = evaluate(fake_scorer(picky), images, store, settings=FAST)
    failures = {failure["file_name"]: failure["error"] for failure in cell["failures"]}
    assert set(failures) == {"2.png", "5.png", "6.png", "7.png"}
    assert failures["5.png"] == "RuntimeError: too bright"
    assert (cell["subsets"]["all"]["n"], cell["subsets"]["all"]["n_failed"]) == (4, 4)
    assert cell["status"] == "failed images"
    broken = False
    assert evaluate(fake_scorer(picky), images, store, settings=FAST) == cell
    retried = evaluate(fake_scorer(picky), images, store, Options(retry_failed=True), settings=FAST)
    assert [failure["file_name"] for failure in retried["failures"]] == ["2.png"]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e200, -1e200])
def test_a_score_that_is_no_number_or_too_large_is_a_failure(tmp_path: Path, value: float) -> None:
    images = open_dataset(str(opinion_folder(tmp_path / "set", 4)))
    scorer = fake_scorer(lambda batch: torch.linspace(1, 2, len(batch), dtype=torch.float64) * value)
    cell = evaluate(scorer, images, Store(tmp_path / "results"), settings=FAST)
    assert cell["subsets"]["all"]["n_failed"] == 4
    assert cell["failures"][0]["error"] == f"the score is {value}"
    assert cell["subsets"]["all"]["figures"]["srcc"]["value"] is None


@pytest.mark.parametrize("place", ["scorer", "decoder"])
@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EMFILE])
def test_a_machine_without_room_is_no_failure_of_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, reason: int
) -> None:
    images, store = open_dataset(str(opinion_folder(tmp_path / "set", 4))), Store(tmp_path / "results")
    module, name = (images_module, "read_image") if place == "decoder" else (sys.modules[__name__], "brightness")
    work, calls = getattr(module, name), []

    def fail(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(reason, os.strerror(reason))
        return work(*arguments, **options)

    monkeypatch.setattr(module, name, fail)
    scorer = fake_scorer(brightness, batches=False)
    with pytest.raises(MachineError, match=f"{os.strerror(reason)}.*what was scored is kept"):
        evaluate(scorer, images, store, Options(batch_size=1), settings=FAST)
    assert store.scores(score_key(scorer, images))["error"].tolist() == [""] * 2
    assert evaluate(scorer, images, store, settings=FAST)["status"] == "complete"


def test_a_wrong_number_of_scores_is_a_failure(tmp_path: Path) -> None:
    images = open_dataset(str(opinion_folder(tmp_path / "set", 4)))
    cell = evaluate(fake_scorer(lambda batch: [1.0, 2.0, 3.0]), images, Store(tmp_path / "results"), settings=FAST)
    assert cell["failures"][0]["error"] == "ValueError: 3 scores for 1 images"


def test_a_constant_scorer_has_reasons_and_no_correlation(tmp_path: Path) -> None:
    images = open_dataset(str(opinion_folder(tmp_path / "set", 5)))
    cell = evaluate(fake_scorer(lambda batch: torch.ones(len(batch))), images, Store(tmp_path / "r"), settings=FAST)
    figures = cell["subsets"]["all"]["figures"]
    assert figures["srcc"] == {"value": None, "reason": "all scores are 1"}
    assert all(figures[name]["value"] is None and figures[name]["reason"] for name in figures)


def test_direction_is_declared_and_never_hidden(tmp_path: Path) -> None:
    images = open_dataset(str(opinion_folder(tmp_path / "set", 8)))
    store = Store(tmp_path / "results")
    values = [
        evaluate(fake_scorer(name=str(lower), lower_better=lower), images, store, settings=FAST)["subsets"]["all"]
        for lower in (False, True)
    ]
    up, down = (value["figures"]["srcc"]["value"] for value in values)
    assert up > 0.9
    assert down == -up


def test_one_content_under_two_names_is_scored_once_and_counted_twice(tmp_path: Path) -> None:
    write_images(tmp_path / "set", 4)
    (tmp_path / "set/copy.png").write_bytes((tmp_path / "set/0.png").read_bytes())
    names = ["0.png", "1.png", "2.png", "3.png", "copy.png"]
    write_metadata(tmp_path / "set", [{"file_name": name, "mos": i} for i, name in enumerate(names)])
    counting = Counting()
    cell = evaluate(fake_scorer(counting), open_dataset(str(tmp_path / "set")), Store(tmp_path / "r"), settings=FAST)
    assert counting.images == 4
    assert cell["subsets"]["all"]["n"] == 5


def test_out_of_memory_halves_the_batch_and_says_so(tmp_path: Path) -> None:
    images = open_dataset(str(opinion_folder(tmp_path / "set", 16)))
    sizes = []

    def hungry(batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return brightness(batch)

    reporter = Notes()
    cell = evaluate(
        fake_scorer(hungry), images, Store(tmp_path / "r"), Options(batch_size=8), reporter, settings=FAST
    )
    assert cell["subsets"]["all"]["n"] == 16
    assert sizes[0] == 8
    assert max(sizes[-4:]) <= 4
    assert "out of memory with 8 images of 48x40; halved" in reporter.notes[0]


IMAGE_BYTES = 3 * 40 * 48


@pytest.mark.parametrize(
    ("images_kept", "stored", "decoded"),
    [
        pytest.param(100, 0, 8, id="each once"),
        pytest.param(100, 8, 8, id="the first scorer has its scores"),
        pytest.param(100, 3, 8, id="the first scorer lacks some"),
        pytest.param(5, 0, 5 + 3 * 3, id="some have no room"),
        pytest.param(0, 0, 3 * 8, id="no room"),
    ],
)
def test_scorers_of_a_run_share_decoded_images_where_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images_kept: int, stored: int, decoded: int
) -> None:
    folder, reads = opinion_folder(tmp_path / "set", 8), []
    scorers = tuple(fake_scorer(lambda batch, by=by: brightness(batch) ** by, f"power{by}") for by in (1, 2, 3))
    read = images_module.read_image

    def counted(*arguments: Any, **options: Any) -> torch.Tensor:
        reads.append(1)
        return read(*arguments, **options)

    def run(asked: Sequence[Scorer], output: str) -> tuple[bytes, bytes]:
        request = RunRequest(tuple(asked), (str(folder),), tmp_path / output, settings=Settings(intervals=False))
        run_all(request, Silent())
        return tables(tmp_path / output)

    for scorer in scorers:
        alone = run([scorer], "alone")
    if stored:
        evaluate(scorers[0], open_dataset(str(folder)).first(stored), Store(tmp_path / "together"))
    monkeypatch.setattr(images_module, "read_image", counted)
    monkeypatch.setattr(runner, "free_memory", lambda: runner.KEPT_SHARE * images_kept * IMAGE_BYTES)
    assert run(scorers, "together") == alone
    assert len(reads) == decoded


def test_a_scorer_without_batches_gets_single_images(tmp_path: Path) -> None:
    images = open_dataset(str(opinion_folder(tmp_path / "set", 4)))
    sizes = []

    def single(batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        return brightness(batch)

    evaluate(fake_scorer(single, batches=False), images, Store(tmp_path / "r"), settings=FAST)
    assert sizes == [1, 1, 1, 1]


def test_scores_are_written_while_a_run_goes_on(tmp_path: Path) -> None:
    images = open_dataset(str(opinion_folder(tmp_path / "set", 6)))
    store, seen = Store(tmp_path / "r"), []

    def watching(batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(list((tmp_path / "r").rglob("part-*.parquet"))))
        return brightness(batch)

    evaluate(fake_scorer(watching, batches=False), images, store, Options(write_every=0), settings=FAST)
    assert seen == list(range(6))


def test_a_partial_dataset_is_marked_in_its_cell(tmp_path: Path) -> None:
    folder = opinion_folder(tmp_path / "set", 6)
    spec = dataclasses.replace(local_spec(folder), images=7)
    images = open_dataset("set", {"set": spec}, allow_partial=True)
    cell = evaluate(fake_scorer(), images, Store(tmp_path / "r"), settings=FAST)
    assert cell["status"] == "partial dataset"
    assert cell["dataset"]["images_declared"] == 7
    assert "fake: partial dataset, 6 images of 7" in render([cell])


def test_missing_and_failed_images_are_both_said(tmp_path: Path) -> None:
    folder = opinion_folder(tmp_path / "set", 6)
    (folder / "2.png").unlink()
    (folder / "3.png").write_bytes(b"no image")
    images = open_dataset(str(folder), allow_partial=True)
    cell = evaluate(fake_scorer(), images, Store(tmp_path / "r"), settings=FAST)
    assert cell["status"] == "partial dataset, failed images"
    assert "fake: partial dataset, failed images, 1 images missing (3.png: ImageError" in render([cell])


def test_a_cell_that_could_not_start_has_a_reason() -> None:
    cell = unavailable_cell("clipiqa", "set", "clipiqa: no weights (<urlopen error [Errno -2] no name>)")
    assert cell["status"] == "unavailable"
    assert cell["reason"] == "no weights (no name)"
    json.dumps(cell, allow_nan=False)


@pytest.mark.parametrize(("home", "shown"), [("/home/me", "no file ~/w.pth"), ("/", "no file /home/me/w.pth")])
def test_the_reason_of_a_cell_does_not_tell_where_home_is(
    home: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    assert unavailable_cell("clipiqa", "set", "no file /home/me/w.pth")["reason"] == shown


def test_ladders_that_are_too_short_are_not_called_missing(tmp_path: Path) -> None:
    names = write_images(tmp_path, 3)
    rows = [
        {"file_name": name, "level": level, "reference": "a", "distortion": "red" if level else ""}
        for level, name in enumerate(names)
    ]
    write_metadata(tmp_path, rows)
    cell = evaluate(fake_scorer(), open_dataset(str(tmp_path)), Store(tmp_path / "r"), settings=FAST)
    assert cell["subsets"]["all"]["figures"]["l_test"]["reason"] == "no ladder of 3 distortion levels"


SLOW = "tests.support.harness_data:slow_brightness"


def start_run(folder: Path, output: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "harness", "run", "--scorer", SLOW, "--dataset", f"set={folder}"]
    options = ["--output", str(output), "--batch-size", "1", "--quiet"]
    environment = {**os.environ, "HARNESS_TEST_LOG": str(log), "OMP_NUM_THREADS": "1", "HARNESS_WRITE_EVERY": "0.1"}
    return subprocess.Popen([*command, *options], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def run_here(folder: Path, output: Path) -> None:
    request = RunRequest((SLOW,), (f"set={folder}",), output, batch_size=1, settings=Settings())
    run_all(request, Silent())


def tables(output: Path) -> tuple[bytes, bytes]:
    """Both tables, byte for byte."""
    return (output / "leaderboard.csv").read_bytes(), (output / "leaderboard.md").read_bytes()


def test_kill_and_rerun_computes_only_what_was_lost_and_gives_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 120
    folder = opinion_folder(tmp_path / "set", number)
    output, log = tmp_path / "killed", tmp_path / "log"
    monkeypatch.setenv("HARNESS_TEST_KILL_AT", "60")
    assert start_run(folder, output, log).wait() == -signal.SIGKILL
    monkeypatch.delenv("HARNESS_TEST_KILL_AT")
    scored = len(log.read_text())
    parts = list(output.rglob("part-*.parquet"))
    assert len(parts) > 0
    assert scored < number
    assert not (output / "leaderboard.csv").exists()
    log.write_text("")
    monkeypatch.setenv("HARNESS_TEST_LOG", str(log))
    run_here(folder, output)
    again = len(log.read_text())
    # What was scored but not yet written, at most the writing interval, is scored twice.
    assert number - scored <= again < number
    run_here(folder, tmp_path / "straight")
    assert tables(output) == tables(tmp_path / "straight")


def test_another_dataset_of_a_stored_name_is_refused(tmp_path: Path) -> None:
    folder, output = opinion_folder(tmp_path / "a/test", 6), tmp_path / "results"

    def run(dataset: str) -> list[str]:
        request = RunRequest((fake_scorer(),), (dataset,), output, settings=Settings(intervals=False))
        return [cell["dataset"]["name"] for cell in run_all(request, Silent())]

    run(str(folder))
    labels = Store(output).labels_path("test@local")
    before = labels.read_bytes()
    names = write_images(tmp_path / "b/test/new", 12)[6:]
    write_metadata(tmp_path / "b/test", [{"file_name": f"new/{name}", "mos": i} for i, name in enumerate(names)])
    with pytest.raises(DatasetError, match=r"test@local\.parquet: a dataset named 'test' with other images: 0 of 6"):
        run(str(tmp_path / "b/test"))
    assert labels.read_bytes() == before
    assert run(f"other={tmp_path / 'b/test'}") == ["other"]
    # Renamed or altered, it is the same dataset still; damaged labels are written anew.
    shutil.copytree(folder, tmp_path / "c/test/renamed")
    write_metadata(
        tmp_path / "c/test", [{"file_name": f"renamed/{i}.png", "mos": opinion} for i, opinion in enumerate("012354")]
    )
    assert run(str(tmp_path / "c/test")) == ["test"]
    labels.write_bytes(b"damaged")
    assert run(str(tmp_path / "b/test")) == ["test"]


def test_one_name_or_image_in_common_does_not_make_two_datasets_one(tmp_path: Path) -> None:
    folder, output = opinion_folder(tmp_path / "a/test", 6), tmp_path / "results"

    def run(dataset: Path) -> None:
        run_all(RunRequest((fake_scorer(),), (str(dataset),), output, settings=Settings(intervals=False)), Silent())

    def other(place: str, opinions: str) -> Path:
        names = write_images(tmp_path / place / "test/new", 12)[6:]
        for index, name in enumerate(names):
            (tmp_path / place / "test/new" / name).rename(tmp_path / place / "test" / f"{index}.png")
        write_metadata(
            tmp_path / place / "test", [{"file_name": f"{i}.png", "mos": mos} for i, mos in enumerate(opinions)]
        )
        return tmp_path / place / "test"

    run(folder)
    with pytest.raises(DatasetError, match=r"with other images: 0 of 6 are the same"):
        run(other("names", "543210"))
    shared = other("image", "543210")
    shutil.copy(folder / "3.png", shared / "5.png")
    with pytest.raises(DatasetError, match=r"with other images: 1 of 6 are the same"):
        run(shared)
    # Of the same names and opinions it is the same dataset, as after another compression; and it may have grown.
    altered = other("altered", "012345")
    names = write_images(altered / "more", 20)[12:]
    rows = [{"file_name": f"{i}.png", "mos": i} for i in range(6)]
    write_metadata(altered, [*rows, *({"file_name": f"more/{name}", "mos": 9} for name in names)])
    run(altered)
    run(folder)


def test_two_runs_at_once_share_a_store(tmp_path: Path) -> None:
    folder = opinion_folder(tmp_path / "set", 40)
    output, log = tmp_path / "shared", tmp_path / "log"
    runs = [start_run(folder, output, log) for _ in range(2)]
    assert [run.wait(120) for run in runs] == [0, 0]
    run_here(folder, tmp_path / "alone")
    assert tables(output) == tables(tmp_path / "alone")


def calls_made(action: Callable[[], object]) -> int:
    """How many functions an action calls: a measure of work that no other load of the machine moves."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(None)
    return calls


def test_stored_scores_add_little_work_to_a_start(tmp_path: Path) -> None:
    def start(folder: Path) -> None:
        store = Store(tmp_path / "results" / folder.name)
        evaluate(fake_scorer(), open_dataset(str(folder)), store, settings=Settings(intervals=False))

    numbers, calls = (50, 250), []
    for number in numbers:
        folder = opinion_folder(tmp_path / str(number), number, size=lambda index: (8, 8 + index % 3))
        start(folder)
        calls.append(calls_made(functools.partial(start, folder)))
    # It is 1000 to 1300, most of them for paths; an image that is decoded or hashed anew takes many more.
    assert (calls[1] - calls[0]) / (numbers[1] - numbers[0]) < 2000
