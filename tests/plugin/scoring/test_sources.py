"""What a large run finds in folders, storage and Parquet files, and how it is cut; no cluster is needed here."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch import nn

from qualiclip_plugin.scoring import sources
from qualiclip_plugin.scoring.local import StoredImage, score_files
from qualiclip_plugin.scoring.sources import Files, Listing, Rows, from_record, list_sources
from qualiclip_plugin.scoring.storage import filesystem, shown, split_address, without_secrets
from qualiclip_plugin.utils.errors import ConfigError, first_line
from tests.support import fake_hub


class Mean(nn.Module):
    """Scores an image by its mean."""

    attributes = ()

    def forward(self, images: object, attributes: bool = False) -> object:
        return images.mean(dim=(1, 2, 3)).unsqueeze(1)  # type: ignore[attr-defined]


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 36), (value,) * 3).save(file, "PNG")
    return file.getvalue()


def rows_of(listing: Listing) -> pd.DataFrame:
    """Path, mean grey level and error of every image of a listing, as a worker would see them."""
    portions = [from_record(json.loads(json.dumps(asdict(portion)))) for portion in listing.portions]
    assert portions == list(listing.portions)
    rows = [row for portion in portions for row in score_files(portion.images(), Mean())]
    values = [None if row.score is None else round(row.score * 255) for row in rows]
    return pd.DataFrame({"path": [row.path for row in rows], "value": values, "error": [row.error for row in rows]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of grey 0, 10, ... in two folders, with files beside them that are none."""
    for index in range(6):
        path = tmp_path / "photos" / ("a b" if index % 2 else ".") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(10 * index))
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / ".hidden.png").write_bytes(png(200))
    return tmp_path / "photos"


def write_parquet(path: Path, column: str, values: list[object], kind: pa.DataType, group: int = 2) -> Path:
    table = pa.table({"id": pa.array(range(len(values))), column: pa.array(values, kind)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


HUGGING_FACE_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def test_a_folder_is_cut_into_equal_portions_in_the_order_of_names(folder: Path) -> None:
    listing = list_sources([str(folder)], 4)
    assert [len(portion) for portion in listing.portions] == [4, 2]
    assert listing.images == 6
    rows = rows_of(listing)
    assert rows["path"].tolist() == sorted(rows["path"])
    assert sorted(rows["value"]) == [0, 10, 20, 30, 40, 50]
    assert list_sources([str(folder)], 4) == listing


def test_a_file_in_two_sources_is_taken_once(folder: Path) -> None:
    listing = list_sources([str(folder / "0.png"), str(folder), str(folder / "*.png")], 10)
    assert sorted(rows_of(listing)["value"]) == [0, 10, 20, 30, 40, 50]
    assert rows_of(listing)["value"][0] == 0


def test_the_digest_tells_a_changed_file_and_a_changed_list(folder: Path) -> None:
    digests = {list_sources([str(folder)], size).digest for size in (2, 4)}
    assert len(digests) == 1
    (folder / "0.png").write_bytes(png(1))
    digests.add(list_sources([str(folder)], 4).digest)
    (folder / "0.png").unlink()
    digests.add(list_sources([str(folder)], 4).digest)
    assert len(digests) == 3


def test_a_name_that_is_no_text_survives(tmp_path: Path) -> None:
    path = tmp_path / "odd\udc80.png"
    path.write_bytes(png(7))
    rows = rows_of(list_sources([str(tmp_path)], 4))
    assert rows["path"].tolist() == [f"{tmp_path}/odd\\udc80.png"]
    assert rows["value"].tolist() == [7]


@pytest.mark.parametrize(
    "make", [lambda f: f"file://{f}", lambda f: f"file://{f}/**/*.png", lambda f: f"local://{f}"]
)
def test_addresses_of_pyarrow_and_of_fsspec(folder: Path, make: Callable[[Path], str]) -> None:
    rows = rows_of(list_sources([make(folder)], 4))
    assert sorted(rows["value"]) == [0, 10, 20, 30, 40, 50]
    scheme = make(folder).split("://")[0]
    assert rows["path"].str.startswith(f"{scheme}://{folder}").all()


def test_memory(folder: Path) -> None:
    storage = fsspec.filesystem("memory")
    storage.pipe({f"/album/{index}.png": png(index) for index in range(3)})
    try:
        assert rows_of(list_sources(["memory://album"], 2))["value"].tolist() == [0, 1, 2]
        assert rows_of(list_sources(["memory://album/2.png"], 2))["value"].tolist() == [2]
    finally:
        storage.rm("/album", recursive=True)


@pytest.fixture
def web(folder: Path) -> Iterator[str]:
    """Address of a server that lists and gives the folder."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_web_server(web: str, folder: Path) -> None:
    pytest.importorskip("aiohttp", reason="needs the extra ray")
    rows = rows_of(list_sources([f"{web}/"], 4))
    assert rows["path"].tolist() == [f"{web}/{n}.png" for n in (0, 2, 4, "a%20b/1", "a%20b/3", "a%20b/5")]
    assert rows["value"].tolist() == [0, 20, 40, 10, 30, 50]
    listing = list_sources([f"{web}/0.png", f"{web}/2.png"], 4)
    (folder / "2.png").unlink()
    rows = rows_of(listing)
    assert rows["value"][0] == 0
    assert rows["error"][1].startswith(f"{web}/2.png: cannot be read: ")


def test_a_dataset_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import HfFileSystem

    images: list[object] = [{"bytes": png(value), "path": "same.png"} for value in (3, 4, 5)]
    file = write_parquet(tmp_path / "train.parquet", "image", images, HUGGING_FACE_IMAGE)
    with fake_hub.serving() as hub:
        fake_hub.use(hub, monkeypatch)
        filesystem.cache_clear()
        HfFileSystem.clear_instance_cache()
        repository = hub.files["datasets", "me/photos"]
        repository |= {"README.md": b"# Photos", "data/train.parquet": file.read_bytes()}
        rows = rows_of(list_sources(["hf://datasets/me/photos"], 2))
        with pytest.raises(ConfigError, match="neither images nor Parquet files"):
            list_sources(["hf://datasets/me/empty"], 2)
    filesystem.cache_clear()
    HfFileSystem.clear_instance_cache()
    assert rows["path"].tolist() == [f"hf://datasets/me/photos/data/train.parquet#{row}" for row in range(3)]
    assert rows["value"].tolist() == [3, 4, 5]


@pytest.mark.parametrize("kind", ["struct", "binary", "large_binary"])
def test_images_in_parquet(tmp_path: Path, kind: str) -> None:
    images: list[object] = [png(value) for value in range(7)]
    images[3] = None
    images[4] = b"no image"
    if kind == "struct":
        images = [image and {"bytes": image, "path": None} for image in images]
    file = write_parquet(
        tmp_path / "a.parquet", "picture", images, HUGGING_FACE_IMAGE if kind == "struct" else getattr(pa, kind)()
    )
    listing = list_sources([str(file)], 3)
    assert [(portion.start, portion.stop) for portion in listing.portions if isinstance(portion, Rows)] == [
        (0, 3),
        (3, 6),
        (6, 7),
    ]
    rows = rows_of(listing)
    assert rows["path"].tolist() == [f"{file}#{row}" for row in range(7)]
    assert rows["value"].tolist()[:3] == [0, 1, 2]
    assert rows["value"].tolist()[5:] == [5, 6]
    assert rows["error"][3] == f"{file}#3: cannot be read: the row is empty"
    assert rows["error"][4].startswith(f"{file}#4: not an image")


@pytest.mark.parametrize("at_once", [3, 32])
def test_a_portion_reads_its_row_groups_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(sources, "ROWS_AT_ONCE", at_once)
    file = write_parquet(tmp_path / "a.parquet", "image", [png(v) for v in range(40)], pa.binary(), group=10)
    listing = list_sources([str(file)], 7)
    read: list[int] = []
    iterate = pq.ParquetFile.iter_batches

    def watch(self: pq.ParquetFile, *arguments: object, row_groups: list[int], **options: object) -> object:
        read.extend(row_groups)
        return iterate(self, *arguments, row_groups=row_groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watch)
    for portion in listing.portions:
        read.clear()
        assert isinstance(portion, Rows)
        values = [row.score for row in score_files(portion.images(), Mean())]
        assert [round((value or 0) * 255) for value in values] == list(range(portion.start, portion.stop))
        assert read == list(range(portion.start // 10, (portion.stop - 1) // 10 + 1))


def test_paths_in_parquet_are_relative_to_it(folder: Path) -> None:
    paths: list[object] = ["photos/0.png", "photos/gone.png", str(folder / "2.png"), f"file://{folder}/4.png"]
    file = write_parquet(folder.parent / "list.parquet", "path", paths, pa.string())
    for source, name in ((str(file), f"{folder}"), (f"file://{file}", f"file://{folder}")):
        rows = rows_of(list_sources([source], 3))
        assert rows["path"].tolist() == [
            f"{name}/0.png",
            f"{name}/gone.png",
            f"{name}/2.png",
            f"file://{folder}/4.png",
        ]
        assert rows["value"].tolist()[2:] == [20, 40]
        assert f"{name}/gone.png: " in rows["error"][1]


def test_the_column_is_found_or_asked_for(tmp_path: Path) -> None:
    two = pa.table({"left": [png(1)], "right": [png(2)], "path": ["x.png"]})
    pq.write_table(two, tmp_path / "two.parquet")
    with pytest.raises(ConfigError, match=r"two.parquet: which column holds the images\? .*: left, right, path"):
        list_sources([str(tmp_path)], 2)
    assert rows_of(list_sources([str(tmp_path)], 2, "right"))["value"].tolist() == [2]
    with pytest.raises(ConfigError, match="no column 'middle'; there are left, right, path"):
        list_sources([str(tmp_path)], 2, "middle")


@pytest.mark.parametrize("values", [[1], [{"width": 1}]])
def test_a_column_without_images_or_paths_is_refused(tmp_path: Path, values: list[object]) -> None:
    table = pa.table({"image": [png(1)], "other": values})
    pq.write_table(table, tmp_path / "one.parquet")
    with pytest.raises(ConfigError, match=r"one.parquet: column 'other' holds .*, neither images nor paths"):
        list_sources([str(tmp_path)], 2, "other")


def test_paths_of_a_categorical_column_are_found(tmp_path: Path) -> None:
    table = pa.table({"path": pa.array(["a.png", "a.png"]).dictionary_encode()})
    (tmp_path / "lists").mkdir()
    pq.write_table(table, tmp_path / "lists" / "list.parquet")
    (portion,) = list_sources([str(tmp_path / "lists")], 2).portions
    assert list(portion.images()) == [str(tmp_path / "lists" / "a.png")] * 2


@pytest.mark.parametrize(("kind", "most"), [(pa.string(), 1), (pa.large_string(), 1), (pa.binary(), 3)])
def test_paths_are_read_in_larger_pieces_than_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: pa.DataType, most: int
) -> None:
    pieces: list[int] = []
    read = pq.ParquetFile.iter_batches

    def counted(*arguments: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        for batch in read(*arguments, **options):
            pieces.append(len(batch))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    file = write_parquet(tmp_path / "a.parquet", "path", [str(n) for n in range(96)], kind, group=96)
    last = list_sources([str(file)], 10, "path").portions[-1]
    assert len(list(last.images())) == 6
    assert len(pieces) == most


def test_a_parquet_file_that_changes_under_a_run_gives_errors(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", "image", [png(v) for v in range(4)], pa.binary())
    listing = list_sources([str(file)], 2)
    file.write_bytes(file.read_bytes()[:-20])
    rows = rows_of(listing)
    assert rows["path"].tolist() == [f"{file}#{row}" for row in range(4)]
    assert rows["error"].str.contains("cannot be read: ").all()
    write_parquet(file, "image", [png(7)] * 3, pa.binary())
    rows = rows_of(listing)
    assert rows["value"].tolist()[:3] == [7, 7, 7]
    assert rows["error"][3] == f"{file}#3: cannot be read: the file has fewer rows than when it was listed"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone", "gone: no such file or folder"),
        ("user/photos", "a dataset of the Hugging Face Hub is written hf://datasets/user/photos"),
        ("gone/*.png", "the pattern matches nothing"),
        ("texts", "texts: no image in this folder"),
        ("both", "both: holds both images and Parquet files"),
        ("broken.parquet", "broken.parquet: no readable Parquet file"),
        ("file:///gone/for/ever", "file:///gone/for/ever: cannot be listed: "),
        ("file:///dev/shm", "file:///dev/shm: neither images nor Parquet files there"),
        ("abacus://bead", "abacus://bead: Protocol not known: abacus"),
        ("http://127.0.0.1:9/x?token=secret", "http://127.0.0.1:9/x: cannot be listed"),
        ("http://secret@[/x?token=secret", "http://[/x: Invalid IPv6 URL"),
    ],
)
def test_a_source_without_images_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    Path("texts/a.txt").touch()
    Path("both").mkdir()
    Path("both/a.png").write_bytes(png(1))
    Path("both/a.parquet").touch()
    Path("broken.parquet").write_text("no table")
    with pytest.raises(ConfigError) as caught:
        list_sources([source], 2)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_secrets_of_an_address_are_shown_nowhere() -> None:
    address = "s3://key:secret@bucket/a b/*.jpg?region=x&endpoint_override=host:1"
    root, path = split_address(address)
    assert root == "s3://key:secret@bucket?region=x&endpoint_override=host:1"
    assert path == "bucket/a b/*.jpg"
    assert shown(root, "bucket/a b/1.jpg") == "s3://bucket/a b/1.jpg"
    assert without_secrets(address) == "s3://bucket/a b/*.jpg"
    assert len(Files(root, (path,))) == 1


def test_secrets_of_web_addresses_are_shown_nowhere(web: str, folder: Path) -> None:
    pytest.importorskip("aiohttp", reason="needs the extra ray")
    secret = web.replace("://", "://user:password@")
    listing = list_sources([f"{secret}/0.png?token=secret", f"{secret}/2.png?token=secret"], 4)
    (folder / "2.png").unlink()
    rows = rows_of(listing)
    assert rows["path"].tolist() == [f"{web}/0.png", f"{web}/2.png"]
    assert rows["value"][0] == 0
    assert rows["error"][1].startswith(f"{web}/2.png: cannot be read: ")
    with pytest.raises(ConfigError, match="cannot be listed: ") as caught:
        list_sources([f"{secret}/gone.png?token=secret"], 4)
    assert "secret" not in f"{caught.value}{rows.to_csv()}"
    assert "password" not in f"{caught.value}{rows.to_csv()}"


def test_web_addresses_in_parquet_keep_their_secrets_and_are_told_apart(web: str, folder: Path) -> None:
    pytest.importorskip("aiohttp", reason="needs the extra ray")
    secret = web.replace("://", "://user:password@")
    (folder / "list").mkdir()
    addresses: list[object] = [
        f"{secret}/0.png?X-Amz-Signature=secret",
        f"{secret}/gone.png?X-Amz-Signature=secret",
        f"{secret}/2.png",
        "../4.png?X-Amz-Signature=secret",
        "http://[/a.png",
    ]
    write_parquet(folder / "list" / "list.parquet", "url", addresses, pa.string())
    rows = rows_of(list_sources([f"{secret}/list/list.parquet?X-Amz-Signature=secret/secret"], 10))
    name = f"{web}/list/list.parquet"
    assert rows["path"].tolist() == [f"{name}#0", f"{name}#1", f"{web}/2.png", f"{name}#3", "http://[/a.png"]
    assert rows["value"].dropna().tolist() == [0, 20, 40]
    assert rows["error"][1].startswith(f"{name}#1: cannot be read: {web}/gone.png")
    assert "secret" not in rows.to_csv()
    assert "password" not in rows.to_csv()


def test_the_digest_tells_addresses_apart_that_have_one_name(web: str) -> None:
    pytest.importorskip("aiohttp", reason="needs the extra ray")
    digests = {list_sources([f"{web}/0.png?id={number}"], 4).digest for number in (1, 1, 2)}
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("address", "bare"),
    [
        ("https://user:secret@host/a.jpg?token=secret", "https://host/a.jpg"),
        ("https://host:8000/a@2x.jpg", "https://host:8000/a@2x.jpg"),
        ("http://secret@[host/a.jpg", "http://[host/a.jpg"),
        ("memory://album/a.jpg", "memory://album/a.jpg"),
    ],
)
def test_names_of_addresses_hold_no_secrets(address: str, bare: str) -> None:
    assert without_secrets(address) == bare
    assert shown("", address) == bare
    assert first_line(OSError(f"404, from {address} and no other")) == f"404, from {bare} and no other"


def test_a_stored_image_that_cannot_be_read_or_decoded_is_named() -> None:
    def broken() -> bytes:
        raise TimeoutError("the storage did not answer")

    rows = list(score_files([StoredImage("far/1.png", broken), StoredImage("far/2.png", lambda: b"")], Mean()))
    assert [row.path for row in rows] == ["far/1.png", "far/2.png"]
    assert rows[0].error == "far/1.png: cannot be read: the storage did not answer"
    assert rows[1].error == "far/2.png: the file is empty"
    assert np.isnan([row.score or np.nan for row in rows]).all()
