"""The table beside a folder of images: read as text first, so that every mistake is named by its row."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from harness.data.specs import Columns, DatasetSpec, Opinion
from harness.statistics import MIN_IMAGES
from qualiclip_plugin.documents import parse_json
from qualiclip_plugin.errors import DatasetError

NAMES = ("metadata.csv", "metadata.jsonl")
Row = dict[str, Any]
MAX_LEVEL = 1_000_000
UNBOUNDED = (-math.inf, math.inf)


def find_metadata(folder: Path) -> Path:
    """The metadata file of a folder.

    Raises:
        DatasetError: Not a folder, no metadata file, or two of them.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: not a folder")
    found = [folder / name for name in NAMES if (folder / name).is_file()]
    if not found:
        raise DatasetError(
            f"{folder}: no metadata.csv and no metadata.jsonl; one row per image is needed, with the columns "
            "file_name and mos or dmos (or, without human scores, reference, distortion and level)"
        )
    if len(found) > 1:
        raise DatasetError(f"{folder}: both {found[0].name} and {found[1].name}; keep one")
    return found[0]


def local_spec(folder: Path, name: str = "") -> DatasetSpec:
    """A specification for local images, from the columns of their metadata.

    ``mos`` is higher-better and ``dmos`` lower-better, as ITU-T P.800.2 has them.

    Args:
        folder: With images and ``metadata.csv`` or ``metadata.jsonl``; or a CSV, JSON-lines or Parquet file.
        name: Name in tables; empty: the folder's or the file's.

    Raises:
        DatasetError: No metadata, an empty one, no opinion and no level column, or both mos and dmos.
    """
    path = folder if folder.is_file() else find_metadata(folder)
    first = _columns(path)
    image = "image" if path.suffix == ".parquet" else "file_name"
    if image not in first:
        raise DatasetError(f"{path}: no column {image}; found {', '.join(first)}")
    labels = [label for label in ("mos", "dmos") if label in first]
    if len(labels) > 1:
        raise DatasetError(f"{path}: both mos and dmos; their directions differ, keep one")
    if not labels and not {"distortion", "level"} <= set(first):
        raise DatasetError(f"{path}: no column mos or dmos, and no distortion and level to test an order on")
    optional = ("std", "votes", "reference", "distortion", "level", "split")
    kind: Literal["mos", "dmos"] = "dmos" if labels == ["dmos"] else "mos"
    return DatasetSpec(
        name=name or (folder.resolve().name if folder.is_dir() else folder.stem),
        version="local",
        description=f"local images with {path.name}",
        licence="as its owner says",
        citation="",
        columns=Columns(image, "".join(labels), **{key: key for key in optional if key in first}),
        opinion=Opinion(kind, kind == "dmos", UNBOUNDED) if labels else None,
        folder=str(folder),
        ran=True,
    )


def check_metadata(path: Path, spec: DatasetSpec) -> list[dict[str, Any]]:
    """Read and check every row of a metadata file that lies beside its images.

    Args:
        path: A CSV or JSON-lines file.
        spec: Names of the columns and range of the opinions.

    Returns:
        Rows as read, every number checked.

    Raises:
        DatasetError: See :func:`check_rows`; or an image is missing, or a name leads out of the folder.
    """

    def with_files() -> Iterator[tuple[int, Row]]:
        for line, row in read_rows(path):
            if spec.columns.image in row:
                _check_file(path.parent, str(row[spec.columns.image]), f"{path}, line {line}")
            yield line, row

    return check_rows(path, with_files(), spec)


def check_rows(path: str | Path, lines: Iterable[tuple[int, Row]], spec: DatasetSpec) -> list[Row]:
    """Check labels.

    Args:
        path: Where they come from, for messages.
        lines: Line number and row.
        spec: Names of the columns and range of the opinions.

    Returns:
        Rows as read, every number checked.

    Raises:
        DatasetError: A column is missing, a number is none or out of range, an image is named twice, or
            there are fewer than 3 rows; names the row.
    """
    rows, seen = [], dict[str, int]()
    columns = spec.columns
    for line, row in lines:
        where = f"{path}, line {line}"
        missing = [name for name in vars(columns).values() if name and row.get(name) is None]
        if missing:
            raise DatasetError(f"{where}: no {' and no '.join(missing)}")
        name = str(row[columns.image])
        if name in seen:
            raise DatasetError(f"{where}: {name} is already in line {seen[name]}")
        seen[name] = line
        _check_numbers(row, spec, f"{where} ({name})")
        rows.append(row)
    if len(rows) < MIN_IMAGES:
        raise DatasetError(f"{path}: {len(rows)} images, at least {MIN_IMAGES} are needed")
    return rows


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and row, in the order of the file.

    Raises:
        DatasetError: The file cannot be read, or a line is not what the format asks for.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _csv_rows(file, path) if path.suffix == ".csv" else _json_rows(file, path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error


def number(value: Any, where: str, column: str) -> float:
    """A finite number from a cell of a table.

    Raises:
        DatasetError: It is not one; names the place.
    """
    try:
        result = math.nan if isinstance(value, bool) else float(value)
    except (OverflowError, TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise DatasetError(f"{where}: {column} is {str(value)[:40]!r}, a number is needed")
    return result


def check_opinion(value: float, spec: DatasetSpec, where: str) -> None:
    """Refuse an opinion outside the declared range.

    Raises:
        DatasetError: It is outside.
    """
    low, high = spec.opinion.range if spec.opinion else UNBOUNDED
    if not low <= value <= high:
        column = spec.columns.opinion
        raise DatasetError(f"{where}: {column} is {value:g}, outside the declared range {low:g}..{high:g}")


def _columns(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return list(pq.read_schema(path).names)
        except (OSError, pa.ArrowInvalid) as error:
            raise DatasetError(f"{path}: not a readable Parquet file: {error}") from error
    if path.suffix not in (".csv", ".jsonl"):
        raise DatasetError(f"{path}: neither a folder nor a .csv, .jsonl or .parquet file")
    _, first = next(read_rows(path), (0, {}))
    if not first:
        raise DatasetError(f"{path}: no rows")
    return [str(name) for name in first]


def _csv_rows(file: Any, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file)
    header = list(reader.fieldnames or ())
    twice = {name for name in header if header.count(name) > 1}
    if twice:
        raise DatasetError(f"{path}, line 1: column {', '.join(sorted(twice))} occurs twice")
    for row in reader:
        if None in row:
            raise DatasetError(f"{path}, line {reader.line_num}: more cells than the {len(header)} columns")
        yield reader.line_num, row


def _json_rows(file: Any, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        yield line, parse_json(text, DatasetError, f"{path}, line {line}")


def _check_file(folder: Path, name: str, where: str) -> None:
    parts = PurePosixPath(name).parts
    if not name or name.startswith("/") or ".." in parts or PureWindowsPath(name).drive or "://" in name:
        raise DatasetError(f"{where}: file name {name!r} leads out of the folder")
    if not os.path.isfile(folder / name):
        raise DatasetError(f"{where}: image {name!r} is missing")


def _check_numbers(row: dict[str, Any], spec: DatasetSpec, where: str) -> None:
    columns = spec.columns
    if columns.opinion:
        check_opinion(number(row[columns.opinion], where, columns.opinion), spec, where)
    if columns.std and number(row[columns.std], where, columns.std) < 0:
        raise DatasetError(f"{where}: {columns.std} is negative")
    if columns.votes and number(row[columns.votes], where, columns.votes) <= 0:
        raise DatasetError(f"{where}: {columns.votes} is not positive")
    if columns.level:
        level = number(row[columns.level], where, columns.level)
        if not 0 <= level <= MAX_LEVEL or level != int(level):
            raise DatasetError(f"{where}: {columns.level} is {level:g}, a whole number from 0 (pristine) is needed")
