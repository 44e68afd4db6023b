"""Where the images of a large run are: folders, storage and Parquet files, listed and cut into equal portions.

A source is a file, folder or pattern of this machine, or an address such as ``s3://bucket/photos``,
``https://host/photos/`` or ``hf://datasets/user/name``. What lies there decides how it is read: image files by
their suffix, or Parquet files with one column of images or of paths.
"""

from __future__ import annotations

import glob
import hashlib
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qualiclip_plugin.scoring.local import StoredImage
from qualiclip_plugin.scoring.storage import (
    filesystem,
    is_address,
    read_address,
    read_bytes,
    shown,
    split_address,
    without_secrets,
)
from qualiclip_plugin.utils.errors import ConfigError, ImageError, first_line, without_options
from qualiclip_plugin.utils.images import SUFFIXES, images_in
from qualiclip_plugin.utils.shown import portable, printable

if TYPE_CHECKING:
    import pyarrow as pa
    from fsspec import AbstractFileSystem
    from pyarrow.parquet import ParquetFile

PARQUET = ".parquet"
PATH_COLUMNS = ("path", "file_name", "image", "image_path", "url")
"""Names under which a text column is taken for paths, the first one that a file has."""
ROWS_AT_ONCE = 32
"""Rows of a Parquet file whose bytes are in memory together."""
PATHS_AT_ONCE = 4096
"""The same of paths, which are short: a portion reads what stands before it in its row group too, often a million."""
_VERSION_MARKS = ("ETag", "etag", "blob_id", "md5Hash", "mtime", "LastModified", "last_modified", "created")


@dataclass(frozen=True)
class Files:
    """A run of image files.

    Attributes:
        root: Address that opens their file system; empty for paths of this machine.
        paths: As the file system calls them.
    """

    root: str
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def images(self) -> Iterator[str | StoredImage]:
        """The images in order: a path, or a name with the way to its bytes."""
        for path in self.paths:
            yield StoredImage(shown(self.root, path), partial(read_bytes, self.root, path)) if self.root else path


@dataclass(frozen=True)
class Rows:
    """A run of rows of one Parquet file.

    Attributes:
        root: As in :class:`Files`.
        path: The Parquet file.
        column: Which column holds the images.
        start: First row.
        stop: The row after the last one.
    """

    root: str
    path: str
    column: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def images(self) -> Iterator[str | StoredImage]:
        """The images in order; where the file cannot be read, names whose reading says why."""
        row = self.start
        try:
            with _open_parquet(self.root, self.path) as file:
                for value in _values(file, self.column, self.start, self.stop):
                    yield self._image(row, value)
                    row += 1
            if row < self.stop:
                raise EOFError("the file has fewer rows than when it was listed")
        except Exception as error:  # storage libraries raise types of their own
            for missing in range(row, self.stop):
                yield StoredImage(self._name(missing), partial(_fail, first_line(error)))

    def _name(self, row: int) -> str:
        return f"{shown(self.root, self.path)}#{row}"

    def _image(self, row: int, value: object) -> str | StoredImage:
        if isinstance(value, Mapping):  # as `datasets` stores an image
            value = value["path"] if value["bytes"] is None else value["bytes"]
        if isinstance(value, str):
            return self._at(row, value)
        read = partial(bytes, value) if isinstance(value, bytes) else partial(_fail, "the row is empty")
        return StoredImage(self._name(row), read)

    def _at(self, row: int, path: str) -> str | StoredImage:
        read = partial(read_address, path)
        if not is_address(path):
            if not self.root:
                return os.path.join(os.path.dirname(self.path), path)
            # The options of the list's own address may hold slashes, and are not those of the image.
            path = posixpath.join(posixpath.dirname(_without_options(self.path)), path)
            read = partial(read_bytes, self.root, path)
        # The options of an address may be secret, and may be all that tells two of them apart.
        with_options = path != _without_options(path)
        return StoredImage(self._name(row) if with_options else shown(self.root, path), read)


Portion = Files | Rows


def from_record(record: Mapping[str, Any]) -> Portion:
    """The portion that ``asdict`` made values of, which JSON can hold."""
    return Files(record["root"], tuple(record["paths"])) if "paths" in record else Rows(**record)


@dataclass(frozen=True)
class Listing:
    """What sources hold.

    Attributes:
        portions: In order, each of the asked size but for the last one of a source or Parquet file.
        digest: SHA-256 over names, sizes and dates or version marks, as far as the storage tells them.
    """

    portions: tuple[Portion, ...]
    digest: str

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(map(len, self.portions))


def list_sources(sources: Iterable[str], size: int, column: str | None = None) -> Listing:
    """List sources and cut them into portions; the same sources give the same portions.

    Args:
        sources: Files, folders, patterns and addresses. A file that two of them hold is taken once.
        size: Images in a portion. A portion holds rows of one Parquet file only.
        column: Column of the images in Parquet files; ``None`` finds it: the only column of bytes or of images as
            `datasets` stores them, or else one of ``PATH_COLUMNS``. Paths are relative to the Parquet file.

    Raises:
        ConfigError: A source that does not exist or holds neither images nor Parquet files, or holds both; a
            Parquet file without such a column; nothing at all.
    """
    digest = hashlib.sha256()
    portions: list[Portion] = []
    seen: set[tuple[str, str]] = set()
    for source in sources:
        root, entries = _entries(source)
        paths = [path for path in sorted(entries) if (root, path) not in seen]
        seen.update((root, path) for path in paths)
        for path in paths:
            # A path may hold options that its name lacks and that make it another image.
            digest.update(f"{shown(root, path)}\0{portable(path)}\0{entries[path]}\n".encode())
        if paths and _holds_rows(paths[0]):  # then all do
            portions.extend(_row_portions(root, paths, size, column, digest.update))
        else:
            portions.extend(Files(root, tuple(paths[at : at + size])) for at in range(0, len(paths), size))
    if not portions:
        raise ConfigError("no image in these sources")
    return Listing(tuple(portions), digest.hexdigest())


def _entries(source: str) -> tuple[str, dict[str, str]]:
    """The root of a source, and its files with what tells a changed one: images alone or Parquet files alone."""
    root, found = _remote(source) if is_address(source) else ("", _local(source))
    tables = sum(_holds_rows(path) for path in found)
    if not found:
        raise ConfigError(f"{without_secrets(source)}: neither images nor Parquet files there")
    if 0 < tables < len(found):
        raise ConfigError(
            f"{without_secrets(source)}: holds both images and Parquet files; give a pattern such as *{PARQUET}"
        )
    return root, found


def _holds_rows(path: str) -> bool:
    # A signed address has options behind its name.
    return _without_options(path).endswith(PARQUET)


def _without_options(path: str) -> str:
    """A path as it is: "?" and "#" may be part of a file's name; an address without its options."""
    return without_options(path) if is_address(path) else path


def _local(source: str) -> dict[str, str]:
    tables = _local_tables(source)
    try:
        images = [os.fspath(path) for path in images_in([source])]
    except ImageError as error:
        if not tables:
            raise ConfigError(_with_hint(source, str(error))) from error
        images = []
    return {path: _local_mark(path) for path in (*images, *tables)}


def _local_tables(source: str) -> list[str]:
    if os.path.isdir(source):
        found = Path(source).rglob(f"*{PARQUET}")
        return [os.fspath(path) for path in found if not _hidden(path.relative_to(source).as_posix())]
    matches = [source] if os.path.exists(source) else glob.glob(source, recursive=True)
    return [path for path in matches if path.endswith(PARQUET)]


def _local_mark(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:  # reading it will say so in its row
        return "unreadable"
    return f"{status.st_size} {status.st_mtime_ns}"


def _remote(source: str) -> tuple[str, dict[str, str]]:
    root, path = split_address(source)
    try:
        found = _find(filesystem(root), path)
    except ConfigError:
        raise
    except Exception as error:  # storage libraries raise types of their own
        raise ConfigError(f"{without_secrets(source)}: cannot be listed: {first_line(error)}") from error
    base = posixpath.dirname(path.split("*")[0]) if "*" in path else path
    suffixes = {*SUFFIXES, PARQUET}
    return root, {
        name: _mark(facts)
        for name, facts in found.items()
        if name == path
        or (
            facts["type"] == "file"
            and posixpath.splitext(name)[1].lower() in suffixes
            and not _hidden(name.removeprefix(base))
        )
    }


def _find(storage: AbstractFileSystem, path: str) -> dict[str, Mapping[str, Any]]:
    """What an address stands for; a folder that cannot be listed is an error and not an empty one."""
    # A web server cannot tell whether a path is a folder; there and everywhere the slash at its end does.
    if "*" not in path and not path.endswith("/") and storage.isfile(path):
        return {path: storage.info(path)}
    # The Hub's file system raises without being asked, and passes the option on to where it is unknown.
    options = {} if storage.protocol == "hf" else {"on_error": "raise"}
    found = (storage.glob if "*" in path else storage.find)(path, detail=True, **options)
    return dict(found)


def _mark(facts: Mapping[str, Any]) -> str:
    return f"{facts.get('size')} {next((facts[key] for key in _VERSION_MARKS if facts.get(key)), '')}"


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _with_hint(source: str, reason: str) -> str:
    if source.count("/") == 1 and not glob.has_magic(source) and not os.path.exists(source):
        return f"{reason}; a dataset of the Hugging Face Hub is written hf://datasets/{printable(source)}"
    return reason


def _row_portions(
    root: str, paths: Sequence[str], size: int, column: str | None, note: Callable[[bytes], None]
) -> Iterator[Rows]:
    with ThreadPoolExecutor(16) as pool:
        for path, (rows, schema) in zip(paths, pool.map(partial(_footer, root), paths), strict=True):
            name = _column(schema, column, printable(shown(root, path)))
            note(f"{name} {rows}\n".encode())
            for start in range(0, rows, size):
                yield Rows(root, path, name, start, min(start + size, rows))


def _footer(root: str, path: str) -> tuple[int, pa.Schema]:
    try:
        with _open_parquet(root, path) as file:
            return file.metadata.num_rows, file.schema_arrow
    except Exception as error:  # storage libraries raise types of their own
        raise ConfigError(f"{printable(shown(root, path))}: no readable Parquet file: {first_line(error)}") from error


def _open_parquet(root: str, path: str) -> ParquetFile:
    from pyarrow.parquet import ParquetFile

    return ParquetFile(filesystem(root).open(path, "rb"))


def _column(schema: pa.Schema, wanted: str | None, where: str) -> str:
    columns = ", ".join(schema.names)
    if wanted is not None and wanted not in schema.names:
        raise ConfigError(f"{where}: no column {wanted!r}; there are {columns}")
    images = [field.name for field in schema if _holds_images(field.type)]
    texts = [field.name for field in schema if _holds_text(field.type)]
    if wanted is not None:
        if wanted not in (*images, *texts):
            kind = schema.field(wanted).type
            raise ConfigError(f"{where}: column {wanted!r} holds {kind}, neither images nor paths")
        return wanted
    paths = [name for name in PATH_COLUMNS if name in texts]
    if len(images) == 1 or (not images and paths):
        return (images or paths)[0]
    raise ConfigError(f"{where}: which column holds the images? Choose one with --column: {columns}")


def _holds_text(kind: pa.DataType) -> bool:
    import pyarrow.types as kinds

    values = kind.value_type if kinds.is_dictionary(kind) else kind
    return kinds.is_string(values) or kinds.is_large_string(values)


def _holds_images(kind: pa.DataType) -> bool:
    import pyarrow.types as kinds

    if kinds.is_struct(kind):
        return {"bytes", "path"} <= {kind.field(index).name for index in range(kind.num_fields)}
    return kinds.is_binary(kind) or kinds.is_large_binary(kind)


def _values(file: ParquetFile, column: str, start: int, stop: int) -> Iterator[Any]:
    """Values of a column from row ``start`` up to ``stop``; row groups without such rows are not read."""
    at_once = PATHS_AT_ONCE if _holds_text(file.schema_arrow.field(column).type) else ROWS_AT_ONCE
    first = 0
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if first < stop and start < first + rows:
            at = first
            for batch in file.iter_batches(at_once, row_groups=[group], columns=[column]):
                if at >= stop:
                    return
                inside = batch.slice(max(0, start - at), max(0, stop - max(start, at)))
                yield from inside.column(0).to_pylist()
                at += len(batch)
        first += rows


def _fail(reason: str) -> bytes:
    raise OSError(reason)
