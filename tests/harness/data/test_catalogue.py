"""Every shipped dataset that is fetched, end to end: from its example, and from its real table where that is here."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
from pathlib import Path

import pytest

from harness.data.archives import ANYWHERE, image_path, labelled
from harness.data.decode import decoded
from harness.data.open import ImageSet, open_spec
from harness.data.spec import DatasetSpec, Hub, shipped_specs
from qualiclip_plugin.utils.errors import DatasetError
from tests.support.harness_data import png, tgz, zipped
from tests.support.local_server import LocalServer, remote

ARCHIVES = [name for name, spec in shipped_specs().items() if spec.archive]
REPOSITORIES = [name for name, spec in shipped_specs().items() if spec.hub]
TABLES = [name for name in ARCHIVES if shipped_specs()[name].verified != "nothing"]
"""Datasets whose real label table was tried; the folder ``shared/tables`` has most."""


def served(server: LocalServer, spec: DatasetSpec, table: Path, images: list[bytes]) -> DatasetSpec:
    """The archive dataset with its archive and its table on a server; the images are given to the rows in turn."""
    assert spec.archive is not None
    packed, labels = spec.archive.images.file, spec.archive.labels
    rows = labelled(spec, table)
    places = [image_path(spec.archive, row, where).replace(ANYWHERE, "any/folder/") for where, row in rows]
    files = dict(zip(places, itertools.cycle(images), strict=False)) | {"Readme.txt": b"hello"}
    if labels.address or labels.repository:
        server.files[labels.file] = table.read_bytes()
        labels = dataclasses.replace(
            labels, address=f"{server.address}/{labels.file}", repository="", sha256="", bytes=0
        )
    else:
        files[labels.file.replace(ANYWHERE, "any/folder/")] = table.read_bytes()
    server.files[packed] = zipped(files) if packed.endswith("zip") else tgz(files)
    archive = dataclasses.replace(spec.archive, images=remote(server, packed), labels=labels)
    return dataclasses.replace(spec, archive=archive, images=len(rows))


def check_opened(opened: ImageSet) -> None:
    """All images are there, and for each of them exactly the labels that the specification names."""
    spec, table = opened.spec, opened.table
    assert opened.complete
    assert table["opinion"].notna().all() == bool(spec.opinion)
    assert table["std"].notna().all() == bool(spec.columns.std)
    assert table["level"].notna().all() == bool(spec.columns.level)
    for column in ("reference", "distortion", "split"):
        assert (table[column] != "").all() == bool(getattr(spec.columns, column)), column
    first = next(iter(decoded(opened, [0])))
    assert first.pixels is not None
    assert min(first.pixels.shape[1:]) == (spec.resize or 40)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_is_read_from_its_example(server: LocalServer, tmp_path: Path, name: str, streamed: bool) -> None:
    spec = shipped_specs()[name]
    assert spec.archive is not None
    table = (tmp_path / "table").with_suffix(Path(spec.archive.labels.file).suffix)
    table.write_text(spec.example, encoding="utf-8")
    spec = served(server, spec, table, [png(seed) for seed in range(9)])
    check_opened(open_spec(dataclasses.replace(spec, stream=streamed)))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_repository_is_read_from_its_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, streamed: bool
) -> None:
    import pandas as pd

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    spec = shipped_specs()[name]
    assert spec.hub is not None
    rows = pd.read_csv(io.StringIO(spec.example))
    rows[spec.columns.image] = [{"bytes": png(seed), "path": None} for seed in range(len(rows))]
    (tmp_path / "hub/data").mkdir(parents=True)
    rows.to_parquet(tmp_path / f"hub/data/{spec.hub.split}-00000.parquet")
    local = dataclasses.replace(
        spec, hub=Hub(str(tmp_path / "hub"), spec.hub.split), images=len(rows), stream=streamed
    )
    check_opened(open_spec(local))


def real_table(shared_dir: Path, name: str) -> Path:
    """The real label table of a dataset."""
    table = shared_dir / f"tables/{name}.csv"
    if not table.is_file():
        pytest.skip(f"needs {table.name}, the real table, which is not at hand")
    return table


@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_the_real_table_is_read(shared_dir: Path, name: str) -> None:
    spec, table = shipped_specs()[name], real_table(shared_dir, name)
    assert spec.archive is not None
    rows = labelled(spec, table)
    assert len({image_path(spec.archive, row, where) for where, row in rows}) == len(rows) == spec.images
    if not spec.archive.labels.header:
        real, example = (next(csv.reader(io.StringIO(text))) for text in (table.read_text(), spec.example))
        assert real == example


def test_every_table_at_hand_is_read(shared_dir: Path) -> None:
    at_hand = {path.stem for path in (shared_dir / "tables").glob("*.csv")}
    assert at_hand.intersection(shipped_specs()) <= set(TABLES)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_a_dataset_opens_with_its_whole_real_table(server: LocalServer, shared_dir: Path, name: str) -> None:
    spec = served(server, shipped_specs()[name], real_table(shared_dir, name), [png(0)])
    # Tens of thousands of files on a disk take minutes; what unpacks them is the same for ten.
    check_opened(open_spec(dataclasses.replace(spec, stream=True)))


def test_a_name_that_does_not_say_its_distortion_is_refused(server: LocalServer, tmp_path: Path) -> None:
    spec, table = shipped_specs()["csiq"], tmp_path / "table.csv"
    table.write_text(spec.example)
    spec = served(server, spec, table, [png(0)])
    opened = open_spec(spec).table
    assert opened["distortion"].tolist() == ["AWGN", "jpeg2000", "fnoise"]
    assert opened["level"].tolist() == [1, 5, 3]
    table.write_text(f"{spec.example}1600.png,1600.png,0.0\n")
    with pytest.raises(DatasetError, match=r"line 5: dist_name is '1600\.png', not of the form"):
        labelled(spec, table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"img": "0.png", "moz1": 50}, {"img": "0.png", "moz1": 51}]', r"entry 1: 0\.png is already in entry 0"),
        ('[{"img": "0.png", "moz1": 50}, 3]', "not a list of JSON objects"),
        ('{"0.png": 50}', "not a list of JSON objects"),
        ('[{"img": "0.png", "moz1": NaN}]', "not JSON"),
        ("[", "not JSON"),
    ],
)
def test_a_list_of_labels_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "labels.json"
    table.write_text(text)
    with pytest.raises(DatasetError, match=message):
        labelled(shipped_specs()["aigciqa2023"], table)
