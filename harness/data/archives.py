"""Packed datasets: archive and label table, downloaded, verified, unpacked and joined by column name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.cache import cache_folder, check_cached
from harness.data.download import fetch, verify
from harness.data.labels import label_table, undecoded
from harness.data.metadata import Row, check_rows, read_rows
from harness.data.specs import Archive, DatasetSpec, RemoteFile, Skip
from harness.data.unpack import unpack
from qualiclip_plugin.errors import DatasetError
from qualiclip_plugin.files import recorded_sha256, sha256_file

if TYPE_CHECKING:
    import datasets
    import pandas as pd


def open_archive(spec: DatasetSpec) -> tuple[pd.DataFrame, datasets.Dataset]:
    """Labels and undecoded images of a packed dataset.

    Raises:
        DatasetError: The files cannot be had or unpacked, a column or an image is missing, or a label is
            invalid; names the row.
    """
    if spec.archive is None:
        raise DatasetError(f"{spec.name}: not an archive")
    folder, labels = prepare(spec.archive)
    rows = check_rows(labels, _counting(read_rows(labels), spec.archive.skip), spec)
    places = [image_path(spec.archive, row, f"{labels}, row {number}") for number, row in enumerate(rows, 1)]
    missing = [place for place in places if not (folder / place).is_file()]
    if missing:
        raise DatasetError(
            f"{spec.name}: {len(missing)} of {len(places)} images are not in {spec.archive.images.file}, "
            f"the first is {missing[0]}"
        )
    return label_table(rows, spec), undecoded([str(folder / place) for place in places])


def prepare(archive: Archive) -> tuple[Path, Path]:
    """Download and unpack what is not there yet; the unpacked folder and the label file."""
    downloads = cache_folder("downloads", _place(archive.images))
    packed = fetch(archive.images, downloads)
    folder = cache_folder("unpacked", _unpacked_name(packed))
    if not folder.is_dir():
        verify(archive.images, packed, thorough=True)
        unpack(packed, folder)
    labels = archive.labels
    if labels.address or labels.repository:
        return folder, fetch(labels, cache_folder("downloads", _place(labels)))
    inside = folder / labels.file
    if not inside.is_file():
        raise DatasetError(f"{archive.images.file}: holds no label file {labels.file}")
    check_cached({str(inside): sha256_file(inside)})
    return folder, inside


def image_path(archive: Archive, row: dict[str, Any], where: str) -> str:
    """Where a row's image lies in the unpacked archive.

    Raises:
        DatasetError: The path needs a column that the row lacks, or leads out of the folder.
    """
    try:
        path = archive.path.format_map(row)
    except (KeyError, IndexError) as error:
        raise DatasetError(f"{where}: no column {error} for the path {archive.path!r}") from error
    if path.startswith("/") or ".." in Path(path).parts:
        raise DatasetError(f"{where}: {path!r} leads out of the folder")
    return path


def _counting(lines: Iterable[tuple[int, Row]], skip: Skip | None) -> Iterator[tuple[int, Row]]:
    for line, row in lines:
        if skip is None or not re.fullmatch(skip.pattern, str(row.get(skip.column, ""))):
            yield line, row


def _place(remote: RemoteFile) -> str:
    if remote.repository:
        return f"{remote.repository.replace('/', '--')}@{remote.revision}"
    # Files of different places may share a name.
    return hashlib.sha256(remote.address.encode()).hexdigest()[:16]


def _unpacked_name(packed: Path) -> str:
    return f"{packed.name}-{(recorded_sha256(packed) or sha256_file(packed))[:16]}"
