"""The labels of a folder of images: the columns of its ``metadata.csv`` or ``metadata.jsonl``, every row checked."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qualiclip_plugin.utils.atomic import inside
from qualiclip_plugin.utils.errors import DatasetError
from qualiclip_plugin.utils.statistics import MIN_IMAGES
from qualiclip_plugin.utils.tables import Placed, column_names, number, read_rows

NAMES = ("metadata.csv", "metadata.jsonl")
MAX_LEVEL = 1_000_000
UNBOUNDED = (-math.inf, math.inf)
OPINION_COLUMNS = {"mos": False, "dmos_lower_better": True, "dmos_higher_better": False}
"""Columns of opinions that say their direction: whether lower is better."""
WHOLE_SET = "all"
"""The subset of all images in every cell; a split of this name would take its place."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns in the dataset's own table; empty if it has none.

    Attributes:
        image: Image, or file name of the image.
        std: Standard deviation of the opinions of one image.
        reference: Content: which photograph a distorted image comes from.
        level: Severity, 0 pristine, higher worse.
        split: Official part of the dataset a row belongs to.
    """

    image: str = "file_name"
    opinion: str = ""
    std: str = ""
    votes: str = ""
    reference: str = ""
    distortion: str = ""
    level: str = ""
    split: str = ""


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


def local_columns(folder: Path, lower_better: bool | None = None) -> tuple[Columns, bool]:
    """The columns of the metadata of local images, and whether lower opinions are better.

    ``mos`` is higher-better. A ``dmos`` may be either (KADID-10k's is higher-better, CSIQ's is not), and so its
    direction is declared: by the column's name, ``dmos_lower_better`` or ``dmos_higher_better``, or by the caller.

    Args:
        folder: With images and ``metadata.csv`` or ``metadata.jsonl``; or a CSV, JSON-lines or Parquet file.
        lower_better: The direction of a column ``dmos``.

    Raises:
        DatasetError: No metadata, an empty one, no opinion and no level column, two opinion columns, or a ``dmos``
            whose direction nobody declares.
    """
    path = folder if folder.is_file() else find_metadata(folder)[0]
    first = column_names(path)
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
    found = {key: key for key in optional if key in first or (key == "split" and parted)}
    return Columns(image, "".join(labels), **found), down


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


def local_rows(
    folder: Path, files: Sequence[Path], columns: Columns, needed: Collection[str] = ()
) -> Iterator[Placed]:
    """Every row of the metadata files of a folder, unchecked.

    Args:
        folder: What file names are relative to in the result; in a metadata file they are relative to its place.
        files: CSV or JSON-lines files, in the folder or in its subfolders; there the subfolder is the split,
            unless the rows name one.
        needed: See :func:`~qualiclip_plugin.utils.tables.read_rows`.

    Raises:
        DatasetError: A file cannot be read, or a name leads out of the folder.
    """
    for file in files:
        part = file.parent.relative_to(folder)
        for where, row in read_rows(file, needed=needed):
            name = row.get(columns.image)
            if name is not None:
                inside(folder, *part.parts, str(name), error=DatasetError, where=where)
                row[columns.image] = str(part / str(name))
            if part.parts and columns.split:
                row.setdefault(columns.split, part.name)
            yield where, row


def check_labels(
    origin: str | Path,
    rows: Iterable[Placed],
    columns: Columns,
    *,
    opinions: tuple[float, float] = UNBOUNDED,
    full_reference: Sequence[str] = (),
    repeated: bool = False,
) -> list[Placed]:
    """Check labels.

    Args:
        origin: Where they all come from, for messages.
        opinions: Lowest and highest value that may occur.
        full_reference: Columns with full-reference qualities.
        repeated: An image may stand in several rows, all of which say the same of it; it counts once.

    Returns:
        Rows as read, every number checked.

    Raises:
        DatasetError: A column is missing, a number is none or out of range, an image is named twice, a split is
            called "all", or there are fewer than 3 rows; names the row.
    """
    checked, seen = [], dict[str, tuple[str, list[Any]]]()
    wanted = [name for name in vars(columns).values() if name]
    for where, row in rows:
        if absent := [name for name in (*wanted, *full_reference) if name not in row]:
            raise DatasetError(f"{where}: no column {', '.join(absent)}; found {', '.join(map(str, row))}")
        if empty := [name for name in wanted if row[name] is None]:
            raise DatasetError(f"{where}: no value for {', '.join(empty)}")
        name = str(row[columns.image])
        labels = [row[column] for column in wanted]
        if name in seen:
            first, same = seen[name][0], seen[name][1] == labels
            if same and repeated:
                continue
            file, _, line = first.rpartition(", ")
            raise DatasetError(f"{where}: {name} is already in {line if where.startswith(file) else first}")
        seen[name] = (where, labels)
        if columns.split and str(row[columns.split]) == WHOLE_SET:
            raise DatasetError(f"{where}: {columns.split} is {WHOLE_SET!r}, which stands for the whole set")
        _check_numbers(row, columns, opinions, full_reference, f"{where} ({name})")
        checked.append((where, row))
    if len(checked) < MIN_IMAGES:
        raise DatasetError(f"{origin}: {len(checked)} images, at least {MIN_IMAGES} are needed")
    return checked


def _metadata_in(folder: Path) -> list[Path]:
    found = [folder / name for name in NAMES if (folder / name).is_file()]
    if len(found) > 1:
        raise DatasetError(f"{folder}: both {found[0].name} and {found[1].name}; keep one")
    return found


def _check_numbers(
    row: dict[str, Any],
    columns: Columns,
    opinions: tuple[float, float],
    full_reference: Sequence[str],
    where: str,
) -> None:
    if columns.opinion:
        value, (low, high) = number(row[columns.opinion], where, columns.opinion), opinions
        if not low <= value <= high:
            raise DatasetError(
                f"{where}: {columns.opinion} is {value:g}, outside the declared range {low:g}..{high:g}"
            )
    if columns.std and number(row[columns.std], where, columns.std) < 0:
        raise DatasetError(f"{where}: {columns.std} is negative")
    if columns.votes and number(row[columns.votes], where, columns.votes) <= 0:
        raise DatasetError(f"{where}: {columns.votes} is not positive")
    if columns.level:
        level = number(row[columns.level], where, columns.level)
        if not 0 <= level <= MAX_LEVEL or level != int(level):
            raise DatasetError(f"{where}: {columns.level} is {level:g}, a whole number from 0 (pristine) is needed")
    for name in full_reference:
        value = row[name]
        # Pristine images have none, which a Parquet file says by null and pandas by NaN.
        if value not in (None, "") and value == value:  # noqa: PLR0124
            number(value, where, name)
