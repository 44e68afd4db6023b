"""Hub repositories, cached and as streams, and archives as streams: from a local server to scores."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.data import archives, streams
from harness.data.decode import decoded
from harness.data.open import open_spec
from harness.data.spec import Columns, DatasetSpec, Hub, LabelFile, Opinion
from harness.results.measure import Settings
from harness.results.store import Store
from harness.run.engine import evaluate
from qualiclip_plugin.utils import download
from qualiclip_plugin.utils.download import DownloadError
from qualiclip_plugin.utils.errors import DatasetError
from tests.harness.data.test_archives import LABELS, PICTURES, koniq
from tests.support.harness_data import brightness, fake_scorer, opinion_folder, png, tgz, write_images
from tests.support.local_server import COMMIT, LocalServer, remote

ROOT = Path(__file__).parents[3]
FAST = Settings()


def packed(folder: Path, number: int = 6) -> bytes:
    """A Parquet file as the Hub has them."""
    import datasets

    write_images(folder, number)
    images = [{"bytes": (folder / f"{i}.png").read_bytes(), "path": f"{i}.png"} for i in range(number)]
    rows = {"image": images, "score": [float(i) for i in range(number)]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(folder / "a.parquet")
    return (folder / "a.parquet").read_bytes()


def spec(repository: str, **options: Any) -> DatasetSpec:
    values: dict[str, Any] = {"version": "1", "description": "d", "licence": "l", "citation": "c"}
    values |= {"name": "photos", "hub": Hub(repository, "train"), "columns": Columns("image", "score")}
    return DatasetSpec(**{**values, "opinion": Opinion("mos", lower_better=False, range=(0, 5)), **options})


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder that `datasets` reads as a repository, and an empty cache."""
    monkeypatch.setenv("QUALICLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "hub/data").mkdir(parents=True)
    (tmp_path / "hub/data/train-00000.parquet").write_bytes(packed(tmp_path / "photos"))
    return str(tmp_path / "hub")


def test_a_stream_has_the_labels_hashes_and_scores_of_the_cached_set(tmp_path: Path, repository: str) -> None:
    kept, stream = (open_spec(spec(repository, stream=streamed)) for streamed in (False, True))
    assert stream.table.equals(kept.table)
    assert stream.labels_hash == kept.labels_hash
    cells = [evaluate(fake_scorer(), images, Store(tmp_path / "results"), settings=FAST) for images in (kept, stream)]
    assert cells[0] == cells[1]
    alone = evaluate(fake_scorer(), stream, Store(tmp_path / "other"), settings=FAST)
    assert alone["subsets"] == cells[0]["subsets"]
    ways = ([item.pixels.tobytes() for item in decoded(stream, range(6), n)] for n in (0, 3))
    assert next(ways) == next(ways)


def test_a_row_of_a_stream_without_an_image_is_named(tmp_path: Path, repository: str) -> None:
    import pandas as pd

    path = Path(repository) / "data/train-00000.parquet"
    table = pd.read_parquet(path)
    for found in (None, "/etc/passwd", str(tmp_path / "0.png")):
        table.at[2, "image"] = {"bytes": None, "path": found}
        table.to_parquet(path)
        with pytest.raises(DatasetError, match=r"row 2: no image in the row itself"):
            open_spec(spec(repository, stream=True))


def test_only_missing_images_of_a_stream_are_scored(tmp_path: Path, repository: str) -> None:
    stream, store = open_spec(spec(repository, stream=True)), Store(tmp_path / "results")
    seen = []

    def failing(batch: Any) -> Any:
        seen.append(len(batch))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return brightness(batch)

    scorer = fake_scorer(failing, batches=False)
    with pytest.raises(KeyboardInterrupt):
        evaluate(scorer, stream, store, settings=FAST)
    assert evaluate(scorer, stream, store, settings=FAST)["subsets"]["all"]["n"] == 6
    assert len(seen) == 4 + 3


def test_bytes_that_changed_since_the_index_was_made_are_noticed(repository: str) -> None:
    stream = open_spec(spec(repository, stream=True))
    hashes = stream.table["image_hash"].tolist()
    changed = dataclasses.replace(stream, table=stream.table.assign(image_hash=[*hashes[:4], "0" * 64, hashes[5]]))
    with pytest.raises(DatasetError, match="image 4 is not what it was"):
        list(decoded(changed, range(6)))


def test_labels_of_a_stream_are_checked_before_anything_is_scored(repository: str) -> None:
    narrow = Opinion("mos", lower_better=False, range=(0, 3))
    with pytest.raises(DatasetError, match=r"row 4 .*: score is 4, outside the declared range 0\.\.3"):
        open_spec(spec(repository, stream=True, opinion=narrow))
    with pytest.raises(DatasetError, match="no column mos; found image, score"):
        open_spec(spec(repository, stream=True, columns=Columns("image", "mos")))
    with pytest.raises(DatasetError, match="6 images found, 9 declared"):
        open_spec(spec(repository, stream=True, images=9))


def test_a_pinned_archive_is_indexed_once_and_read_again_for_scores(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files = {"koniq10k.tgz": tgz(PICTURES), "meta_info.csv": LABELS}
    asked = dataclasses.replace(koniq(server), stream=True)
    assert asked.pinned
    opened = open_spec(asked)
    assert opened.table["file_name"].tolist() == [f"{i}.png" for i in range(4)]
    monkeypatch.setattr(streams, "pack_labels", lambda labels: pytest.fail("indexed again"))
    again = open_spec(asked)
    assert again.table.equals(opened.table)
    assert [item.index for item in decoded(again, [1, 3])] == [1, 3]


def test_an_archive_is_read_once_in_its_own_order(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files = {"koniq10k.tgz": tgz(dict(reversed(PICTURES.items()))), "meta_info.csv": LABELS}
    read, passes = streams._remote_entries, []
    monkeypatch.setattr(streams, "_remote_entries", lambda archive: passes.append(archive) or read(archive))
    opened = open_spec(dataclasses.replace(koniq(server), stream=True))
    assert opened.table["file_name"].tolist() == [f"{i}.png" for i in (3, 2, 1, 0)]
    assert len(passes) == 1
    assert [item.index for item in decoded(opened, range(4))] == [0, 1, 2, 3]
    assert len(passes) == 2


def test_what_an_archive_lacks_is_named_and_goes_on_only_when_asked(server: LocalServer) -> None:
    pictures = {name: content for name, content in PICTURES.items() if "2.png" not in name}
    server.files = {"koniq10k.tgz": tgz(pictures), "meta_info.csv": LABELS}
    asked = dataclasses.replace(koniq(server), stream=True)
    with pytest.raises(DatasetError, match=r"line 4: image 'koniq10k/512x384/2\.png' is missing \(1 of 4 images"):
        open_spec(asked)
    partial = open_spec(asked, allow_partial=True)
    assert (len(partial), len(partial.missing), partial.complete) == (3, 1, False)


def test_a_member_that_is_there_twice_is_not_chosen_by_chance(server: LocalServer) -> None:
    files = {f"{folder}/{i}.png": png(i) for folder in "ab" for i in range(4)}
    server.files = {"koniq10k.tgz": tgz(files), "meta_info.csv": LABELS}
    archive = dataclasses.replace(archives.packed(koniq(server)), path="**/{img_name}")
    with pytest.raises(DatasetError, match=r"koniq10k\.tgz: \*\*/0\.png fits a/0\.png and b/0\.png"):
        open_spec(koniq(server, archive=archive, stream=True))


def test_one_member_may_be_the_image_of_two_names(server: LocalServer) -> None:
    labels = b"img_name,mos,std\n0.png,1,1\na/0.png,2,1\n1.png,3,1\n2.png,4,1\n"
    server.files = {"koniq10k.tgz": tgz({f"a/{i}.png": png(i) for i in range(3)}), "meta_info.csv": labels}
    archive = dataclasses.replace(archives.packed(koniq(server)), path="**/{img_name}")
    kept, stream = (open_spec(koniq(server, archive=archive, stream=streamed)) for streamed in (False, True))
    hashes = [set(map(tuple, images.table[["file_name", "image_hash"]].to_numpy())) for images in (kept, stream)]
    assert hashes[0] == hashes[1]


def labels_inside(server: LocalServer, file: str, **options: Any) -> DatasetSpec:
    """A stream whose labels lie in its archive."""
    archive = dataclasses.replace(archives.packed(koniq(server)), labels=LabelFile(file))
    return koniq(server, archive=archive, stream=True, **options)


def test_labels_inside_a_streamed_archive_are_found_as_in_a_downloaded_one(server: LocalServer) -> None:
    tables = {"old/l.csv": LABELS.replace(b",4,", b",5,"), "./l.csv": LABELS}
    server.files = {"koniq10k.tgz": tgz({**tables, **PICTURES})}
    asked = labels_inside(server, "l.csv")
    kept = open_spec(dataclasses.replace(asked, stream=False))
    assert open_spec(asked).table["opinion"].tolist() == kept.table["opinion"].tolist() == [1, 2, 3, 4]
    with pytest.raises(DatasetError, match=r"\*\*/l\.csv fits old/l\.csv and l\.csv"):
        open_spec(labels_inside(server, "**/l.csv", name="anywhere"))
    with pytest.raises(DatasetError, match=r"holds no label file m\.csv"):
        open_spec(labels_inside(server, "m.csv"))


def test_labels_of_an_earlier_archive_are_not_taken_for_a_new_one(server: LocalServer) -> None:
    newer = LABELS.replace(b",4,", b",5,")
    server.files = {"koniq10k.tgz": tgz({"l.csv": LABELS, **PICTURES}), "new.tgz": tgz({"l.csv": newer, **PICTURES})}
    asked = labels_inside(server, "l.csv")
    moved = dataclasses.replace(archives.packed(asked), images=remote(server, "new.tgz"))
    assert open_spec(asked).table["opinion"].tolist() == [1, 2, 3, 4]
    assert open_spec(dataclasses.replace(asked, archive=moved)).table["opinion"].tolist() == [1, 2, 3, 5]
    server.files["koniq10k.tgz"] = server.files["new.tgz"]
    assert open_spec(asked).table["opinion"].tolist() == [1, 2, 3, 4]
    assert open_spec(dataclasses.replace(asked, version="2")).table["opinion"].tolist() == [1, 2, 3, 5]


@pytest.mark.parametrize(
    ("content", "message"), [(b"nonsense" * 20, "damaged"), (tgz(PICTURES)[:300], "broke off after 0 images")]
)
def test_a_damaged_archive_is_named(server: LocalServer, content: bytes, message: str) -> None:
    server.files = {"koniq10k.tgz": content, "meta_info.csv": LABELS}
    with pytest.raises(DatasetError, match=message):
        open_spec(dataclasses.replace(koniq(server), stream=True))


def test_an_entry_too_large_for_memory_is_refused(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LARGEST_IMAGE", 100)
    server.files = {"koniq10k.tgz": tgz({**PICTURES, "koniq10k/512x384/0.png": png(0)}), "meta_info.csv": LABELS}
    with pytest.raises(DatasetError, match="has more than 100 bytes"):
        open_spec(dataclasses.replace(koniq(server), stream=True))


def test_a_stream_is_not_led_from_https_elsewhere(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files = {"koniq10k.tgz": tgz(PICTURES), "meta_info.csv": LABELS}
    spec = koniq(server, stream=True)
    assert spec.archive is not None
    moved = dataclasses.replace(spec.archive.images, address=f"{server.address}/old")
    asked = dataclasses.replace(spec, archive=dataclasses.replace(spec.archive, images=moved))
    server.redirects = {"old": "/koniq10k.tgz"}
    assert len(open_spec(asked)) == 4
    seen: list[tuple[str, str]] = []

    def refuse(address: str, location: str) -> None:
        seen.append((address, location))
        raise DownloadError("redirected")

    monkeypatch.setattr(download, "_refuse_plain", refuse)
    with pytest.raises(DatasetError, match="redirected"):
        open_spec(dataclasses.replace(asked, version="2"))
    assert seen[0] == (f"{server.address}/old", "/koniq10k.tgz")


def test_without_a_network_a_stream_says_so(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files = {"koniq10k.tgz": tgz(PICTURES), "meta_info.csv": LABELS}
    asked = dataclasses.replace(koniq(server), stream=True)
    open_spec(asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DatasetError, match="HF_HUB_OFFLINE is set"):
        list(decoded(open_spec(asked), [0]))


YAML = """\
name: photos
version: "1"
description: a test
licence: none
citation: none
images: 6
hub: {repository: someone/photos, split: train, revision: REVISION}
columns: {image: image, opinion: score}
opinion: {kind: mos, lower_better: false, range: [0, 5]}
"""


SCRIPT = """
import sys
import harness
from harness.results.measure import Settings
from qualiclip_plugin.utils.errors import QualiCLIPError
folder, asked = sys.argv[1], sys.argv[2:]
for name in asked:
    options = {"output": f"{folder}/{name}", "include": (folder,), "settings": Settings()}
    try:
        scorer, dataset = "tests.support.harness_data:brightness", name.split("-")[0]
        frame = harness.evaluate(scorer, dataset, stream="stream" in name, **options)
        print(int(frame["n"].iloc[0]))
    except QualiCLIPError as error:
        print(error)
"""


def evaluate_elsewhere(server: LocalServer, folder: Path, *names: str, **environment: str) -> list[str]:
    """One line for each name, from a process that takes the local server for the Hub."""
    fixed = {"HF_ENDPOINT": server.address, "HF_HOME": str(folder / "hf"), "no_proxy": "*", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, str(folder), *names]
    cache = {"QUALICLIP_CACHE": str(folder / "cache")}
    done = subprocess.run(
        command, env={**os.environ, **fixed, **cache, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_from_a_hub_to_scores_cached_streamed_and_offline(server: LocalServer, tmp_path: Path) -> None:
    server.publish("someone/photos", {"data/train-00000-of-00001.parquet": packed(tmp_path / "photos")})
    (tmp_path / "photos.yaml").write_text(YAML.replace("REVISION", COMMIT))
    newer = YAML.replace("REVISION", "f" * 40).replace("name: photos", "name: newer")
    (tmp_path / "newer.yaml").write_text(newer)
    server.token = "mine"  # noqa: S105
    assert evaluate_elsewhere(server, tmp_path, "photos", "photos-stream", HF_TOKEN=server.token) == ["6", "6"]
    # Every file was asked for at the pinned commit.
    assert all(COMMIT in path for path in server.paths if "/resolve/" in path)
    asked = len(server.paths)
    again, other = evaluate_elsewhere(server, tmp_path, "photos-offline", "newer", HF_HUB_OFFLINE="1")
    assert again == "6"
    assert other == f"newer: Hub someone/photos is cached, but not at revision {'f' * 40}"
    assert len(server.paths) == asked
    assert not (tmp_path / "newer").exists()
    tables = {
        (tmp_path / name / "leaderboard.csv").read_text() for name in ("photos", "photos-stream", "photos-offline")
    }
    assert len(tables) == 1


def test_a_local_set_is_no_stream(tmp_path: Path) -> None:
    from harness.data.open import open_dataset

    folder = opinion_folder(tmp_path / "set", 4)
    assert open_dataset(str(folder), stream=True).table.equals(open_dataset(str(folder)).table)
