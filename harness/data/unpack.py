"""Unpack archives from strangers: inside one folder, within limits, completely or not at all."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, cast

from harness.data.cache import MANIFEST, write_manifest
from qualiclip_plugin.utils.atomic import atomic_folder
from qualiclip_plugin.utils.errors import DatasetError, first_line
from qualiclip_plugin.utils.regular_files import open_regular
from qualiclip_plugin.utils.shown import portable

CHUNK = 1 << 20

DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    NotImplementedError,  # a compression that zipfile does not know
    RuntimeError,  # a password
)
"""What reading a damaged archive raises."""


@dataclass(frozen=True)
class Limits:
    """What an archive may hold.

    Attributes:
        bytes: Unpacked size of all files.
        ratio: Unpacked size over the archive's; pictures hardly compress, bombs do.
        free: Slack for the ratio, so that small archives of uniform pictures pass.
        files: Number of entries, folders included.
        depth: Folders inside each other.
    """

    bytes: int = 400 * 2**30
    ratio: float = 100.0
    free: int = 64 * 2**20
    files: int = 2_000_000
    depth: int = 64


def unpack(archive: Path, folder: Path, limits: Limits = Limits()) -> Path:
    """Unpack an archive into a folder that is complete once it exists.

    Args:
        archive: zip, tar, or compressed tar; recognised by its content.
        folder: Must not exist, or be the result of an earlier call, which is then kept.
        limits: What is refused as a bomb.

    Returns:
        ``folder``.

    Raises:
        DatasetError: Not an archive, damaged, too large, or an entry that would lie outside, is a link or a
            device, or occurs twice; the entry is named and nothing is left behind.
    """
    if folder.is_dir():
        return folder
    try:
        with atomic_folder(folder) as partial:
            write_manifest(partial, _unpack_into(archive, partial, limits))
    except DatasetError:
        raise
    except OSError as error:
        # Decompressors report damage as an OSError as well, one without a number.
        if error.errno is None:
            raise _damaged(archive, error) from error
        raise DatasetError(f"{folder}: cannot be unpacked: {error.strerror or error}") from error
    except Exception as error:  # damaged archives raise whatever they please
        raise _damaged(archive, error) from error
    return folder


def check_archive(path: Path) -> None:
    """Refuse a file that does not begin like an archive, or for a zip does not end like one.

    Raises:
        DatasetError: It is none.
    """
    if not zipfile.is_zipfile(path) and not tarfile.is_tarfile(path):
        raise DatasetError("no zip and no tar, or only a part of one")


def _damaged(archive: Path, error: Exception) -> DatasetError:
    return DatasetError(
        f"{archive}: damaged or not an archive: {first_line(error)}; "
        f"delete it and {archive.name}.sha256 to download it again"
    )


def _unpack_into(archive: Path, folder: Path, limits: Limits) -> dict[str, str]:
    """Write all files; returns the SHA-256 of each by its relative path as text that a manifest can hold."""
    allowed = _allowed(archive, limits)
    written, hashes = 0, dict[str, str]()
    with archive.open("rb") as packed:
        for number, (name, source) in enumerate(entries(packed, archive)):
            if number >= limits.files:
                raise DatasetError(f"{archive}: more than {limits.files} entries")
            if source is None:
                continue
            place = safe_name(archive, name)
            if len(place.parts) > limits.depth:
                raise DatasetError(f"{archive}: entry {name[:80]!r}... lies more than {limits.depth} folders deep")
            if (key := portable(place)) in hashes or key == MANIFEST:
                raise DatasetError(f"{archive}: entry {name!r} occurs twice")
            target, digest = folder / place, hashlib.sha256()
            target.parent.mkdir(parents=True, exist_ok=True)
            with source, target.open("xb") as file:
                while chunk := source.read(CHUNK):
                    written += len(chunk)
                    if written > allowed:
                        raise DatasetError(f"{archive}: unpacks to more than {allowed} bytes, refused at {name!r}")
                    digest.update(chunk)
                    file.write(chunk)
            hashes[key] = digest.hexdigest()
    return hashes


def check_parquet(path: Path, limits: Limits = Limits()) -> None:
    """Refuse a Parquet file of which a few bytes stand for very many: it is read through, and none of it is kept.

    Raises:
        DatasetError: Damaged, or it unpacks to more than an archive of its size may.
    """
    import pyarrow.parquet as pq

    try:
        with open_regular(path) as packed:
            file, allowed = pq.ParquetFile(packed), _allowed(path, limits)
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
            chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
            largest = max((chunk.total_uncompressed_size for chunk in chunks), default=0)
            # A column of few different values stores each of them once.
            if sum(chunk.num_values for chunk in chunks) * largest <= allowed:
                return
            written = largest
            for batch in file.iter_batches(batch_size=16) if largest <= allowed else ():
                written += batch.nbytes
                if written > allowed:
                    break
    except Exception as error:  # damaged bytes raise whatever they please
        raise DatasetError(f"{path}: not a readable Parquet file: {first_line(error)}") from error
    if written > allowed:
        raise DatasetError(f"{path}: unpacks to more than {allowed} bytes")


def _allowed(packed: Path, limits: Limits) -> int:
    return min(limits.bytes, int(limits.ratio * packed.stat().st_size) + limits.free)


def safe_name(archive: str | Path, name: str) -> PurePosixPath:
    """The relative path of an entry.

    Raises:
        DatasetError: Absolute, with a drive, with ``..``, a backslash or a control character, or empty.
    """
    path = PurePosixPath(name)
    parts = [part for part in path.parts if part != "."]
    outside = path.is_absolute() or ".." in parts or PureWindowsPath(name).drive or "\\" in name
    if outside or not parts or any(ord(character) < 32 for character in name):
        raise DatasetError(f"{archive}: entry {name!r} would lie outside its folder")
    return PurePosixPath(*parts)


def entries(file: IO[bytes], archive: str | Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Names and contents of the files of an archive, in its order; a folder has no content.

    Args:
        file: A zip, a tar or a compressed tar, told by its content; seekable.

    Raises:
        DatasetError: An entry is neither a file nor a folder, or its name leads outside.
    """
    yield from _zip_entries(file, archive) if zipfile.is_zipfile(file) else _tar_entries(file, archive)


def _zip_entries(file: IO[bytes], archive: str | Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    with zipfile.ZipFile(file) as opened:
        for entry in opened.infolist():
            kind = stat.S_IFMT(entry.external_attr >> 16)
            safe_name(archive, entry.filename)
            if not entry.is_dir() and kind not in (0, stat.S_IFREG):
                raise DatasetError(f"{archive}: entry {entry.filename!r} is a link or a device")
            yield entry.filename, None if entry.is_dir() else opened.open(entry)


def _tar_entries(file: IO[bytes], archive: str | Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    with _decompressed(file) as stream, tarfile.open(fileobj=cast(Any, _Bounded(stream)), mode="r:") as opened:
        while (entry := opened.next()) is not None:
            # A list of millions of entries would take gigabytes.
            opened.members.clear()  # type: ignore[attr-defined]
            if not entry.isdir() or entry.name not in (".", "./"):
                safe_name(archive, entry.name)
            if entry.issparse():
                raise DatasetError(
                    f"{archive}: entry {entry.name!r} is sparse: it stands for bytes that are not there"
                )
            source = opened.extractfile(entry) if entry.isreg() else None
            if source is None and not entry.isdir():
                raise DatasetError(f"{archive}: entry {entry.name!r} is a link or a device")
            yield entry.name, source


def _decompressed(file: IO[bytes]) -> IO[bytes]:
    file.seek(0)
    start = file.read(6)
    file.seek(0)
    openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
    opener = next((opener for magic, opener in openers.items() if start.startswith(magic)), None)
    return cast(IO[bytes], opener(file, "rb")) if opener else file


class _Bounded:
    """A stream that refuses to read much at once: ``tarfile`` takes the headers of an entry into memory whole."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 4 * CHUNK:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._stream.read(size)
