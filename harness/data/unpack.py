"""Archives from strangers: unpacked without ever leaving the folder, within limits, whole or not at all."""

from __future__ import annotations

import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from qualiclip_plugin.errors import DatasetError
from qualiclip_plugin.files import atomic_folder

_CHUNK = 1 << 20

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
        files: Number of entries.
    """

    bytes: int = 400 * 2**30
    ratio: float = 100.0
    free: int = 64 * 2**20
    files: int = 2_000_000


def unpack(archive: Path, folder: Path, limits: Limits = Limits()) -> Path:
    """Unpack an archive into a folder that is complete once it exists.

    Args:
        archive: zip, tar, or compressed tar; told by its content.
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
            _unpack_into(archive, partial, limits)
    except DAMAGED as error:
        raise DatasetError(f"{archive}: damaged or not an archive: {error}") from error
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be unpacked: {error.strerror or error}") from error
    return folder


def _unpack_into(archive: Path, folder: Path, limits: Limits) -> None:
    allowed = min(limits.bytes, int(limits.ratio * archive.stat().st_size) + limits.free)
    written, seen = 0, set[str]()
    with archive.open("rb") as packed:
        for number, (name, source) in enumerate(entries(packed, archive)):
            if number >= limits.files:
                raise DatasetError(f"{archive}: more than {limits.files} entries")
            target = folder / safe_name(archive, name)
            if str(target) in seen:
                raise DatasetError(f"{archive}: entry {name!r} occurs twice")
            seen.add(str(target))
            target.parent.mkdir(parents=True, exist_ok=True)
            with source, target.open("xb") as file:
                while chunk := source.read(_CHUNK):
                    written += len(chunk)
                    if written > allowed:
                        raise DatasetError(f"{archive}: unpacks to more than {allowed} bytes, refused at {name!r}")
                    file.write(chunk)


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


def entries(file: IO[bytes], archive: str | Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of the regular files of an archive, in its order.

    Args:
        file: A zip, a tar or a compressed tar, told by its content; seekable.
        archive: Its name, for messages.

    Raises:
        DatasetError: An entry is neither a file nor a folder, or its name leads outside.
    """
    yield from _zip_entries(file, archive) if zipfile.is_zipfile(file) else _tar_entries(file, archive)


def _zip_entries(file: IO[bytes], archive: str | Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(file) as opened:
        for entry in opened.infolist():
            kind = stat.S_IFMT(entry.external_attr >> 16)
            safe_name(archive, entry.filename)
            if entry.is_dir():
                continue
            if kind not in (0, stat.S_IFREG):
                raise DatasetError(f"{archive}: entry {entry.filename!r} is a link or a device")
            yield entry.filename, opened.open(entry)


def _tar_entries(file: IO[bytes], archive: str | Path) -> Iterator[tuple[str, IO[bytes]]]:
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:*") as opened:
        for entry in opened:
            if entry.isdir():
                if entry.name not in (".", "./"):
                    safe_name(archive, entry.name)
                continue
            safe_name(archive, entry.name)
            source = opened.extractfile(entry) if entry.isreg() else None
            if source is None:
                raise DatasetError(f"{archive}: entry {entry.name!r} is a link or a device")
            yield entry.name, source
