"""Scores as a table: for the terminal, for a pipe, and as a CSV, JSON Lines or Parquet file."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pandas as pd

from qualiclip_plugin.scoring.local import ScoredImage
from qualiclip_plugin.utils.atomic import atomic_write
from qualiclip_plugin.utils.errors import ConfigError, disk_errors, first_line
from qualiclip_plugin.utils.regular_files import open_regular
from qualiclip_plugin.utils.shown import printable

if TYPE_CHECKING:
    from rich.table import Table


BEFORE, AFTER = ("path", "score"), ("width", "height", "error", "note")
"""Columns of every table; those of the attributes stand between them."""


def to_frame(rows: Iterable[ScoredImage], attributes: Sequence[str] = ()) -> pd.DataFrame:
    """Rows as columns ``path``, ``score``, one per attribute, ``width``, ``height``, ``error``, ``note``.

    Args:
        attributes: Names of the attribute columns, there also where no image has a score.
    """
    records = [
        {
            "path": row.path,
            "score": row.score,
            **{name: row.attributes.get(name) for name in attributes},
            "width": row.width,
            "height": row.height,
            "error": row.error,
            "note": row.note,
        }
        for row in rows
    ]
    return _typed(pd.DataFrame.from_records(records, columns=[*BEFORE, *attributes, *AFTER]))


def attribute_columns(frame: pd.DataFrame) -> list[str]:
    """Names of the columns with the scores of single prompt pairs."""
    return [str(name) for name in frame.columns if name not in {*BEFORE, *AFTER}]


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    numbers = dict.fromkeys(("score", *attribute_columns(frame)), "float64")
    return frame.astype(TEXT | numbers | dict.fromkeys(("width", "height"), "Int64"))


TEXT = dict.fromkeys(("path", "error", "note"), "string")
WRITERS: dict[str, Callable[[pd.DataFrame, IO[bytes]], object]] = {
    # Every text is quoted: a name may hold a newline, a carriage return or a comma.
    ".csv": lambda frame, file: frame.to_csv(file, index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n"),
    ".jsonl": lambda frame, file: frame.to_json(file, orient="records", lines=True, double_precision=15),
    ".parquet": lambda frame, file: frame.to_parquet(file, index=False),
}
READERS: dict[str, Callable[[IO[bytes]], pd.DataFrame]] = {
    # A name such as "NA" is a name, and an empty field is nothing.
    ".csv": lambda file: pd.read_csv(file, dtype=TEXT, keep_default_na=False, na_values=[""]),
    ".jsonl": lambda file: pd.DataFrame.from_records([json.loads(line) for line in file]),
    ".parquet": pd.read_parquet,
}


def read_scores(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read what :func:`write_scores` wrote; same columns and types as :func:`to_frame`.

    Raises:
        ConfigError: Unknown suffix, or not a table of scores; the message names the file and what is wrong.
    """
    source = Path(path)
    reader = READERS.get(source.suffix.lower())
    if reader is None:
        raise ConfigError(f"{printable(source)}: the name must end in {', '.join(READERS)}")
    try:
        with open_regular(source) as file:
            frame = reader(file)
        lacking = [name for name in (*BEFORE, *AFTER) if name not in frame.columns]
        if lacking:
            raise ConfigError(f"{printable(source)}: not a table of scores: has no column {', '.join(lacking)}")
        return _typed(frame)
    except OSError as error:
        raise ConfigError(f"{printable(source)}: cannot be read: {error.strerror or first_line(error)}") from error
    except (ValueError, TypeError, OverflowError) as error:  # what pandas and pyarrow raise for other content
        raise ConfigError(f"{printable(source)}: not a table of scores: {first_line(error)}") from error


def check_output(path: str | os.PathLike[str]) -> Path:
    """Check before any work that scores can be written to ``path``.

    Raises:
        ConfigError: Unknown suffix, a folder, or a place that cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() not in WRITERS:
        raise ConfigError(f"{printable(target)}: the name must end in {', '.join(WRITERS)}")
    if target.is_dir():
        raise ConfigError(f"{printable(target)}: is a folder")
    existing = next(parent for parent in target.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{printable(target)}: {printable(existing)} is no folder that can be written")
    return target


def write_scores(frame: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write scores in the format that the suffix names; the file is whole or, after an error, untouched.

    Raises:
        ConfigError: The file cannot be written.
    """
    target = check_output(path)
    with disk_errors(target, ConfigError), atomic_write(target) as file:
        WRITERS[target.suffix.lower()](frame, file)


def plain_table(frame: pd.DataFrame) -> str:
    """Tab-separated text, one line per image and a header; tabs and newlines in names are escaped."""
    lines = ["\t".join(map(printable, frame.columns))]
    lines += ["\t".join(map(_plain, row)) for row in frame.itertuples(index=False)]
    return "\n".join(lines)


def rich_table(frame: pd.DataFrame) -> Table:
    """The table for a terminal: four decimals, columns that are empty for every image left out."""
    from rich.table import Table
    from rich.text import Text

    shown = frame.drop(columns=[name for name in ("error", "note") if frame[name].isna().all()])
    table = Table()
    for name in shown.columns:
        numeric = name not in ("path", "error", "note")
        table.add_column(
            Text(printable(name)), justify="right" if numeric else "left", no_wrap=numeric, overflow="fold"
        )
    for row in shown.itertuples(index=False):
        # Text, because a name may look like markup.
        table.add_row(*(Text(_plain(value, decimals=4)) for value in row))
    return table


def _plain(value: object, decimals: int = 6) -> str:
    if pd.isna(value):  # type: ignore[call-overload]
        return ""
    return f"{value:.{decimals}f}" if isinstance(value, float) else printable(str(value))
