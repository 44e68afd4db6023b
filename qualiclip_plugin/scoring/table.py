"""Scores as a table: for the terminal, for a pipe, and as a CSV, JSON Lines or Parquet file."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pandas as pd

from qualiclip_plugin.scoring.local import ScoredImage
from qualiclip_plugin.utils.atomic import atomic_write
from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.utils.shown import printable

if TYPE_CHECKING:
    from rich.table import Table


def to_frame(rows: Iterable[ScoredImage], attributes: Sequence[str] = ()) -> pd.DataFrame:
    """Rows as columns ``path``, ``score``, one per attribute, ``width``, ``height``, ``error``, ``note``.

    Args:
        rows: One per image.
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
    frame = pd.DataFrame.from_records(
        records, columns=["path", "score", *attributes, "width", "height", "error", "note"]
    )
    text = dict.fromkeys(("path", "error", "note"), "string")
    return frame.astype(
        text | dict.fromkeys(("score", *attributes), "float64") | dict.fromkeys(("width", "height"), "Int64")
    )


def _write_csv(frame: pd.DataFrame, file: IO[bytes]) -> None:
    # Every text is quoted: a name may hold a newline, a carriage return or a comma.
    frame.to_csv(file, index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n", encoding="utf-8")


def _write_jsonl(frame: pd.DataFrame, file: IO[bytes]) -> None:
    frame.to_json(file, orient="records", lines=True, double_precision=15)


def _write_parquet(frame: pd.DataFrame, file: IO[bytes]) -> None:
    frame.to_parquet(file, index=False)


WRITERS: dict[str, Callable[[pd.DataFrame, IO[bytes]], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}


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
    try:
        with atomic_write(target) as file:
            WRITERS[target.suffix.lower()](frame, file)
    except OSError as error:
        raise ConfigError(f"{printable(target)}: cannot be written: {error.strerror or error}") from error


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
