"""The table beside a folder of images: read as text first, so that every mistake is named by its row."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from harness.data.patterns import Pattern
from harness.data.spec import Columns, DatasetSpec, Opinion
from harness.statistics import MIN_IMAGES
from qualiclip_plugin.utils.atomic import inside
from qualiclip_plugin.utils.errors import DatasetError
from qualiclip_plugin.utils.json_yaml import parse_json
from qualiclip_plugin.utils.regular_files import open_regular
from qualiclip_plugin.utils.shown import portable

NAMES = ("metadata.csv", "metadata.jsonl")
Row = dict[str, Any]
Placed = tuple[str, Row]
"""A row and where it stands, for messages."""

MAX_LEVEL = 1_000_000
MAX_TABLE_BYTES = 2**28
"""Of a table of text; the labels of a million images take a third."""
MAX_COLUMNS = 1000
LARGEST = 3.4e38
"""What single precision holds; the square of a larger number, which the figures need, may be none any more."""
UNBOUNDED = (-math.inf, math.inf)
OPINION_COLUMNS = {"mos": False, "dmos_lower_better": True, "dmos_higher_better": False}
"""Columns of opinions that say their direction: whether lower is better."""
WHOLE_SET = "all"
"""The subset of all images in every cell; a split of this name would take its place."""


def find_metadata(folder: Path) -> list[Path]:
    """The metadata file of a folder; or those of its subfolders, one for each split, as in an ``imagefolder``.

    Raises:
        DatasetError: Not a folder, no metadata file, or two of them in one place.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: not a folder")
    parts = sorted(path for path in folder.iterdir() if path.is_dir())
    found = _metadata_in(folder) or [file for part in parts for file in _metadata_in(part)]
    if not found:
        raise DatasetError(
            f"{folder}: no metadata.csv and no metadata.jsonl; one row per image is needed, with the columns "
            "file_name and mos or dmos (or, without human scores, reference, distortion and level)"
        )
    return found


def local_spec(folder: Path, name: str = "", lower_better: bool | None = None) -> DatasetSpec:
    """A specification for local images, from the columns of their metadata.

    ``mos`` is higher-better. A ``dmos`` may be either (KADID-10k's is higher-better, CSIQ's is not), and so its
    direction is declared: by the column's name, ``dmos_lower_better`` or ``dmos_higher_better``, or by the caller.

    Args:
        folder: With images and ``metadata.csv`` or ``metadata.jsonl``; or a CSV, JSON-lines or Parquet file.
        name: Name in tables; empty: the folder's or the file's.
        lower_better: The direction of a column ``dmos``.

    Raises:
        DatasetError: No metadata, an empty one, no opinion and no level column, two opinion columns, or a ``dmos``
            whose direction nobody declares.
    """
    path = folder if folder.is_file() else find_metadata(folder)[0]
    first = _columns(path)
    image = "image" if path.suffix == ".parquet" else "file_name"
    if image not in first:
        raise DatasetError(f"{path}: no column {image}; found {', '.join(first)}")
    labels = [label for label in (*OPINION_COLUMNS, "dmos") if label in first]
    if len(labels) > 1:
        raise DatasetError(f"{path}: both {labels[0]} and {labels[1]}; their directions may differ, keep one")
    down = _declared_direction(path, "".join(labels), lower_better)
    if not labels and not {"distortion", "level"} <= set(first):
        raise DatasetError(f"{path}: no column mos or dmos, and no distortion and level to test an order on")
    optional = ("std", "votes", "reference", "distortion", "level", "split")
    parted = folder.is_dir() and path.parent != folder
    kind: Literal["mos", "dmos"] = "mos" if labels == ["mos"] else "dmos"
    return DatasetSpec(
        name=portable(name or (folder.resolve().name if folder.is_dir() else folder.stem)),
        version="local",
        description=f"local images with {path.name}",
        licence="as its owner says",
        citation="",
        columns=Columns(
            image, "".join(labels), **{key: key for key in optional if key in first or (key == "split" and parted)}
        ),
        opinion=Opinion(kind, down, UNBOUNDED) if labels else None,
        folder=str(folder),
        verified="run",
    )


def _declared_direction(path: Path, column: str, lower_better: bool | None) -> bool:
    if column == "dmos":
        if lower_better is None:
            raise DatasetError(
                f"{path}: a column dmos does not say whether lower is better; name it dmos_lower_better or "
                "dmos_higher_better, or give the dataset as PATH@lower_better=true (or false)"
            )
        return lower_better
    if lower_better is not None:
        raise DatasetError(
            f"{path}: lower_better is for a column dmos, and the direction of {column or 'none'} is known"
        )
    return OPINION_COLUMNS.get(column, False)


def local_rows(folder: Path, files: Sequence[Path], spec: DatasetSpec) -> list[Placed]:
    """Read and check every row of the metadata files of a folder.

    Args:
        folder: What file names are relative to in the result; in a metadata file they are relative to its place.
        files: CSV or JSON-lines files, in the folder or in its subfolders; there the subfolder is the split,
            unless the rows name one.
        spec: Names of the columns and range of the opinions.

    Raises:
        DatasetError: See :func:`check_rows`; or a name leads out of the folder.
    """

    def rows() -> Iterator[Placed]:
        for file in files:
            part = file.parent.relative_to(folder)
            for where, row in read_rows(file, needed=spec.asked):
                name = row.get(spec.columns.image)
                if name is not None:
                    inside(folder, *part.parts, str(name), error=DatasetError, where=where)
                    row[spec.columns.image] = str(part / str(name))
                if part.parts and spec.columns.split:
                    row.setdefault(spec.columns.split, part.name)
                yield where, row

    return check_rows(folder if len(files) > 1 else files[0], rows(), spec)


def check_rows(origin: str | Path, rows: Iterable[Placed], spec: DatasetSpec) -> list[Placed]:
    """Check labels.

    Args:
        origin: Where they all come from, for messages.
        rows: Where each stands, and the row.
        spec: Names of the columns, those derived from others, and range of the opinions.

    Returns:
        Rows as read with the derived columns, every number checked.

    Raises:
        DatasetError: A column is missing, a number is none or out of range, an image is named twice, a split is
            called "all", or there are fewer than 3 rows; names the row.
    """
    checked, seen = [], dict[str, tuple[str, list[Any]]]()
    columns = spec.columns
    pattern = Pattern(spec.derive.pattern, "derive.pattern") if spec.derive else None
    for where, read in rows:
        row = {**read, **_derived(read, spec, pattern, where)}
        wanted = [name for name in vars(columns).values() if name]
        if absent := [name for name in (*wanted, *spec.full_reference) if name not in row]:
            raise DatasetError(f"{where}: no column {', '.join(absent)}; found {', '.join(map(str, read))}")
        if empty := [name for name in wanted if row[name] is None]:
            raise DatasetError(f"{where}: no value for {', '.join(empty)}")
        name = str(row[columns.image])
        labels = [row[column] for column in wanted]
        if name in seen:
            first, same = seen[name][0], seen[name][1] == labels
            if same and spec.archive and spec.archive.repeated:
                continue
            file, _, line = first.rpartition(", ")
            raise DatasetError(f"{where}: {name} is already in {line if where.startswith(file) else first}")
        seen[name] = (where, labels)
        if columns.split and str(row[columns.split]) == WHOLE_SET:
            raise DatasetError(f"{where}: {columns.split} is {WHOLE_SET!r}, which stands for the whole set")
        _check_numbers(row, spec, f"{where} ({name})")
        checked.append((where, row))
    if len(checked) < MIN_IMAGES:
        raise DatasetError(f"{origin}: {len(checked)} images, at least {MIN_IMAGES} are needed")
    return checked


def read_rows(
    path: Path, header: Sequence[str] = (), separator: str = ",", needed: Collection[str] = ()
) -> Generator[Placed, None, None]:
    """Rows in the order of the file, and where each stands.

    Args:
        path: JSON lines where its name ends in ``.jsonl``, a list of JSON objects where it ends in ``.json``, else
            a table of text.
        header: Names of the columns of a table; empty: its first line names them.
        separator: Between two columns.
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


def _metadata_in(folder: Path) -> list[Path]:
    found = [folder / name for name in NAMES if (folder / name).is_file()]
    if len(found) > 1:
        raise DatasetError(f"{folder}: both {found[0].name} and {found[1].name}; keep one")
    return found


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


def _derived(row: Row, spec: DatasetSpec, pattern: Pattern | None, where: str) -> Row:
    if spec.derive is None or pattern is None:
        return {}
    text = str(row.get(spec.derive.column, ""))
    found = pattern.match(text)
    if found is None:
        raise DatasetError(f"{where}: {spec.derive.column} is {text!r}, not of the form {spec.derive.pattern}")
    return dict(found)


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
    for name in spec.full_reference:
        value = row[name]
        # Pristine images have none, which a Parquet file says by null and pandas by NaN.
        if value not in (None, "") and value == value:  # noqa: PLR0124
            number(value, where, name)
