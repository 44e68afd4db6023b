"""Tables beside images (CSV, JSON lines, JSON lists): read as text first, so that a mistake is named by its row."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from qualiclip_plugin.utils.errors import DatasetError
from qualiclip_plugin.utils.json_yaml import parse_json
from qualiclip_plugin.utils.regular_files import open_regular

Row = dict[str, Any]
Placed = tuple[str, Row]
"""A row and where it stands, for messages."""

MAX_TABLE_BYTES = 2**28
"""Of a table of text; the labels of a million images take a third."""
MAX_COLUMNS = 1000
LARGEST = 3.4e38
"""What single precision holds; the square of a larger number, which the figures need, may be none any more."""


def read_rows(
    path: Path, header: Sequence[str] = (), separator: str = ",", needed: Collection[str] = ()
) -> Generator[Placed, None, None]:
    """Rows in the order of the file, and the place of each.

    Args:
        path: JSON lines where its name ends in ``.jsonl``, a list of JSON objects where it ends in ``.json``, else
            a table of text.
        header: Names of the columns of a table; empty: its first line names them.
        needed: Columns that are asked for; others may stand there twice, as in tables that were put together.

    Raises:
        DatasetError: The file cannot be read, a line is not what the format asks for, or a needed column is doubled.
    """
    try:
        with io.TextIOWrapper(open_regular(path, MAX_TABLE_BYTES), encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".jsonl":
                yield from _json_rows(file, path)
            elif path.suffix == ".json":
                yield from _json_list(file, path)
            else:
                yield from _csv_rows(file, path, header, separator, needed)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error


def number(value: Any, where: str, column: str) -> float:
    """A number from a cell of a table, finite and no larger than :data:`LARGEST`.

    Raises:
        DatasetError: It is not one; names the place.
    """
    try:
        # Python's own digit groups, 1_0 for 10, are slips in a table.
        result = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    except (OverflowError, TypeError, ValueError):
        result = math.nan
    if not abs(result) <= LARGEST:
        raise DatasetError(f"{where}: {column} is {str(value)[:40]!r}, a number is needed")
    return result


def column_names(path: Path) -> list[str]:
    """The columns of a .csv, .jsonl (of its first line) or .parquet file.

    Raises:
        DatasetError: Another file, a damaged one, or one without rows.
    """
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            with open_regular(path) as packed:
                return list(pq.read_schema(packed).names)
        except Exception as error:  # damaged bytes raise whatever they please: OSError, UnicodeDecodeError, ...
            raise DatasetError(f"{path}: not a readable Parquet file: {error}") from error
    if path.suffix not in (".csv", ".jsonl"):
        raise DatasetError(f"{path}: neither a folder nor a .csv, .jsonl or .parquet file")
    with closing(read_rows(path)) as rows:
        _, first = next(rows, ("", {}))
    if not first:
        raise DatasetError(f"{path}: no rows")
    return [str(name) for name in first]


def _csv_rows(
    file: Any, path: Path, header: Sequence[str], separator: str, needed: Collection[str]
) -> Iterator[Placed]:
    reader = csv.DictReader(file, fieldnames=list(header) or None, delimiter=separator)
    names = list(reader.fieldnames or ())
    if len(names) > MAX_COLUMNS:
        raise DatasetError(f"{path}, line 1: more than {MAX_COLUMNS} columns")
    twice = {name for name in needed if names.count(name) > 1}
    if len(names) == 1 and len(split := names[0].split(";")) > 1:
        raise DatasetError(
            f"{path}, line 1: {len(split)} columns separated by ';'; save the table with commas instead"
        )
    if twice:
        raise DatasetError(f"{path}, line 1: column {', '.join(sorted(twice))} occurs twice")
    most = path.stat().st_size + MAX_COLUMNS
    for number, row in enumerate(reader, start=1):
        where = f"{path}, line {reader.line_num}"
        if number * len(names) > most:
            # Every cell takes a byte with its separator; the empty ones of short rows would take memory alone.
            raise DatasetError(f"{where}: most rows have fewer cells than the {len(names)} columns")
        if None in row:
            raise DatasetError(f"{where}: more cells than the {len(names)} columns")
        yield where, row


def _json_rows(file: Any, path: Path) -> Iterator[Placed]:
    for line, text in enumerate(file, start=1):
        where = f"{path}, line {line}"
        if not text.strip():
            continue
        yield where, parse_json(text, DatasetError, where)


def _json_list(file: Any, path: Path) -> Iterator[Placed]:
    # Held to the limits of an object, which is what can be parsed.
    rows = parse_json(f'{{"rows": {file.read()}}}', DatasetError, str(path))["rows"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DatasetError(f"{path}: not a list of JSON objects")
    for number, row in enumerate(rows):
        yield f"{path}, entry {number}", row
