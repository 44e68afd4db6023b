"""Packed datasets, from a local server that cuts connections and serves damaged and hostile files."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from harness.data.download import fetch
from harness.data.open import open_dataset, open_spec
from harness.data.rows import image_bytes
from harness.data.spec import (
    Archive,
    Columns,
    DatasetSpec,
    LabelFile,
    Opinion,
    RemoteFile,
    Skip,
)
from harness.data.unpack import Limits, check_parquet, unpack
from qualiclip_plugin.utils import download
from qualiclip_plugin.utils.errors import DatasetError
from tests.support.harness_data import png, tgz, zipped
from tests.support.local_server import COMMIT, LocalServer, remote

PICTURES = {f"koniq10k/512x384/{i}.png": png(i) for i in range(4)}
LABELS = b"img_name,note,mos,std\n" + b"".join(b"%d.png,x,%d,1\n" % (i, i + 1) for i in range(4))


def koniq(server: LocalServer, **options: Any) -> DatasetSpec:
    archive = Archive(
        images=remote(server, "koniq10k.tgz"),
        labels=remote(server, "meta_info.csv", LabelFile),
        path="koniq10k/512x384/{img_name}",
    )
    values: dict[str, Any] = {
        "name": "koniq",
        "version": "1",
        "description": "a test",
        "licence": "none",
        "citation": "none",
        "columns": Columns(image="img_name", opinion="mos", std="std"),
        "opinion": Opinion("mos", lower_better=False, range=(1, 5)),
        "archive": archive,
        "images": 4,
    }
    return DatasetSpec(**{**values, **options})


def test_an_archive_dataset_is_joined_by_column_name(server: LocalServer) -> None:
    server.files = {"koniq10k.tgz": tgz(PICTURES), "meta_info.csv": LABELS}
    images = open_dataset("koniq", {"koniq": koniq(server)})
    assert images.table["file_name"].tolist() == [f"{i}.png" for i in range(4)]
    assert images.table["opinion"].tolist() == [1, 2, 3, 4]
    assert image_bytes(images.rows[2]["image"]) == PICTURES["koniq10k/512x384/2.png"]
    asked = len(server.requests)
    assert open_dataset("koniq", {"koniq": koniq(server)}).labels_hash == images.labels_hash
    assert len(server.requests) == asked


def test_labels_may_lie_in_a_zip_with_its_images(server: LocalServer) -> None:
    files = {"data.csv": b"name,mos_quality\n" + b"".join(b"%d.png,%d\n" % (i, i + 1) for i in range(4))}
    files |= {f"image/{i}.png": png(i) for i in range(4)}
    server.files = {"AGIQA.zip": zipped(files)}
    archive = Archive(remote(server, "AGIQA.zip"), LabelFile("data.csv"), "image/{name}")
    spec = koniq(server, archive=archive, columns=Columns(image="name", opinion="mos_quality"))
    assert len(open_dataset("koniq", {"koniq": spec})) == 4


@pytest.mark.parametrize(
    ("labels", "path", "message"),
    [
        (
            LABELS.replace(b"mos", b"score"),
            "koniq10k/512x384/{img_name}",
            "no column mos; found img_name, note, score",
        ),
        (
            LABELS,
            "koniq10k/1024x768/{img_name}",
            r"line 2: image .*0\.png' is missing \(4 of 4 images of koniq are\)",
        ),
        (LABELS, "koniq10k/{size}/{img_name}", "no column 'size'"),
        (LABELS.replace(b"3.png", b"../../../x"), "{img_name}", "leads out of the folder"),
        (LABELS.replace(b"x,4,", b"x,9,"), "koniq10k/512x384/{img_name}", r"outside the declared range 1\.\.5"),
        (LABELS.replace(b"3.png", b"2.png"), "koniq10k/512x384/{img_name}", r"2\.png is already in line 4"),
        (LABELS[: LABELS.rindex(b"3.png")], "koniq10k/512x384/{img_name}", "3 images found, 4 declared"),
    ],
)
def test_labels_that_do_not_fit_are_named(server: LocalServer, labels: bytes, path: str, message: str) -> None:
    server.files = {"koniq10k.tgz": tgz(PICTURES), "meta_info.csv": labels}
    spec = koniq(server)
    assert spec.archive is not None
    spec = dataclasses.replace(spec, archive=dataclasses.replace(spec.archive, path=path))
    with pytest.raises(DatasetError, match=message):
        open_dataset("koniq", {"koniq": spec})


@pytest.mark.parametrize("file", ["/etc/passwd", "../../x.csv", "sub/../../../x.csv"])
def test_labels_are_read_from_the_archive_alone(server: LocalServer, file: str) -> None:
    server.files = {"koniq10k.tgz": tgz(PICTURES)}
    spec = koniq(server)
    assert spec.archive is not None
    asked = dataclasses.replace(spec, archive=dataclasses.replace(spec.archive, labels=LabelFile(file)))
    with pytest.raises(DatasetError, match="leads out of the folder"):
        open_spec(asked)


@pytest.mark.parametrize("stream", [False, True])
def test_a_name_leads_no_path_out_of_the_cache(server: LocalServer, tmp_path: Path, stream: bool) -> None:
    # As an archive of others could ask for it, without the check of a specification when it is read.
    server.files = {"koniq10k.tgz": tgz({**PICTURES, "evil.pth": LABELS})}
    spec = koniq(server, name="../../out/x", stream=stream)
    assert spec.archive is not None
    archive = dataclasses.replace(spec.archive, labels=LabelFile("evil.pth"))
    with contextlib.suppress(DatasetError):
        open_spec(dataclasses.replace(spec, archive=archive))
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_practice_images_do_not_count(server: LocalServer) -> None:
    server.files = {"koniq10k.tgz": tgz(PICTURES), "meta_info.csv": LABELS}
    spec = koniq(server, images=3)
    assert spec.archive is not None
    practice = dataclasses.replace(spec.archive, skip=Skip("img_name", r"[0]\.png"))
    images = open_dataset("koniq", {"koniq": dataclasses.replace(spec, archive=practice)})
    assert images.table["file_name"].tolist() == ["1.png", "2.png", "3.png"]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_gated_repository_is_opened_with_the_users_token(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    server.publish("someone/set", {"set.tgz": tgz(PICTURES), "labels.csv": LABELS})
    server.token = "mine"  # noqa: S105
    images = RemoteFile("set.tgz", repository="someone/set", revision=COMMIT)
    labels = LabelFile("labels.csv", repository="someone/set", revision=COMMIT)
    spec = koniq(server, archive=Archive(images, labels, "koniq10k/512x384/{img_name}"), stream=streamed)
    with pytest.raises(
        DatasetError, match=r"401.*; accept its terms on https://huggingface\.co/datasets/someone/set and"
    ):
        open_spec(spec)
    monkeypatch.setenv("HF_TOKEN", "mine")
    assert len(open_spec(spec)) == 4


CONTENT = bytes(range(256)) * 4000
READ_ONLY = [errno.EROFS, errno.EACCES, errno.EPERM]


def test_a_cut_download_resumes_where_it_broke(server: LocalServer, tmp_path: Path) -> None:
    server.files, server.cuts = {"big": CONTENT}, [300_000, 200_000]
    assert fetch(remote(server, "big"), tmp_path).read_bytes() == CONTENT
    assert server.requests[0] is None
    assert [int(asked[6:-1]) > 0 for asked in server.requests[1:] if asked] == [True, True]
    assert not list(tmp_path.glob("*.part"))


def test_a_later_run_goes_on_with_what_is_there(server: LocalServer, tmp_path: Path) -> None:
    server.files, server.cuts = {"big": CONTENT}, [100_000] * download.ATTEMPTS
    with pytest.raises(DatasetError, match="broke off 5 times"):
        fetch(remote(server, "big"), tmp_path)
    assert not (tmp_path / "big").exists()
    have = (tmp_path / "big.part").stat().st_size
    assert 0 < have < len(CONTENT)
    assert fetch(remote(server, "big"), tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == f"bytes={have}-"


def test_a_server_without_ranges_starts_again(server: LocalServer, tmp_path: Path) -> None:
    server.files, server.cuts, server.ranges = {"big": CONTENT}, [300_000], False
    assert fetch(remote(server, "big"), tmp_path).read_bytes() == CONTENT


def test_a_whole_partial_file_is_accepted(server: LocalServer, tmp_path: Path) -> None:
    server.files = {"big": CONTENT}
    (tmp_path / "big.part").write_bytes(CONTENT)
    (tmp_path / "big.part.version").write_text(f'"{hashlib.sha256(CONTENT).hexdigest()}"')
    assert fetch(remote(server, "big"), tmp_path).read_bytes() == CONTENT
    assert server.requests == [f"bytes={len(CONTENT)}-"]


def test_a_part_of_another_version_is_not_continued(server: LocalServer, tmp_path: Path) -> None:
    server.files, server.cuts = {"big": CONTENT}, [100_000] * download.ATTEMPTS
    with pytest.raises(DatasetError, match="broke off 5 times"):
        fetch(remote(server, "big"), tmp_path)
    server.files["big"] = CONTENT[::-1]
    assert fetch(remote(server, "big"), tmp_path).read_bytes() == CONTENT[::-1]
    # A part of which nobody knows the version is of no use either.
    (tmp_path / "big").rename(tmp_path / "big.part")
    (tmp_path / "big.sha256").unlink()
    server.files["big"] = CONTENT * 2
    assert fetch(remote(server, "big"), tmp_path).read_bytes() == CONTENT * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sha256": "0" * 64}, "not the expected file: sha256"),
        ({"bytes": 10}, "more than 10 bytes"),
        ({"bytes": len(CONTENT) + 1}, r"1024000 bytes, 1024001 expected"),
    ],
)
def test_another_file_than_declared_is_refused(
    server: LocalServer, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    server.files = {"big": CONTENT}
    with pytest.raises(DatasetError, match=message):
        fetch(remote(server, "big", **options), tmp_path)
    assert not (tmp_path / "big").exists()


def test_the_declared_hash_is_accepted_and_a_later_change_noticed(server: LocalServer, tmp_path: Path) -> None:
    server.files = {"big": CONTENT}
    fetch(remote(server, "big", sha256=hashlib.sha256(CONTENT).hexdigest()), tmp_path)
    fetch(remote(server, "big"), tmp_path)
    (tmp_path / "big").write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(DatasetError, match=r"delete it and big\.sha256 to download it again"):
        fetch(remote(server, "big"), tmp_path)


@pytest.mark.parametrize("reason", READ_ONLY)
@pytest.mark.parametrize("recorded", [True, False])
def test_a_read_only_cache_serves_what_it_holds(
    server: LocalServer, tmp_path: Path, refuse_writing: Callable[[int], None], reason: int, recorded: bool
) -> None:
    server.files = {"big": CONTENT}
    path = fetch(remote(server, "big"), tmp_path)
    if not recorded:
        path.with_name("big.sha256").unlink()
    refuse_writing(reason)
    assert fetch(remote(server, "big"), tmp_path).read_bytes() == CONTENT
    with pytest.raises(DatasetError, match="expected 00000000"):
        fetch(remote(server, "big", sha256="0" * 64), tmp_path)
    with pytest.raises(DatasetError, match=f"other: cannot be written: {os.strerror(reason)}"):
        fetch(remote(server, "other"), tmp_path)


def test_a_dataset_opens_from_a_read_only_cache(server: LocalServer, refuse_writing: Callable[[int], None]) -> None:
    server.files = {"koniq10k.tgz": tgz(PICTURES), "meta_info.csv": LABELS}
    before = open_spec(koniq(server))
    refuse_writing(errno.EROFS)
    assert open_spec(koniq(server)).table.equals(before.table)


def test_a_full_disk_is_no_read_only_cache(
    server: LocalServer, tmp_path: Path, refuse_writing: Callable[[int], None]
) -> None:
    server.files = {"big": CONTENT}
    fetch(remote(server, "big"), tmp_path).with_name("big.sha256").unlink()
    refuse_writing(errno.ENOSPC)
    with pytest.raises(DatasetError, match="big: cannot be written: No space left on device"):
        fetch(remote(server, "big"), tmp_path)


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, download.ATTEMPTS)])
def test_an_error_page_is_no_file(server: LocalServer, tmp_path: Path, status: int, requests: int) -> None:
    server.status = status
    with pytest.raises(DatasetError, match=str(status)):
        fetch(remote(server, "big"), tmp_path)
    assert len(server.requests) == requests
    assert not (tmp_path / "big").exists()


@pytest.mark.parametrize("options", [{}, {"bytes": len(CONTENT)}, {"sha256": hashlib.sha256(CONTENT).hexdigest()}])
@pytest.mark.parametrize("reason", ["Connection refused", "404"])
def test_a_part_of_a_file_is_kept_and_never_taken_for_the_whole(
    server: LocalServer, tmp_path: Path, reason: str, options: dict[str, Any]
) -> None:
    part = tmp_path / "big.part"
    part.write_bytes(CONTENT[:1000])
    if reason == "Connection refused":
        server.stop()
    server.status = 404
    with pytest.raises(DatasetError, match=f"cannot be fetched: {reason}"):
        fetch(remote(server, "big", **options), tmp_path)
    assert part.read_bytes() == CONTENT[:1000]
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == ["big.part"]


@pytest.mark.parametrize("content", [b"nonsense" * 99, zipped(PICTURES)[:-100]])
def test_what_is_no_archive_is_not_recorded_as_one(server: LocalServer, tmp_path: Path, content: bytes) -> None:
    server.files = {"koniq10k.tgz": content, "meta_info.csv": LABELS}
    with pytest.raises(DatasetError, match="not the expected file: no zip and no tar"):
        open_spec(koniq(server))
    server.files["koniq10k.tgz"] = tgz(PICTURES)
    assert len(open_spec(koniq(server))) == 4


def test_a_damaged_archive_says_what_to_delete(server: LocalServer, tmp_path: Path) -> None:
    server.files = {"koniq10k.tgz": tgz(PICTURES)[:-40], "meta_info.csv": LABELS}
    with pytest.raises(DatasetError, match=r"damaged .*delete it and koniq10k\.tgz\.sha256 to download it again"):
        open_spec(koniq(server))


def test_offline_nothing_is_asked(server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DatasetError, match="HF_HUB_OFFLINE is set"):
        fetch(remote(server, "big"), tmp_path)
    assert server.requests == []


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def device(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.CHRTYPE
    return info


def sparse_tar() -> bytes:
    """A file of a terabyte of which no byte is there."""
    info = tarfile.TarInfo("hole")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"0" + b"%o" % 2**30 + b"\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def zip_link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "tar traversal": (lambda: tgz({"a/../../evil": b"x"}), "would lie outside"),
    "tar absolute": (lambda: tgz({"/evil": b"x"}), "would lie outside"),
    "tar symlink": (lambda: tgz({}, link("l", "/etc")), "link or a device"),
    "tar symlink, then a file through it": (
        lambda: tgz({"ok": b"x"}, link("d", "/etc"), tarfile.TarInfo("d/evil")),
        "link or a device",
    ),
    "tar hard link": (lambda: tgz({"a": b"x"}, link("b", "a", tarfile.LNKTYPE)), "link or a device"),
    "tar device": (lambda: tgz({}, device("null")), "link or a device"),
    "tar sparse": (sparse_tar, "is sparse"),
    "tar twice": (lambda: tgz({"a": b"x", "./a": b"y"}), "occurs twice"),
    "tar cut": (lambda: tgz({f"{i}": png(i) for i in range(9)})[:-300], "damaged or not an archive"),
    "zip traversal": (lambda: zipped({"../evil": b"x"}), "would lie outside"),
    "zip absolute": (lambda: zipped({"/evil": b"x"}), "would lie outside"),
    "zip drive": (lambda: zipped({"C:evil": b"x"}), "would lie outside"),
    "zip backslash": (lambda: zipped({"..\\evil": b"x"}), "would lie outside"),
    "zip link": (zip_link, "link or a device"),
    "zip bomb": (lambda: zipped({"zeros": bytes(3_000_000)}), "unpacks to more than"),
    "tar bomb": (lambda: tgz({"zeros": bytes(3_000_000)}), "unpacks to more than"),
    "deep folders": (lambda: tgz({f"{'a/' * 1800}x": b"x", "../evil": b"x"}), "more than 64 folders deep"),
    "many files": (lambda: tgz({str(i): b"" for i in range(30)}), "more than 20 entries"),
    "error page": (lambda: b"<html>404</html>", "damaged or not an archive"),
    "empty": (lambda: b"", "damaged or not an archive"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_damaged_archives_leave_nothing_behind(tmp_path: Path, name: str) -> None:
    make, message = HOSTILE[name]
    packed = tmp_path / "packed"
    packed.write_bytes(make())
    with pytest.raises(DatasetError, match=message):
        unpack(packed, tmp_path / "inside/out", Limits(free=1_000_000, files=20))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["inside", "packed"]


def test_a_name_that_is_no_utf8_is_unpacked_and_found_again(server: LocalServer) -> None:
    server.files = {"koniq10k.tgz": tgz({**PICTURES, "caf\udce9.txt": b"x"}), "meta_info.csv": LABELS}
    before = open_spec(koniq(server))
    assert open_spec(koniq(server)).table.equals(before.table)


def test_a_damaged_member_of_a_zip_is_noticed(tmp_path: Path) -> None:
    content = bytearray(zipped({"a.png": png(1)}))
    content[60] ^= 0xFF
    (tmp_path / "packed").write_bytes(content)
    with pytest.raises(DatasetError, match="damaged"):
        unpack(tmp_path / "packed", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unpacked_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "packed").write_bytes(tgz(PICTURES))
    folder = unpack(tmp_path / "packed", tmp_path / "out")
    (tmp_path / "packed").unlink()
    assert unpack(tmp_path / "packed", tmp_path / "out") == folder
    assert len(list(folder.rglob("*.png"))) == 4


def test_a_file_that_is_there_twice_is_not_chosen_by_chance(server: LocalServer) -> None:
    files = {f"{folder}/{i}.png": png(i) for folder in "ab" for i in range(4)}
    server.files = {"koniq10k.tgz": tgz(files), "meta_info.csv": LABELS}
    spec = koniq(server)
    assert spec.archive is not None
    anywhere = dataclasses.replace(spec.archive, path="**/{img_name}")
    with pytest.raises(DatasetError, match=r"\*\*/0\.png fits [ab]/0\.png and [ab]/0\.png"):
        open_spec(dataclasses.replace(spec, archive=anywhere))


def test_a_parquet_file_of_one_value_very_many_times_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "same.parquet"
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array([bytes(100_000)], pa.binary()))
    pq.write_table(pa.table({"image": same}), path, store_schema=False)
    assert path.stat().st_size < 10_000
    with pytest.raises(DatasetError, match=r"same\.parquet: unpacks to more than \d+ bytes"):
        check_parquet(path, Limits(free=2**22))
    different = pa.table({"image": [os.urandom(10_000) for _ in range(200)]})
    pq.write_table(different, path)
    check_parquet(path, Limits(free=2**10))
