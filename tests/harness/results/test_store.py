"""The store: nothing lost, nothing mixed, whatever happens in between."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.data import labels
from harness.data.labels import label_table
from harness.data.parquet import DamagedError
from harness.data.spec import Columns, DatasetSpec
from harness.results.store import DTYPES, ScoreKey, Store, StoreError, slug
from harness.run.engine import unavailable_cell

SPEC = DatasetSpec("set", "1", "a test", "none", "none", folder="set")
KEY = ScoreKey("fake", "set@1", {"scorer": {"version": 1}})


def row(image: str, score: float = 1.0, error: str = "", finished: str = "2026-01-01T00:00:00.000+00:00") -> dict:
    return {
        "image_hash": image,
        "score": float("nan") if error else score,
        "error": error,
        "seconds": 0.5,
        "height": 4,
        "width": 5,
        "finished": finished,
        "device": "CPU",
    }


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.scores(KEY).empty
    store.append(KEY, [row("b", 0.1 + 0.2), row("a", -3.5)])
    store.append(KEY, [])
    store.append(KEY, [row("c", error="broken")])
    scores = Store(tmp_path).scores(KEY)
    assert scores["image_hash"].tolist() == ["a", "b", "c"]
    assert scores["score"].tolist()[:2] == [-3.5, 0.1 + 0.2]
    assert scores["error"].tolist() == ["", "", "broken"]
    assert list(scores.columns) == list(DTYPES)


def test_another_fingerprint_is_never_mixed_in(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(KEY, [row("a", 1.0)])
    for other in (
        ScoreKey("fake", "set@1", {"scorer": {"version": 2}}),
        ScoreKey("fake", "set@2", {"scorer": {"version": 1}}),
    ):
        assert other.fingerprint != KEY.fingerprint
        assert store.scores(other).empty


def test_a_part_moved_into_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    other = ScoreKey("fake", "set@1", {"scorer": {"version": 2}})
    store.append(KEY, [row("a")])
    store.append(other, [row("b")])
    (part,) = (tmp_path / "scores").rglob(f"*/{KEY.fingerprint[:16]}/part-*.parquet")
    part.rename(tmp_path / "scores/fake/set@1" / other.fingerprint[:16] / part.name)
    with pytest.raises(StoreError, match="another fingerprint"):
        store.scores(other)


def test_success_wins_over_failure_and_the_earlier_over_the_later(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(KEY, [row("a", error="broken", finished="2026-01-01"), row("b", 1.0, finished="2026-01-02")])
    store.append(KEY, [row("a", 5.0, finished="2026-01-03"), row("b", 2.0, finished="2026-01-03")])
    scores = store.scores(KEY)
    assert scores["score"].tolist() == [5.0, 1.0]
    assert scores["error"].tolist() == ["", ""]


def test_merging_keeps_every_row_in_one_part(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for index in range(5):
        store.append(KEY, [row(str(index), index), row("again", 7.0)])
    before = store.scores(KEY)
    store.merge(KEY)
    assert len(list(tmp_path.rglob("part-*.parquet"))) == 1
    assert store.scores(KEY).equals(before)
    store.merge(KEY)
    assert store.scores(KEY).equals(before)


def test_a_reader_survives_a_merge_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.append(KEY, [row("a")])
    store.append(KEY, [row("b")])
    listed = store._parts(KEY)
    answers = iter([listed])
    monkeypatch.setattr(store, "_parts", lambda key: next(answers, None) or sorted(tmp_path.rglob("part-*.parquet")))
    Store(tmp_path).merge(KEY)
    assert store.scores(KEY)["image_hash"].tolist() == ["a", "b"]


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(KEY, [row("a")])
    (part,) = tmp_path.rglob("part-*.parquet")
    table = pq.read_table(part)
    metadata = {**table.schema.metadata, b"schema_version": b"99"}
    pq.write_table(table.replace_schema_metadata(metadata), part)
    # Earlier releases wrote names without a hash.
    part.rename(part.with_name("part-0123456789abcdef0123456789abcdef.parquet"))
    with pytest.raises(StoreError, match="schema version 99"):
        store.scores(KEY)
    cell = store.cell_path("fake", "set")
    store.write_text(cell, '{"schema_version": 99}')
    with pytest.raises(StoreError, match="schema version 99"):
        store.cells()
    cell.write_text("{}")
    with pytest.raises(StoreError, match="not a result of this harness"):
        store.cells()


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(KEY, [row("a")])
    (part,) = tmp_path.rglob("part-*.parquet")
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(DamagedError, match=f"{part.name}: it was altered .* delete it and run again"):
        store.scores(KEY)
    part.rename(part.with_name("part-old.parquet"))
    with pytest.raises(DamagedError, match=r"part-old\.parquet: not a readable Parquet file"):
        store.scores(KEY)


def test_a_flipped_bit_is_never_another_score(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(KEY, [row("a", 0.25)])
    (part,) = tmp_path.rglob("part-*.parquet")
    whole = part.read_bytes()
    for bit in range(0, 8 * len(whole), 997):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        part.write_bytes(changed)
        with pytest.raises(DamagedError, match="it was altered"):
            store.scores(KEY)


def test_labels_come_back_as_they_were_and_are_checked(tmp_path: Path) -> None:
    rows = [{"file_name": f"{i}.png", "mos": 0.1 * i, "reference": "r"} for i in range(3)]
    spec = dataclasses.replace(SPEC, columns=Columns("file_name", "mos", reference="reference"))
    table = label_table(rows, spec).assign(image_hash=list("abc"))
    store = Store(tmp_path)
    store.write_labels("set@1", table)
    pd.testing.assert_frame_equal(store.labels("set@1")[0], table)
    path = store.labels_path("set@1")
    header = pq.read_schema(path).metadata
    altered = pa.Table.from_pandas(table.assign(opinion=[0.0, 0.1, 0.3]), preserve_index=False)
    pq.write_table(altered.replace_schema_metadata(header), path)
    with pytest.raises(DamagedError, match="altered"):
        store.labels("set@1")


def test_the_hash_of_labels_is_that_of_the_text_that_pandas_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["b,1.png", 'a"2.png', "a\n3.png", "é.png", " .png"]
    table = label_table([{"file_name": name, "mos": 0.1 * i, "std": ""} for i, name in enumerate(names)], SPEC)
    table = table.assign(opinion=[0.1 + 0.2, 1e-300, float("nan"), -1e22, 3.0], full_reference_psnr=float("inf"))
    table["level"] = pd.array([1, None, 0, 2, None], dtype="Int64")
    text = table.sort_values("file_name").to_csv(index=False, float_format="%.17g")
    monkeypatch.setattr(labels, "ROWS_AT_ONCE", 2)
    assert labels.labels_hash(table) == hashlib.sha256(text.encode()).hexdigest()
    assert labels.labels_hash(table.head(0)) == hashlib.sha256(text.partition("\n")[0].encode() + b"\n").hexdigest()


def test_a_cell_is_sealed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.cell_path("fake", "set")
    store.write_cell(path, unavailable_cell("fake", "set", "no weights"))
    assert store.read_cell(path)["reason"] == "no weights"
    path.write_text(path.read_text().replace("no weights", "no weighty"))
    with pytest.raises(DamagedError, match="altered"):
        store.read_cell(path)
    path.write_text(path.read_text().replace('"reason"', '"raison"'))
    with pytest.raises(DamagedError, match="'reason' is a required property"):
        store.read_cell(path)


def test_a_failed_write_leaves_the_store_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.append(KEY, [row("a")])
    before = sorted(path.name for path in tmp_path.rglob("*"))

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        store.append(KEY, [row("b")])
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert store.scores(KEY)["image_hash"].tolist() == ["a"]


def test_no_part_is_ever_without_its_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = 0

    def full_at_the_second(handle: int) -> None:
        nonlocal writes
        writes += 1
        if writes == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_at_the_second)
    with pytest.raises(StoreError, match="No space left on device"):
        Store(tmp_path).append(KEY, [row("a")])
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["identity.json"]


def test_what_is_there_already_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.write_text(tmp_path / "a.json", "1")
    monkeypatch.setattr(os, "fsync", lambda handle: pytest.fail("written"))
    store.write_text(tmp_path / "a.json", "1")


def test_a_root_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(blocked).append(KEY, [row("a")])


WRITER = """
import sys
from tests.harness.results.test_store import KEY, row
from harness.results.store import Store
store = Store(sys.argv[1])
for index in range(15):
    store.append(KEY, [row(f"{sys.argv[2]}-{index}", index)])
    if index % 5 == 4:
        store.merge(KEY)
"""


def test_two_writers_that_also_merge_lose_nothing(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name], cwd=root) for name in ("one", "two")
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    found = set(Store(tmp_path).scores(KEY)["image_hash"])
    assert found == {f"{name}-{index}" for name in ("one", "two") for index in range(15)}


@pytest.mark.parametrize("name", ["niqe", "clipiqa+", "qualiclip@precision=bf16"])
def test_plain_names_stay_file_names(name: str) -> None:
    assert slug(name) == name


def test_other_names_become_safe_and_stay_different() -> None:
    names = ["a/b", "a:b", "..", ".", "cmd:python score.py", "é", "x" * 300 + "/", "x" * 300, "x" * 301, "a_b"]
    slugs = [slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    assert all("/" not in name and not name.startswith(".") and len(name) < 100 for name in slugs)
