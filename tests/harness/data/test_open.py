"""Datasets: what is read, and what bad input is told."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.data import ladders
from harness.data.cache import MANIFEST, check_cached
from harness.data.decode import batches, decoded, in_background
from harness.data.labels import LABELS, pack_labels, unpack_labels
from harness.data.metadata import local_spec
from harness.data.open import open_dataset, open_datasets, open_spec
from harness.data.resizing import resize_shorter_side
from harness.data.rows import image_bytes
from harness.data.sources import from_rows
from harness.data.spec import (
    Columns,
    DatasetSpec,
    Hub,
    Opinion,
    catalogue,
    find_spec,
    read_folder,
    read_spec,
    shipped_specs,
)
from qualiclip_plugin.utils.errors import ConfigError, DatasetError, MachineError
from tests.support.harness_data import opinion_folder, picture, write_images, write_metadata

MINIMAL = """\
name: mine
version: "1"
description: some photographs
licence: mine
citation: me
folder: somewhere
"""
NO_SOURCE = MINIMAL.replace("folder: somewhere\n", "")


def packed_yaml(images: dict[str, str] | None = None, labels: dict[str, str] | None = None) -> str:
    """A specification of an archive whose files have some other settings."""
    archive = {"images": {"file": "a.zip", **(images or {})}, "labels": {"file": "b.csv", **(labels or {})}}
    return NO_SOURCE + f"archive: {json.dumps({**archive, 'path': '{file_name}'})}\n"


def test_local_folder_gives_labels_hashes_and_bytes(tmp_path: Path) -> None:
    folder = opinion_folder(tmp_path / "my photos é", 5)
    images = open_dataset(str(folder))
    assert images.spec.name == "my photos é"
    assert images.table["file_name"].tolist() == [f"{i}.png" for i in range(5)]
    assert images.table["opinion"].tolist() == [1, 0, 2, 3, 4]
    assert list(images.table.columns) == [*LABELS, "image_hash"]
    for index in range(5):
        content = (folder / f"{index}.png").read_bytes()
        assert image_bytes(images.rows[index]["image"]) == content
        assert images.table["image_hash"][index] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("set/split=all", "split=all"),
        ("mine=set/split=all", "mine"),
        ("mine=set/split=all/metadata.csv", "mine"),
        ("=set/split=all", "split=all"),
        ("mine=ladders", "mine"),
    ],
)
def test_a_path_may_hold_an_equals_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, name: str
) -> None:
    opinion_folder(tmp_path / "set/split=all", 4)
    opinion_folder(tmp_path / "ladders", 4)
    monkeypatch.chdir(tmp_path)
    assert open_dataset(given).spec.name == name


@pytest.mark.parametrize("given", ["", "=", "mine=", "mine=nowhere"])
def test_no_path_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.chdir(opinion_folder(tmp_path, 4))
    with pytest.raises(DatasetError, match=f"no dataset and no folder named '{given}'"):
        open_dataset(given)


def test_two_datasets_of_one_name_are_refused(tmp_path: Path) -> None:
    first, second = (str(opinion_folder(tmp_path / part / "test", 4)) for part in "ab")
    with pytest.raises(DatasetError) as raised:
        open_datasets([first, second], {})
    assert str(raised.value) == f"{first} and {second} are both named 'test'; give one as NAME=FOLDER"
    opened = open_datasets([first, f"other={second}", first], {})
    assert [images.spec.name for images in opened] == ["test", "other"]


def test_a_number_that_python_reads_is_a_number(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    # As a spreadsheet pads them, and as another keyboard writes them.
    opinions = ["1.5\N{NO-BREAK SPACE}", "\N{ARABIC-INDIC DIGIT TWO}", " 3 "]
    write_metadata(
        tmp_path,
        [{"file_name": f"{i}.png", "mos": mos, "votes": mos, "level": "1\xa0"} for i, mos in enumerate(opinions)],
    )
    table = open_dataset(str(tmp_path)).table
    assert table["opinion"].tolist() == table["votes"].tolist() == [1.5, 2, 3]
    assert table["level"].tolist() == [1, 1, 1]


def test_jsonl_and_subfolders(tmp_path: Path) -> None:
    write_images(tmp_path / "test", 2)
    write_images(tmp_path / "train", 2)
    rows = [
        {
            "file_name": f"{split}/{index}.png",
            "dmos_lower_better": index,
            "split": split,
            "reference": "a",
            "level": 1,
        }
        for split in ("test", "train")
        for index in range(2)
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    images = open_dataset(f"mine={tmp_path}")
    assert images.spec.name == "mine"
    assert images.spec.opinion is not None
    assert images.spec.opinion.lower_better
    assert images.table["split"].tolist() == ["test", "test", "train", "train"]
    assert images.table["file_name"].tolist() == [row["file_name"] for row in rows]


def test_an_imagefolder_with_a_folder_for_each_split(tmp_path: Path) -> None:
    for part, offset in (("test", 10), ("train", 20)):
        write_images(tmp_path / part, 3)
        rows = [{"file_name": f"{i}.png", "mos": i + offset} for i in range(3)]
        write_metadata(tmp_path / part, rows)
    images = open_dataset(str(tmp_path))
    assert images.table["file_name"].tolist() == [f"{part}/{i}.png" for part in ("test", "train") for i in range(3)]
    assert images.table["split"].tolist() == ["test"] * 3 + ["train"] * 3
    assert images.table["opinion"].tolist() == [10, 11, 12, 20, 21, 22]
    write_metadata(tmp_path / "train", [{"file_name": "../test/0.png", "mos": 1}])
    with pytest.raises(DatasetError, match=r"train/metadata\.csv, line 2: .* leads out of the folder"):
        open_dataset(str(tmp_path))
    (tmp_path / "test").rename(tmp_path / "all")
    with pytest.raises(DatasetError, match=r"all/metadata\.csv, line 2: split is 'all', which stands for the whole"):
        open_dataset(str(tmp_path))


def test_missing_images_are_named_and_left_out_only_when_asked(tmp_path: Path) -> None:
    folder = opinion_folder(tmp_path, 6)
    (folder / "2.png").unlink()
    (folder / "4.png").unlink()
    with pytest.raises(DatasetError, match=r"line 4: image '2\.png' is missing \(2 of 6 images of .* are\)"):
        open_dataset(str(folder))
    images = open_dataset(str(folder), allow_partial=True)
    assert images.table["file_name"].tolist() == ["0.png", "1.png", "3.png", "5.png"]
    assert not images.complete
    assert [text.rpartition(", ")[2] for text in images.missing] == [
        "line 4: image '2.png' is missing",
        "line 6: image '4.png' is missing",
    ]
    for name in ("0.png", "1.png"):
        (folder / name).unlink()
    with pytest.raises(DatasetError, match=r"2 images, at least 3 are needed: .*line 2: image '0\.png' is missing"):
        open_dataset(str(folder), allow_partial=True)


def test_an_image_that_cannot_be_read_is_named_and_left_out_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, read = opinion_folder(tmp_path / "photos", 5), Path.read_bytes
    reason = errno.EIO

    def fail(path: Path) -> bytes:
        if path.name == "2.png":
            raise OSError(reason, os.strerror(reason))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    told = r"image '2\.png' is missing, it cannot be read: Input/output error \(1 of 5 images of photos are\)"
    with pytest.raises(DatasetError, match=told):
        open_dataset(str(folder))
    found = open_dataset(str(folder), allow_partial=True)
    assert found.table["file_name"].tolist() == ["0.png", "1.png", "3.png", "4.png"]
    assert not found.complete
    assert image_bytes(found.rows[2]["image"]) == (folder / "3.png").read_bytes()
    reason = errno.EMFILE
    with pytest.raises(MachineError, match="Too many open files"):
        open_dataset(str(folder), allow_partial=True)


def test_resizing_is_part_of_what_a_score_is_kept_under(tmp_path: Path) -> None:
    images = open_dataset(str(opinion_folder(tmp_path, 4)))
    resized = dataclasses.replace(images, spec=dataclasses.replace(images.spec, resize=20))
    assert images.reading.keys() < resized.reading.keys()
    assert resized.reading["shorter_side"] == 20
    assert resized.reading["resizing"] == 1
    assert next(decoded(resized, [0])).pixels.shape == (3, 20, 24)


def test_a_changed_label_changes_the_labels_hash_and_no_image_hash(tmp_path: Path) -> None:
    folder = opinion_folder(tmp_path, 4)
    before = open_dataset(str(folder))
    text = (folder / "metadata.csv").read_text()
    (folder / "metadata.csv").write_text(text.replace("3.0,1.0", "3.5,1.0"))
    after = open_dataset(str(folder))
    assert before.labels_hash != after.labels_hash
    assert before.table["image_hash"].tolist() == after.table["image_hash"].tolist()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"file_name": "0.png", "mos": "1"}] * 3, r"line 3: 0\.png is already in line 2"),
        ([{"file_name": f"{i}.png", "mos": "good"} for i in range(3)], r"line 2 \(0\.png\): mos is 'good'"),
        ([{"file_name": f"{i}.png", "mos": "nan"} for i in range(3)], r"line 2 \(0\.png\): mos is 'nan'"),
        ([{"file_name": f"{i}.png", "mos": ""} for i in range(3)], r"line 2 \(0\.png\): mos is ''"),
        ([{"file_name": f"{i}.png", "mos": "inf"} for i in range(3)], r"line 2 \(0\.png\): mos is 'inf'"),
        ([{"file_name": f"{i}.png", "mos": "1_0"} for i in range(3)], r"line 2 \(0\.png\): mos is '1_0'"),
        ([{"file_name": f"{i + 2}.png", "mos": "1"} for i in range(3)], r"line 4: image '4\.png' is missing"),
        ([{"file_name": "../0.png", "mos": "1"}], r"line 2: '\.\./0\.png' leads out of the folder"),
        ([{"file_name": "/etc/passwd", "mos": "1"}], "leads out of the folder"),
        ([{"file_name": "https://host/0.png", "mos": "1"}], "leads out of the folder"),
        ([{"file_name": "", "mos": "1"}], "leads out of the folder"),
        ([{"file_name": f"{i}.png", "mos": "1"} for i in range(2)], "2 images, at least 3 are needed"),
        ([{"file_name": "0.png", "mos": "1", "dmos": "1"}], "both mos and dmos"),
        ([{"file_name": "0.png", "score": "1"}], "no column mos or dmos"),
        ([{"name": "0.png", "mos": "1"}], "no column file_name; found name, mos"),
        ([{"file_name": f"{i}.png", "mos": "1", "std": "-1"} for i in range(3)], "std is negative"),
        ([{"file_name": f"{i}.png", "distortion": "x", "level": "1.5"} for i in range(3)], r"level is 1\.5"),
        (
            [{"file_name": f"{i}.png", "mos": "1", "split": ("test", "all")[i % 2]} for i in range(4)],
            r"line 3: split is 'all', which stands for the whole set",
        ),
    ],
)
def test_bad_metadata_is_named_by_its_row(tmp_path: Path, rows: list[dict[str, str]], message: str) -> None:
    write_images(tmp_path, 4)
    write_metadata(tmp_path, rows)
    with pytest.raises(DatasetError, match=message):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,mos\n", "no rows"),
        ("", "no rows"),
        ("file_name,mos,mos\n0.png,1,1\n", "column mos occurs twice"),
        ("file_name,file_name,mos\n0.png,0.png,1\n", "column file_name occurs twice"),
        ("file_name;mos\n0.png;1\n", "line 1: 2 columns separated by ';'; save the table with commas"),
        ("file_name,mos\n0.png,1,1\n", "line 2: more cells than the 2 columns"),
        ("file_name,mos\n0.png\n1.png,1\n", "line 2: no value for mos"),
        ("file_name,mos\n\xff,1\n".encode("latin-1"), "cannot be read"),
    ],
)
def test_malformed_csv_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    write_images(tmp_path, 4)
    (tmp_path / "metadata.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatasetError, match=message):
        open_dataset(str(tmp_path))


def test_a_table_of_very_many_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,mos," + ",".join(f"c{i}" for i in range(100_000)) + "\n")
    with pytest.raises(DatasetError, match="line 1: more than 1000 columns"):
        open_dataset(str(tmp_path))


def test_short_rows_cannot_take_more_memory_than_the_table(tmp_path: Path) -> None:
    header = "file_name,mos," + ",".join(f"c{i}" for i in range(900))
    (tmp_path / "metadata.csv").write_text(header + "\n" + "".join(f"{i}.png,{i}\n" for i in range(100)))
    with pytest.raises(DatasetError, match="most rows have fewer cells than the 902 columns"):
        open_dataset(str(tmp_path))


def test_a_broken_json_line_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, 4)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "mos": 1}\n{"file_name": \n')
    with pytest.raises(DatasetError, match="line 2: not JSON"):
        open_dataset(str(tmp_path))


def test_a_folder_without_metadata_says_what_is_needed(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    with pytest.raises(DatasetError, match=r"no metadata\.csv and no metadata\.jsonl; one row per image"):
        open_dataset(str(tmp_path))


def test_an_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(DatasetError, match=r"'laders'; did you mean ladders"):
        find_spec("laders", catalogue())


def test_shipped_specs_are_valid_and_named_like_their_files() -> None:
    from harness.data.spec import SHIPPED

    assert set(shipped_specs()) == {path.stem for path in SHIPPED.glob("*.yaml")}


@pytest.mark.parametrize("spec", shipped_specs().values(), ids=shipped_specs())
def test_a_shipped_spec_is_pinned_or_says_that_it_is_not(spec: DatasetSpec) -> None:
    assert spec.pinned != ("revision is to be pinned" in spec.notes)
    assert spec.licence
    assert spec.citation
    assert spec.opinion is None or spec.seen_by
    assert spec.example or not spec.source.startswith(("Hub", "archive"))


def test_count_that_differs_is_refused_unless_partial_is_allowed(tmp_path: Path) -> None:
    folder = opinion_folder(tmp_path / "data", 4)
    spec = dataclasses.replace(local_spec(folder), images=5, name="five")
    with pytest.raises(DatasetError, match="4 images found, 5 declared"):
        open_dataset("five", {"five": spec})
    assert not open_dataset("five", {"five": spec}, allow_partial=True).complete


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "colour: red\n", "line 7: unknown setting 'colour'"),
        (MINIMAL + "columns: {imag: file}\n", r"line 7: unknown setting 'columns\.imag'; did you mean image\?"),
        (MINIMAL.replace("licence: mine\n", ""), "line 1: the setting 'licence' is missing"),
        (MINIMAL.replace('"1"', "1"), "line 2: version must be text"),
        (MINIMAL + "images: many\n", "line 7: images must be a whole number, not 'many'"),
        (MINIMAL + "exif: 1\n", "line 7: exif must be true or false"),
        (MINIMAL + "split: random\n", "split must be official or ratio or whole"),
        (MINIMAL + "opinion: {kind: mos, lower_better: false, range: [1]}\n", "range must be 2 values"),
        (MINIMAL + "opinion: {kind: mos, range: [1, 5]}\n", r"line 7: the setting 'opinion\.lower_better'"),
        (MINIMAL + "hub: {repository: a/b, split: test}\n", "exactly one of hub, archive, folder, generated"),
        (MINIMAL.replace("folder: somewhere\n", ""), "found none"),
        ("- a\n- b\n", "expected a mapping"),
        ("name: [\n", "not YAML"),
        (MINIMAL + "images: 3\nimages: 4\n", "line 8: images is already in line 7"),
        (MINIMAL + "stream: true\n", "only a hub or an archive can be a stream"),
        (MINIMAL + "columns: {opinion: mos}\n", r"opinion .* and columns\.opinion .* belong together"),
        (MINIMAL + "split: official\n", r"needs columns\.split"),
        *(
            (MINIMAL.replace("name: mine", f"name: {name!r}"), "name is .* not of the form letters, digits")
            for name in ("../../../x", "..", "/etc", "a/b", "", "a b", "caf\u00e9")
        ),
        (MINIMAL.replace('"1"', '"../2"'), "version is"),
        *(
            (NO_SOURCE + f"hub: {{split: test, repository: {repository}}}\n", r"hub\.repository is .* owner/name")
            for repository in ("photos", "../x", "a/..", "a/b/c", "/a/b")
        ),
        (NO_SOURCE + "hub: {repository: a/b, split: test, revision: ../x}\n", r"hub\.revision is '\.\./x'"),
        *(
            (packed_yaml(**{part: {key: value}}), rf"archive\.{part}\.{key} is {re.escape(repr(value))}")
            for part in ("images", "labels")
            for key, value in (
                ("file", "/etc/passwd"),
                ("file", "**/../../x"),
                ("repository", "../x"),
                ("revision", ".."),
                ("address", "file:///etc/passwd"),
            )
        ),
        (MINIMAL + 'derive: {column: file_name, pattern: "("}\n', r"derive\.pattern .* is no regular expression"),
    ],
)
def test_bad_yaml_is_named_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_spec(path)


def test_own_yaml_folder_is_included_and_clashes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MINIMAL)
    assert catalogue([tmp_path])["mine"].folder == str(tmp_path / "somewhere")
    (tmp_path / "other.yaml").write_text(MINIMAL)
    with pytest.raises(ConfigError, match="'mine' exists already"):
        read_folder(tmp_path)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_full_reference_qualities_are_read_and_checked(tmp_path: Path, suffix: str) -> None:
    import pandas as pd

    write_images(tmp_path, 4)
    path, image = tmp_path / f"rows.{suffix}", "image" if suffix == "parquet" else "file_name"
    rows = pd.DataFrame({image: [f"{i}.png" for i in range(4)], "level": range(4), "psnr": [None, 40.0, 0.0, 20.0]})
    if suffix == "parquet":
        rows["image"] = [{"bytes": (tmp_path / name).read_bytes(), "path": name} for name in rows["image"]]

    def opened(table: pd.DataFrame, asked: str = "psnr") -> list[float]:
        if suffix == "csv":
            table.to_csv(path, index=False)
        elif suffix == "jsonl":
            table.to_json(path, orient="records", lines=True)
        else:
            table.to_parquet(path)
        spec = dataclasses.replace(local_spec_of(path, image), full_reference=(asked,))
        return open_dataset("rows", {"rows": spec}).table[f"full_reference_{asked}"].tolist()

    assert opened(rows) == pytest.approx([float("nan"), 40, 0, 20], nan_ok=True)
    with pytest.raises(DatasetError, match="no column ssim"):
        opened(rows, "ssim")
    with pytest.raises(DatasetError, match="psnr is 'high', a number is needed"):
        opened(rows.assign(psnr=["", "40", "high", "20"]))


def local_spec_of(path: Path, image: str) -> DatasetSpec:
    values = {"description": "d", "licence": "l", "citation": "c", "version": "1"}
    return DatasetSpec(name="rows", folder=str(path), columns=Columns(image=image, level="level"), **values)


@pytest.fixture
def small_ladders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetSpec:
    monkeypatch.setenv("QUALICLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ladders, "SIDE", 32)
    monkeypatch.setattr(ladders, "PHOTOGRAPHS", {n: ladders.PHOTOGRAPHS[n] for n in ("chelsea", "coffee")})
    return shipped_specs()["ladders"]


def test_ladders_hold_every_type_at_every_strength(small_ladders: DatasetSpec) -> None:
    table = open_dataset("ladders").table
    assert len(table) == 2 * (1 + 3 * len(ladders.KINDS))
    counts = table[table["level"] > 0].groupby(["reference", "distortion"])["level"].apply(list)
    assert {tuple(levels) for levels in counts} == {(1, 2, 3)}
    qualities = table[table["level"] > 0][[f"full_reference_{name}" for name in ("psnr", "ssim", "gmsd")]]
    assert np.isfinite(qualities.to_numpy()).all()
    assert (qualities["full_reference_gmsd"] < 0).mean() > 0.99
    assert table[table["level"] == 0]["full_reference_psnr"].isna().all()
    assert set(counts.index) == {(photo, kind) for photo in ("chelsea", "coffee") for kind in ladders.KINDS}


def test_ladders_are_generated_once_and_the_same_again(small_ladders: DatasetSpec) -> None:
    folder = ladders.generate(small_ladders)
    first = {path.name: path.read_bytes() for path in folder.rglob("*.png")}
    stamp = folder.stat().st_mtime_ns
    assert ladders.generate(small_ladders) == folder
    assert folder.stat().st_mtime_ns == stamp
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir()
    folder.rmdir()
    again = ladders.generate(small_ladders)
    assert {path.name: path.read_bytes() for path in again.rglob("*.png")} == first


def test_a_new_type_of_distortion_does_not_enter_the_ladders(
    small_ladders: DatasetSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qualiclip_plugin import distortions

    photographs = {"chelsea": ladders.photograph("chelsea")}
    before = ladders.recipe_hash(small_ladders, photographs)
    more = {**distortions.DISTORTIONS, "another": next(iter(distortions.DISTORTIONS.values()))}
    monkeypatch.setattr(distortions, "DISTORTIONS", more)
    assert ladders.recipe_hash(small_ladders, photographs) == before


def test_every_photograph_of_the_ladders_is_in_an_installed_package() -> None:
    assert {ladders.photograph(name).shape for name in ladders.PHOTOGRAPHS} <= {(320, 320, 3), (300, 320, 3)}


@pytest.mark.parametrize(
    ("column", "flag", "lower_better"),
    [
        ("mos", "", False),
        ("dmos_lower_better", "", True),
        ("dmos_higher_better", "", False),
        ("dmos", "@lower_better=true", True),
        ("dmos", "@lower_better=false", False),
    ],
)
def test_a_dmos_has_the_direction_that_is_declared(
    tmp_path: Path, column: str, flag: str, lower_better: bool
) -> None:
    names = write_images(tmp_path / "set", 3)
    write_metadata(tmp_path / "set", [{"file_name": n, column: i} for i, n in enumerate(names)])
    spec = open_dataset(f"named={tmp_path / 'set'}{flag}").spec
    assert spec.opinion is not None
    assert (spec.name, spec.opinion.lower_better) == ("named", lower_better)
    if column == "dmos":
        with pytest.raises(
            DatasetError, match=r"name it dmos_lower_better or dmos_higher_better.*@lower_better=true"
        ):
            open_dataset(str(tmp_path / "set"))
    else:
        with pytest.raises(DatasetError, match="is for a column dmos"):
            open_dataset(f"{tmp_path / 'set'}@lower_better=true")


def test_a_new_version_of_the_ladders_is_another_recipe(small_ladders: DatasetSpec) -> None:
    photographs = {"chelsea": ladders.photograph("chelsea")}
    newer = dataclasses.replace(small_ladders, version="newer")
    assert ladders.recipe_hash(small_ladders, photographs) != ladders.recipe_hash(newer, photographs)


def test_exif_policy_and_unreadable_files(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(0, (20, 30))).save(tmp_path / "0.png", exif=exif)
    (tmp_path / "1.png").write_bytes(b"no image")
    write_metadata(tmp_path, [{"file_name": f"{i}.png", "mos": i} for i in range(3)])
    images = open_dataset(str(tmp_path))
    rotated, broken, plain = decoded(images, [0, 1, 2])
    assert rotated.pixels is not None
    assert rotated.pixels.shape == (3, 30, 20)
    assert broken.pixels is None
    assert "not an image" in broken.error or "cannot" in broken.error or "identify" in broken.error
    assert np.array_equal(plain.pixels, picture(2).transpose(2, 0, 1))
    kept = dataclasses.replace(images, spec=dataclasses.replace(images.spec, exif=False))
    assert next(decoded(kept, [0])).pixels.shape == (3, 20, 30)


def test_worker_processes_decode_the_same(tmp_path: Path) -> None:
    images = open_dataset(str(opinion_folder(tmp_path, 6)))
    here, there = (
        [item.pixels for item in decoded(images, range(6), workers, processes=workers > 0)] for workers in (0, 2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(here, there, strict=True))


def test_batches_hold_one_size_and_every_image_once(tmp_path: Path) -> None:
    sizes = [(40, 48), (16, 16), (40, 48), (40, 48), (16, 16), (40, 48)]
    images = open_dataset(str(opinion_folder(tmp_path, 6, size=lambda i: sizes[i])))
    found = list(batches(decoded(images, range(6)), lambda count, height, width: count <= 2))
    assert sorted(item.index for batch in found for item in batch) == list(range(6))
    assert all(len({item.pixels.shape for item in batch}) == 1 and len(batch) <= 2 for batch in found)
    assert [len(batch) for batch in found] == [2, 2, 2]


def test_resize_is_part_of_the_specification() -> None:
    import torch

    assert resize_shorter_side(torch.zeros(3, 100, 60, dtype=torch.uint8), 30).shape == (3, 50, 30)


def test_background_iteration_hands_on_errors_and_stops() -> None:
    def failing() -> object:
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(in_background(failing(), 2))
    endless = in_background(iter(int, 1), 2)
    assert next(endless) == 0
    endless.close()


def test_csv_and_parquet_files_are_datasets(tmp_path: Path) -> None:
    import datasets

    folder = opinion_folder(tmp_path / "photos", 5)
    (folder / "metadata.csv").rename(folder / "labels.csv")
    from_csv = open_dataset(str(folder / "labels.csv"))
    assert from_csv.spec.name == "labels"
    rows = {"image": [str(folder / f"{i}.png") for i in range(5)], "mos": from_csv.table["opinion"].tolist()}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "packed.parquet")
    packed = open_dataset(f"packed={tmp_path / 'packed.parquet'}")
    assert packed.table["opinion"].tolist() == from_csv.table["opinion"].tolist()
    assert packed.table["image_hash"].tolist() == from_csv.table["image_hash"].tolist()
    assert packed.table["file_name"].nunique() == 5


def test_a_parquet_file_without_opinions_is_refused(tmp_path: Path) -> None:
    import pandas as pd

    pd.DataFrame({"image": [1, 2, 3], "score": [1, 2, 3]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match="no column mos or dmos"):
        open_dataset(str(tmp_path / "a.parquet"))
    (tmp_path / "b.parquet").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="not a readable Parquet file"):
        open_dataset(str(tmp_path / "b.parquet"))
    with pytest.raises(DatasetError, match=r"neither a folder nor a \.csv"):
        open_dataset(str(Path(__file__)))


def test_more_bytes_of_images_than_one_array_holds() -> None:
    import datasets
    import pyarrow as pa

    # The same bytes in every chunk: together more than 2 GiB, in memory once.
    content = pa.array([bytes(2**26)])
    chunks = [pa.StructArray.from_arrays([content, pa.array([f"{i}.png"])], ["bytes", "path"]) for i in range(33)]
    info = datasets.DatasetInfo(features=datasets.Features({"image": datasets.Image()}))
    rows = datasets.Dataset(pa.table({"image": pa.chunked_array(chunks)}), info=info, fingerprint="large")
    spec = DatasetSpec("large", "1", "d", "l", "c", columns=Columns(image="image"))
    assert from_rows(rows, spec, "large").labels["file_name"].tolist() == [f"{i}.png" for i in range(33)]


@pytest.mark.parametrize("name", ["tid2013-xmba15", "koniq10k"])
def test_without_a_network_a_remote_dataset_says_what_is_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setenv("QUALICLIP_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DatasetError, match=r"TID2013|koniq10k\.tgz"):
        open_dataset(name)


def test_rows_of_a_parquet_file_without_an_image_are_missing(tmp_path: Path) -> None:
    import pandas as pd

    folder = opinion_folder(tmp_path / "photos", 6)
    images: list[dict[str, object] | None] = [{"bytes": None, "path": str(folder / f"{i}.png")} for i in range(6)]
    images[1], images[4] = None, {"bytes": None, "path": None}
    (folder / "5.png").unlink()
    path = tmp_path / "packed.parquet"
    pd.DataFrame({"image": images, "mos": range(6)}).to_parquet(path)
    with pytest.raises(DatasetError, match=r"packed\.parquet, row 1: image '000001' is missing \(3 of 6 images"):
        open_dataset(str(path))
    found = open_dataset(str(path), allow_partial=True)
    assert found.table["opinion"].tolist() == [0, 2, 3]
    assert [image_bytes(found.rows[i]["image"]) for i in range(3)] == [
        (folder / f"{i}.png").read_bytes() for i in (0, 2, 3)
    ]
    assert [text.rpartition(", ")[2].partition(":")[0] for text in found.missing] == ["row 1", "row 4", "row 5"]
    pd.DataFrame({"image": range(6), "mos": range(6)}).to_parquet(path)
    with pytest.raises(DatasetError, match=r"packed\.parquet: column image holds no images"):
        open_dataset(str(path))


@pytest.mark.parametrize(
    "elsewhere", ["{folder}/secret.png", "../secret.png", "link/secret.png", "inner/../../secret.png"]
)
def test_rows_and_names_read_no_file_outside_their_folder(tmp_path: Path, elsewhere: str) -> None:
    import pandas as pd

    folder = opinion_folder(tmp_path / "photos", 4)
    (folder / "0.png").rename(tmp_path / "secret.png")
    (folder / "link").symlink_to(tmp_path)
    names = [elsewhere.format(folder=tmp_path), "1.png", "2.png", "3.png"]
    images = [{"bytes": None, "path": name} for name in names]
    pd.DataFrame({"image": images, "mos": range(4)}).to_parquet(folder / "packed.parquet")
    (folder / "metadata.csv").write_text("file_name,mos\n" + "".join(f"{name},{i}\n" for i, name in enumerate(names)))
    (folder / "lines.jsonl").write_text("".join(json.dumps({"file_name": n, "mos": 1}) + "\n" for n in names))
    for file in ("packed.parquet", "metadata.csv", "lines.jsonl"):
        with pytest.raises(DatasetError, match=f"{file}, (row 0|line [12]): .*leads out of the folder"):
            open_dataset(str(folder / file))


def test_folders_whose_names_are_no_utf8(tmp_path: Path) -> None:
    folder = tmp_path / "caf\udce9"
    for part in ("tr\udce9in", "test"):
        opinion_folder(folder / part, 3)
    images = open_dataset(str(folder))
    assert images.spec.name == "caf\\udce9"
    assert images.table["split"].tolist() == ["test"] * 3 + ["tr\\udce9in"] * 3
    assert images.table["file_name"].tolist()[3] == "tr\\udce9in/0.png"
    assert unpack_labels(tmp_path, pack_labels(images.table))[0].equals(images.table)
    assert image_bytes(images.rows[3]["image"]) == (folder / "tr\udce9in" / "0.png").read_bytes()


def test_paths_in_a_parquet_file_are_relative_to_it(tmp_path: Path) -> None:
    import pandas as pd

    folder = opinion_folder(tmp_path / "photos", 4)
    held = [{"bytes": (folder / f"{i}.png").read_bytes(), "path": f"/elsewhere/{i}.png"} for i in range(2)]
    images = [*held, {"bytes": None, "path": "2.png"}, {"bytes": None, "path": "./3.png"}]
    pd.DataFrame({"image": images, "mos": range(4)}).to_parquet(folder / "packed.parquet")
    found = open_dataset(str(folder / "packed.parquet"))
    contents = [(folder / f"{i}.png").read_bytes() for i in range(4)]
    assert [image_bytes(found.rows[i]["image"]) for i in range(4)] == contents
    assert [item.error for item in decoded(found, range(4))] == [""] * 4


def test_rows_of_the_hub_name_only_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    own = tmp_path / "hub" / "datasets--a--b" / "snapshots"
    own.mkdir(parents=True)
    write_images(own, 3)
    write_images(tmp_path, 1)
    spec = DatasetSpec("mine", "1", "d", "l", "c", columns=Columns(image="image"), hub=Hub("a/b", "train"))
    rows = {"image": [{"bytes": None, "path": str(own / f"{i}.png")} for i in range(3)]}
    features = datasets.Features({"image": datasets.Image()})
    monkeypatch.setattr("harness.data.sources.hub_rows", lambda spec: datasets.Dataset.from_dict(rows, features))
    assert len(open_spec(spec)) == 3
    for other in (tmp_path / "0.png", own / "../../../0.png"):
        rows["image"][2]["path"] = str(other)
        with pytest.raises(DatasetError, match=r"row 2: .* leads out of the folder"):
            open_spec(spec)


def test_hub_datasets_are_read_by_column_name(tmp_path: Path) -> None:
    import datasets

    write_images(tmp_path / "photos", 6)
    rows = {
        "distorted": [{"bytes": (tmp_path / f"photos/{i}.png").read_bytes(), "path": f"{i}.png"} for i in range(6)],
        "dmos": [float(i) for i in range(6)],
        "reference_id": ["a", "a", "a", "b", "b", "b"],
        "intensity": [0, 1, 2, 0, 1, 2],
    }
    table = datasets.Dataset.from_dict(rows).cast_column("distorted", datasets.Image())
    (tmp_path / "hub/data").mkdir(parents=True)
    table.to_parquet(tmp_path / "hub/data/train-00000.parquet")
    values = {"description": "d", "licence": "l", "citation": "c", "version": "1"}
    spec = DatasetSpec(
        name="paired",
        hub=Hub(repository=str(tmp_path / "hub"), split="train"),
        columns=Columns(image="distorted", opinion="dmos", reference="reference_id", level="intensity"),
        opinion=Opinion("dmos", lower_better=True, range=(0, 5)),
        **values,
    )
    images = open_dataset("paired", {"paired": spec})
    assert images.table["opinion"].tolist() == rows["dmos"]
    assert images.table["reference"].tolist() == rows["reference_id"]
    assert images.table["level"].tolist() == rows["intensity"]
    assert image_bytes(images.rows[3]["image"]) == (tmp_path / "photos/3.png").read_bytes()
    narrow = dataclasses.replace(spec, opinion=Opinion("dmos", lower_better=True, range=(0, 4)))
    with pytest.raises(DatasetError, match=r"dmos is 5, outside the declared range 0\.\.4"):
        open_dataset("paired", {"paired": narrow})
    absent = dataclasses.replace(spec, columns=Columns(image="distorted", opinion="mos"))
    with pytest.raises(DatasetError, match="no column mos; found distorted, dmos"):
        open_dataset("paired", {"paired": absent})


@pytest.mark.parametrize("content", ["{", '{"files": {"a.png": 1}}', '{"files": {}, "seal": "other"}'])
def test_a_damaged_manifest_says_what_to_delete(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUALICLIP_CACHE", str(tmp_path))
    folder = tmp_path / "datasets" / "set"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(content)
    with pytest.raises(DatasetError, match=f"not a manifest: .*; delete {folder} to have it made again"):
        check_cached({str(folder / "a.png"): "0"})
