"""Scoring on a Ray cluster of two workers on this machine: the scores of one process, whatever dies on the way."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from harness.results.measure import Settings
from harness.run.progress import Silent
from harness.run.runner import RunRequest, run_all
from qualiclip_plugin.scoring import ray_engine
from qualiclip_plugin.scoring.local import BATCH_TOLERANCE, ScoredImage, score_files
from qualiclip_plugin.scoring.ray_engine import ScoreRequest, ShardWorker, identify, score_on_ray
from qualiclip_plugin.scoring.ray_pool import Pool, make_pool, map_on
from qualiclip_plugin.scoring.shards import open_shards
from qualiclip_plugin.scoring.sources import list_sources
from qualiclip_plugin.scoring.table import to_frame
from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.weights.loading import load_model
from tests.conftest import needs_openvino
from tests.support.commands import run_main
from tests.support.harness_data import brightness, fake_scorer, opinion_folder

pytestmark = pytest.mark.usefixtures("one_thread")
PARQUET_ROWS = 8


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A cluster of two cores."""
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def album(photographs: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of three sizes, one damaged, and a Parquet file with crops of others."""
    folder = tmp_path_factory.mktemp("album")
    (folder / "photos").mkdir()
    for index in range(25):
        photo = photographs[index % 4]
        crop = photo[5 * index : 5 * index + 160, 50 : 50 + (200, 240, 160)[index % 3]]
        Image.fromarray(crop).save(folder / "photos" / f"{index:02}.jpg")
    damaged = folder / "photos" / "07.jpg"
    damaged.write_bytes(damaged.read_bytes()[:500])
    files = sorted((folder / "photos").glob("1*.jpg"))[:PARQUET_ROWS]
    pq.write_table(pa.table({"image": [path.read_bytes() for path in files]}), folder / "more.parquet")
    return folder


@pytest.fixture(scope="module")
def sources(album: Path) -> list[str]:
    return [str(album / "photos"), str(album / "more.parquet")]


@pytest.fixture(scope="module")
def request_(tiny_checkpoint: Path) -> ScoreRequest:
    return ScoreRequest(str(tiny_checkpoint), attributes=True, images_per_shard=2)


@pytest.fixture(scope="module")
def expected(sources: list[str], request_: ScoreRequest, one_thread: None) -> pd.DataFrame:
    """The rows of one process with one thread."""
    model = load_model(request_.weights)
    portions = list_sources(sources, 1000).portions
    rows = [row for portion in portions for row in score_files(portion.images(), model, attributes=True)]
    return to_frame(rows, model.attributes)


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Worker processes of the pools that a driver has started."""
    return [child for child in process.children(recursive=True) if "MapWorker" in " ".join(child.cmdline())]


def kill_one(killed: list[int]) -> Callable[[int, int], None]:
    """What to do after a shard: end a worker, once."""

    def advance(images: int, total: int) -> None:
        if not killed:
            worker = workers_of(psutil.Process())[0]
            worker.kill()
            killed.append(worker.pid)

    return advance


def test_the_rows_of_one_process_though_a_worker_is_killed(
    ray_cluster: None, sources: list[str], request_: ScoreRequest, expected: pd.DataFrame, tmp_path: Path
) -> None:
    killed: list[int] = []
    summary = score_on_ray(sources, tmp_path, request_, advance=kill_one(killed))
    assert len(killed) == 1
    frame = pd.read_parquet(tmp_path / "scores")
    pd.testing.assert_frame_equal(frame, expected, check_exact=True)
    assert frame["score"].nunique() > 20
    assert frame["error"].notna().sum() == 1
    assert "07.jpg: damaged or truncated" in frame["error"][7]
    counts = {"images": 33, "scored": 32, "failed": 1, "shards": 17, "unfinished_shards": 0, "workers": 2}
    assert counts.items() <= json.loads((tmp_path / "summary.json").read_text()).items() <= summary.items()
    # The same again finds nothing to do; anything else is refused.
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "scores").iterdir()}
    assert score_on_ray(sources, tmp_path, request_)["images_in_last_run"] == 0
    with pytest.raises(ConfigError, match=r"holds another run \(images: 33 -> 25; .*shards: 17 -> 13;"):
        score_on_ray(sources[:1], tmp_path, request_)
    with pytest.raises(ConfigError, match=r"holds another run \(weights: tiny.safetensors -> lite;"):
        score_on_ray(sources, tmp_path, ScoreRequest("lite", attributes=True, images_per_shard=2))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "scores").iterdir()} == files


def command(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "qualiclip_plugin", "score", "--engine", "ray", *map(str, arguments)],
        env={**os.environ, "RAY_ADDRESS": "local"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_missing_shards(
    ray_cluster: None, sources: list[str], request_: ScoreRequest, expected: pd.DataFrame, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    options = ("--weights", request_.weights, "--attributes", "--images-per-shard", 2, "--ray-workers", 2)
    run = command(*sources, "--output", output, *options)
    driver = psutil.Process(run.pid)
    deadline = time.monotonic() + 480
    while len(list(output.glob("scores/*.parquet"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    own, workers = driver.children(recursive=True), workers_of(driver)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert len(workers) == 2
    assert not alive
    # Ray's own agents take minutes to notice; nothing of the killed run shall live on beside the next.
    for process in psutil.wait_procs(own, timeout=0)[1]:
        process.kill()
    finished = {path: path.stat().st_mtime_ns for path in output.glob("scores/*.parquet")}
    assert 2 <= len(finished) < 17
    assert not (output / "summary.json").exists()
    scored: list[int] = []
    score_on_ray(sources, output, request_, advance=lambda images, total: scored.append(images))
    assert len(scored) == 17 - len(finished)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    pd.testing.assert_frame_equal(pd.read_parquet(output / "scores"), expected, check_exact=True)


@pytest.mark.slow
def test_the_command_and_its_second_try(album: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("01.jpg", "02.jpg", "03.jpg"):
        (folder / name).write_bytes((album / "photos" / name).read_bytes())
    whole = (folder / "02.jpg").read_bytes()
    (folder / "02.jpg").write_bytes(b"")
    os.utime(folder / "02.jpg", (1, 1))
    options = (
        "--weights",
        tiny_checkpoint,
        "--output",
        tmp_path / "out",
        "--images-per-shard",
        2,
        "--ray-workers",
        1,
    )
    run = command(folder, *options)
    out, err = run.communicate(timeout=280)
    assert run.returncode == 1, err
    assert out.strip() == str(tmp_path / "out" / "scores")
    assert "1 of 3 images have no score" in err
    assert "Traceback" not in err
    frame = pd.read_parquet(tmp_path / "out" / "scores")
    assert frame["path"].tolist() == [f"{folder}/{name}" for name in ("01.jpg", "02.jpg", "03.jpg")]
    assert frame["score"].isna().tolist() == [False, True, False]
    # A mended file is another source, and refused here; one that could not be read for a while is not.
    (folder / "02.jpg").write_bytes(whole)
    run = command(folder, *options, "--retry-failed")
    assert "holds another run (source:" in run.communicate(timeout=280)[1]
    assert run.returncode == 2


class Fragile(ShardWorker):
    """A worker that one image ends."""

    def _score(self, images: object) -> Iterator[ScoredImage]:
        def watched() -> Iterator[object]:
            for image in images:  # type: ignore[attr-defined]
                if str(image).endswith("05.jpg"):
                    os._exit(11)
                yield image

        return super()._score(watched())  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_image_that_ends_its_workers_is_a_row(
    ray_cluster: None,
    sources: list[str],
    request_: ScoreRequest,
    expected: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_engine, "ShardWorker", Fragile)
    summary = score_on_ray(sources[:1], tmp_path, request_, workers=1)
    assert (summary["failed"], summary["unfinished_shards"]) == (2, 0)
    frame = pd.read_parquet(tmp_path / "scores")
    assert frame["error"][5] == f"{sources[0]}/05.jpg: ended 2 workers that had nothing else in hand"
    others = frame.index != 5
    pd.testing.assert_frame_equal(frame[others], expected[:25][others], check_exact=True)


@pytest.mark.slow
def test_a_worker_with_another_model_or_library_ends_the_run(
    ray_cluster: None, request_: ScoreRequest, tmp_path: Path
) -> None:
    pool = make_pool(workers=1)
    identity = {**identify(request_, pool), "weights_sha256": ["another"]}
    arguments = {"request": request_, "pool": pool, "decoders": 1, "identity": identity, "casualties": None}
    with pytest.raises(ConfigError, match="differs from the process that started the run in: weights_sha256"):
        list(map_on(pool, [{"shard": 0, "portion": ""}], ShardWorker, {**arguments, "folder": str(tmp_path)}))


def test_more_workers_than_the_cluster_holds(ray_cluster: None) -> None:
    assert make_pool().workers == 2
    assert make_pool(threads=2).workers == 1
    for wrong in ({"workers": 3}, {"threads": 3}, {"device": "cuda"}, {"workers": 2, "threads": 2}):
        with pytest.raises(ConfigError, match="the Ray cluster has 2 cores and 0 GPUs: no room for"):
            make_pool(**wrong)
    with pytest.raises(ConfigError, match="'mps': on a Ray cluster it is auto, cpu or cuda"):
        make_pool("mps")


def test_workers_share_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 2.0})
    assert make_pool() == Pool(2, "cuda", 1, sharing=1)
    assert make_pool(workers=8) == Pool(8, "cuda", 1, sharing=4)
    assert make_pool(workers=5) == Pool(5, "cuda", 1, sharing=3)
    assert make_pool(threads=16) == Pool(2, "cuda", 16, sharing=1)  # a worker with a GPU takes no cores
    with pytest.raises(ConfigError, match="no room for 17 workers on cuda"):
        make_pool(workers=17)


@pytest.mark.slow
def test_the_harness_stores_the_same_scores(ray_cluster: None, tmp_path: Path) -> None:
    folder = opinion_folder(tmp_path / "set", 70, size=lambda index: (40, 44 + index % 3))
    (folder / "9.png").write_bytes(b"no image")
    tables = {}
    for engine in ("local", "ray"):
        request = RunRequest(
            ("entropy", "qualiclip-lite", "tests.support.harness_data:brightness"),
            (f"set={folder}",),
            tmp_path / engine,
            device="cpu",
            engine=engine,
            settings=Settings(),
        )
        run_all(request, Silent())
        tables[engine] = (tmp_path / engine / "leaderboard.md").read_text()
    assert tables["ray"] == tables["local"]
    assert "unavailable" not in tables["ray"]
    rows = {engine: stored_rows(tmp_path / engine) for engine in tables}
    # The harness batches images of one size, and workers see others together than one process does.
    pd.testing.assert_frame_equal(rows["ray"], rows["local"], rtol=0, atol=BATCH_TOLERANCE)
    assert len(rows["ray"]) == 3 * 70
    assert set(rows["ray"]["device"]) == {f"CPU {platform.machine()}, 1 threads"}


def stored_rows(results: Path) -> pd.DataFrame:
    """Everything stored but for the times, in the order of scorer and image."""
    parts = sorted((results / "scores").rglob("*.parquet"))
    rows = pd.concat([pd.read_parquet(path).assign(scorer=path.parts[-4]) for path in parts])
    return rows.drop(columns=["seconds", "finished"]).sort_values(["scorer", "image_hash"], ignore_index=True)


@pytest.mark.slow
def test_a_scorer_that_cannot_be_sent_is_a_row_with_its_reason(ray_cluster: None, tmp_path: Path) -> None:
    lock = threading.Lock()

    def locked(images: torch.Tensor) -> torch.Tensor:
        with lock:
            return brightness(images)

    folder = opinion_folder(tmp_path / "set", 4)
    (cell,) = run_all(
        RunRequest((fake_scorer(locked),), (f"set={folder}",), tmp_path / "results", engine="ray"), Silent()
    )
    assert cell["status"] == "unavailable"
    assert "fake cannot be sent to the workers of a cluster" in cell["reason"]


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    folder = opinion_folder(tmp_path / "set", 4)
    with pytest.raises(ConfigError, match="engine 'rays': local or ray is needed"):
        run_all(RunRequest((fake_scorer(),), (f"set={folder}",), tmp_path / "results", engine="rays"), Silent())


# Before any cluster


@pytest.mark.parametrize(("runtime", "there", "needed"), [("cuda", "cpu", "cuda"), ("openvino", "cuda", "cpu")])
def test_a_runtime_for_another_device_is_refused_before_a_folder_is_begun(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, there: str, needed: str
) -> None:
    if runtime == "openvino":
        needs_openvino()
    monkeypatch.setattr(ray_engine, "cluster", nullcontext)
    monkeypatch.setattr(ray_engine, "make_pool", lambda *_: Pool(1, there, 1))
    request = ScoreRequest(weights="lite", runtime=runtime)
    with pytest.raises(ConfigError, match=f"the runtime '{runtime}' computes on {needed}; the workers have {there}"):
        score_on_ray([str(album / "photos")], tmp_path / "out", request)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "ray"], "--engine ray writes many files: give --output a folder"),
        (["--engine", "ray", "--output", "scores.csv"], "--engine ray writes many files: give --output a folder"),
        (["--engine", "ray", "--output", "out", "--precision", "fp7"], "unknown precision 'fp7'"),
        (["--engine", "ray", "--output", "out", "--scale", "authors"], "carries its own scale"),
        (["--engine", "ray", "--output", "out", "gone"], "gone: no such file or folder"),
        (["--engine", "ray", "--output", "out"], 'pip install "qualiclip-plugin[ray]"'),
        (["--images-per-shard", "5", "--retry-failed"], "only with --engine ray: --images-per-shard, --retry-failed"),
        (["s3://bucket/photos"], "only with --engine ray: s3://bucket/photos"),
    ],
)
def test_what_cannot_start_leaves_nothing_behind(
    album: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run_main(monkeypatch, "qualiclip", "score", album / "photos", *arguments) == 2
    assert message in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


# The folder of a run; no cluster


def shard(*errors: str | None) -> pd.DataFrame:
    return to_frame([ScoredImage(str(index), None if e else 0.5, error=e) for index, e in enumerate(errors)])


def test_finished_shards_and_their_failures(tmp_path: Path) -> None:
    folder = open_shards(tmp_path, (2, 2, 1), {"model": {"name": "x"}})
    assert folder.failures() == {}
    folder.write(1, shard("damaged", None))
    folder.write(2, shard(None))
    again = open_shards(tmp_path, (2, 2, 1), {"model": {"name": "x"}})
    assert again.failures() == {1: 1, 2: 0}
    summary = again.summarise(again.failures(), workers=2)
    assert summary == {"images": 5, "scored": 2, "failed": 1, "shards": 3, "unfinished_shards": 1, "workers": 2}
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


@pytest.mark.parametrize("damage", ["another score", "bytes", "nothing left"])
def test_an_altered_shard_is_not_taken_for_finished(tmp_path: Path, damage: str) -> None:
    open_shards(tmp_path, (2,), {}).write(0, shard(None, None))
    (path,) = (tmp_path / "scores").iterdir()
    if damage == "another score":
        pd.read_parquet(path).assign(score=0.9).to_parquet(path, index=False)
    else:
        path.write_bytes({"bytes": path.read_bytes().replace(b"score", b"scare"), "nothing left": b""}[damage])
    with pytest.raises(ConfigError, match=r"shard-0000000-\w{64}\.parquet: was altered .*; delete it"):
        open_shards(tmp_path, (2,), {}).failures()
    path.unlink()
    assert open_shards(tmp_path, (2,), {}).failures() == {}


def test_a_shard_that_is_scored_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    folder = open_shards(tmp_path, (2, 1), {})
    folder.write(1, shard(None))
    folder.write(0, shard("storage failed", None))
    (first,) = (tmp_path / "scores").glob("shard-0000000-*")
    killed = first.read_bytes()
    assert folder.failures() == {0: 1, 1: 0}
    folder.write(0, shard(None, None))
    assert len(pd.read_parquet(tmp_path / "scores")) == 3
    first.write_bytes(killed)
    os.utime(first, ns=(1, 1))
    assert open_shards(tmp_path, (2, 1), {}).failures() == {0: 0, 1: 0}
    assert len(pd.read_parquet(tmp_path / "scores")) == 3


def test_what_is_no_shard_of_the_run_is_refused(tmp_path: Path) -> None:
    folder = open_shards(tmp_path, (2,), {})
    folder.write(0, shard(None))
    with pytest.raises(ConfigError, match=r"shard-0000000-\w{64}\.parquet: 1 rows instead of 2; delete it"):
        folder.failures()
    (tmp_path / "scores" / "mine.parquet").touch()
    with pytest.raises(ConfigError, match=r"mine\.parquet: no shard of this run; remove it"):
        folder.failures()
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match="not a manifest of scores"):
        open_shards(tmp_path, (2,), {})
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="scores without a manifest"):
        open_shards(tmp_path, (2,), {})
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        open_shards(tmp_path / "file" / "out", (2,), {})
