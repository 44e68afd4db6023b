"""Packed datasets: archive and label table, downloaded, verified, unpacked and joined by column name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.data.cache import cache_folder, check_cached
from harness.data.download import fetch
from harness.data.metadata import check_rows
from harness.data.patterns import Pattern
from harness.data.sources import Source, from_files
from harness.data.spec import ANYWHERE, Archive, DatasetSpec, RemoteFile, Skip
from harness.data.unpack import check_archive, unpack
from qualiclip_plugin.utils.atomic import inside, is_relative, recorded_sha256, sha256_file
from qualiclip_plugin.utils.errors import DatasetError
from qualiclip_plugin.utils.tables import Placed, Row, read_rows


def open_archive(spec: DatasetSpec) -> Source:
    """Labels and undecoded images of a packed dataset.

    Raises:
        DatasetError: The files cannot be obtained or unpacked, a column is missing, or a label is invalid; names
            the row.
    """
    archive = packed(spec)
    downloaded = fetch(archive.images, cache_folder("downloads", _place(archive.images)), check_archive)
    digest = recorded_sha256(downloaded) or sha256_file(downloaded)
    folder = cache_folder("unpacked", f"{downloaded.name}-{digest[:16]}")
    if not folder.is_dir():
        fetch(archive.images, downloaded.parent, thorough=True)
        unpack(downloaded, folder)
    members = Members(_files(folder), archive.images.file)
    table = remote_labels(archive) or inside(folder, members.find(archive.labels.file), error=DatasetError)
    if not table.is_file():
        raise DatasetError(f"{archive.images.file}: holds no label file {archive.labels.file}")
    check_cached({str(table): sha256_file(table)})
    rows = labelled(spec, table)
    return from_files(rows, folder, spec, [members.find(image_path(archive, row, where)) for where, row in rows])


def packed(spec: DatasetSpec) -> Archive:
    """The archive of a specification.

    Raises:
        DatasetError: It has none.
    """
    if spec.archive is None:
        raise DatasetError(f"{spec.name}: not an archive")
    return spec.archive


def remote_labels(archive: Archive) -> Path | None:
    """The downloaded table of labels; none if it is in the archive."""
    labels = archive.labels
    if not (labels.address or labels.repository):
        return None
    return fetch(labels, cache_folder("downloads", _place(labels)))


def labelled(spec: DatasetSpec, table: Path) -> list[Placed]:
    """The checked rows of a label table that count.

    Raises:
        DatasetError: A column is missing or a label invalid; names the row.
    """
    archive = packed(spec)
    rows = read_rows(table, archive.labels.header, archive.labels.separator, spec.asked)
    return check_rows(table, _counting(rows, archive.skip), spec)


def image_path(archive: Archive, row: Row, where: str) -> str:
    """Path of a row's image in the archive, from the specification.

    Raises:
        DatasetError: The path needs a column that the row lacks, or leads out of the folder.
    """
    try:
        path = archive.path.format_map(row)
    except KeyError as error:
        raise DatasetError(f"{where}: no column {error} for the path {archive.path!r}") from error
    if not is_relative(path):
        raise DatasetError(f"{where}: {path!r} leads out of the folder")
    return path


class Members:
    """Finds files of an archive, by their path or by its end.

    Args:
        paths: Of all files, relative, with slashes.
    """

    def __init__(self, paths: Iterable[str], archive: str) -> None:
        self.archive = archive
        self._by_name: dict[str, list[str]] = {}
        for path in paths:
            self._by_name.setdefault(path.rpartition("/")[2].casefold(), []).append(path)

    def find(self, wanted: str) -> str:
        """The path of a file that :func:`fits`. What is nowhere stays as it is.

        Tables that were written on Windows have names in another case than their archive: where none fits as it
        is written, the one that fits otherwise is taken.

        Raises:
            DatasetError: Several files fit.
        """
        folded = wanted.casefold()
        named = self._by_name.get(folded.rpartition("/")[2], ())
        near = [path for path in named if fits(path.casefold(), folded)]
        found = [path for path in near if fits(path, wanted)] or near
        if len(found) > 1:
            raise DatasetError(f"{self.archive}: {wanted} fits {' and '.join(found[:3])}")
        return found[0] if found else wanted


def fits(path: str, wanted: str) -> bool:
    """Whether a path in an archive is the wanted one; one that starts with ``**/`` may be in any folder."""
    return path == wanted or (wanted.startswith(ANYWHERE) and f"/{path}".endswith(wanted.removeprefix("**")))


def _files(folder: Path) -> Iterator[str]:
    for place, _, names in os.walk(folder):
        for name in names:
            yield Path(place, name).relative_to(folder).as_posix()


def _counting(rows: Iterable[Placed], skip: Skip | None) -> Iterator[Placed]:
    pattern = Pattern(skip.pattern, "archive.skip.pattern") if skip else None
    for where, row in rows:
        if pattern is None or skip is None or pattern.match(str(row.get(skip.column, ""))) is None:
            yield where, row


def _place(remote: RemoteFile) -> str:
    if remote.repository:
        return f"{remote.repository.replace('/', '--')}@{remote.revision}"
    # Files of different places may share a name.
    return hashlib.sha256(remote.address.encode()).hexdigest()[:16]
