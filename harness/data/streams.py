"""Datasets that are larger than the disk: images are read one by one from their source and never kept.

Only an index is kept: the labels and the hash of every image. It is made by reading the stream once, stays in
the cache where the source is pinned, and tells which images still need a score. Every later pass hashes the bytes
again as they come, so that a score never stands under another image's hash.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from harness.data.archives import fits, image_path, labelled, packed, remote_labels
from harness.data.cache import cache_folder
from harness.data.download import address
from harness.data.labels import label_table, pack_labels, unpack_labels
from harness.data.metadata import check_rows
from harness.data.rows import Stream, packed_bytes, unbroken
from harness.data.sources import Source, hub_rows, image_column, label_columns, named_rows
from harness.data.spec import ANYWHERE, Archive, DatasetSpec, RemoteFile
from harness.data.unpack import CHUNK, DAMAGED, entries, safe_name
from qualiclip_plugin.utils.atomic import atomic_write
from qualiclip_plugin.utils.download import DownloadError, encrypted_redirects, refuse_offline
from qualiclip_plugin.utils.errors import DatasetError, QualiCLIPError, disk_errors, first_line
from qualiclip_plugin.utils.regular_files import read_regular

if TYPE_CHECKING:
    import datasets
    import pandas as pd

LARGEST_IMAGE = 1 << 30
"""Bytes of one member of an archive that are read into memory at most."""

ORDER = 2
"""Raised whenever the same source is read in another order, which an index kept before does not fit."""


def open_stream(spec: DatasetSpec) -> Source:
    """Index a stream, or take the index made before.

    Raises:
        DatasetError: The source cannot be read, a column is missing or a label invalid; names the row.
    """
    opened = _open_hub(spec) if spec.hub else _open_archive(spec)
    key = hashlib.sha256(f"{ORDER} {spec!r}".encode()).hexdigest()[:16]
    path = cache_folder("streams", f"{spec.name}-{key}.parquet")
    if spec.pinned and path.exists():
        labels, missing = unpack_labels(path, read_regular(path))[0], tuple[str, ...]()
    else:
        labels, missing = opened.index()
        if spec.pinned and not missing:
            with disk_errors(path, DatasetError), atomic_write(path) as file:
                file.write(pack_labels(labels))
    return Source(labels, Stream(opened.images, range(len(labels)), spec.source), missing)


@dataclass(frozen=True)
class _Opened:
    """A source of images in order, and how to make its index: labels with hashes, and what is missing."""

    images: datasets.IterableDataset
    index: Callable[[], tuple[pd.DataFrame, tuple[str, ...]]]


def _open_hub(spec: DatasetSpec) -> _Opened:
    import datasets

    rows = hub_rows(spec, streaming=True)
    image = spec.columns.image

    def index() -> tuple[pd.DataFrame, tuple[str, ...]]:
        kept = label_columns(spec, rows.column_names or list(next(iter(rows), {})), spec.source)
        undecoded = rows.select_columns([image, *kept]).cast_column(image, datasets.Image(decode=False))
        table, paths, hashes = list[dict[str, Any]](), list[str | None](), list[str]()
        for number, row in enumerate(unbroken(undecoded, spec.source)):
            found = row.pop(image)
            hashes.append(hashlib.sha256(packed_bytes(found, f"{spec.source}, row {number}")).hexdigest())
            paths.append(found["path"])
            table.append(row)
        checked = check_rows(spec.source, named_rows(table, paths, spec, spec.source), spec)
        return label_table([row for _, row in checked], spec).assign(image_hash=hashes), ()

    return _Opened(image_column(rows, spec), index)


def _open_archive(spec: DatasetSpec) -> _Opened:
    import datasets

    archive = packed(spec)
    table = remote_labels(archive) or _labels_inside(spec)
    rows = [(where, row, image_path(archive, row, where)) for where, row in labelled(spec, table)]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    # A list would be taken for shards: the archive would be read once for each of its entries.
    wanted = tuple(place for *_, place in rows)
    images = datasets.IterableDataset.from_generator(
        _members, features=features, gen_kwargs={"archive": archive, "wanted": wanted}
    )

    def index() -> tuple[pd.DataFrame, tuple[str, ...]]:
        known = {place: row for _, row, place in rows}
        found, hashes = list[dict[str, Any]](), list[str]()
        for entry in unbroken(images, spec.source):
            hashes.append(hashlib.sha256(entry["image"]["bytes"]).hexdigest())
            found.append(known.pop(entry["image"]["path"]))
        missing = tuple(f"{where}: image {place!r} is missing" for where, _, place in rows if place in known)
        return label_table(found, spec).assign(image_hash=hashes), missing

    return _Opened(images, index)


def _members(archive: Archive, wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The images of an archive that labels name, in the order of the archive, under the names of the labels.

    Raises:
        DatasetError: Several members fit one name.
    """
    ends: dict[str, list[str]] = {}
    for place in wanted:
        ends.setdefault(place.removeprefix(ANYWHERE).casefold(), []).append(place)
    found: dict[str, str] = {}
    for name, source in _remote_entries(archive):
        folded = name.casefold()
        parts = folded.split("/")
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        near = [place for tail in tails for place in ends.get(tail, ()) if fits(folded, place.casefold())]
        places = [place for place in near if fits(name, place)] or near
        for place in places:
            _refuse_second(archive, place, found.get(place), name)
            found[place] = name
        content = _content(source, f"{archive.images.file}: {name!r}") if places else b""
        yield from ({"image": {"bytes": content, "path": place}} for place in places)


def _refuse_second(archive: Archive, wanted: str, first: str | None, second: str) -> None:
    if first is not None:
        raise DatasetError(f"{archive.images.file}: {wanted} fits {first} and {second}")


def _content(source: IO[bytes], where: str) -> bytes:
    content = bytearray()
    while chunk := source.read(CHUNK):
        content += chunk
        if len(content) > LARGEST_IMAGE:
            raise DatasetError(f"{where} has more than {LARGEST_IMAGE} bytes")
    return bytes(content)


def _labels_inside(spec: DatasetSpec) -> Path:
    archive = packed(spec)
    # An address has no revision: another archive is told by its address, its hash or the dataset's version.
    key = hashlib.sha256(repr((archive, spec.version)).encode()).hexdigest()[:16]
    path = cache_folder("streams", f"{spec.name}-{key}-{Path(archive.labels.file).name}")
    if path.exists() and spec.pinned:
        return path
    wanted = archive.labels.file
    first = None
    with atomic_write(path) as file:
        for name, source in _remote_entries(archive):
            if fits(name.casefold(), wanted.casefold()):
                _refuse_second(archive, wanted, first, name)
                shutil.copyfileobj(source, file)
                first = name
                if not wanted.startswith(ANYWHERE):
                    break
        if first is None:
            raise DatasetError(f"{archive.images.file}: holds no label file {wanted}")
    return path


def _remote_entries(archive: Archive) -> Iterator[tuple[str, IO[bytes]]]:
    import fsspec

    remote = archive.images
    where = address(remote)
    try:
        refuse_offline(where)
        place, options = _opening(remote)
        with fsspec.open(place, "rb", **options) as file:
            for name, source in entries(file, archive.images.file):
                if source is not None:
                    yield safe_name(archive.images.file, name).as_posix(), source
    except DAMAGED as error:
        raise DatasetError(f"{where}: damaged or not an archive: {error}") from error
    except DownloadError as error:
        raise DatasetError(str(error)) from error
    except Exception as error:
        if isinstance(error, QualiCLIPError):
            raise
        raise DatasetError(f"{where}: cannot be read: {first_line(error.__cause__ or error)}") from error


def _opening(remote: RemoteFile) -> tuple[str, dict[str, Any]]:
    """Address and options for fsspec."""
    if remote.repository:
        from huggingface_hub import constants

        # The Hub's own file system sends the user's token.
        place = f"hf://datasets/{remote.repository}@{remote.revision or 'main'}/{remote.file}"
        return place, {"endpoint": constants.ENDPOINT}
    return remote.address, {"client_kwargs": {"trace_configs": [encrypted_redirects()]}}
