"""Labels of every dataset under the same column names."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.parquet import DamagedError, frame_from, read_bounded
from harness.data.spec import DatasetSpec
from qualiclip_plugin.utils.shown import portable

if TYPE_CHECKING:
    import pandas as pd

LABELS = ("file_name", "opinion", "std", "votes", "reference", "distortion", "level", "split")
"""Columns of every opened dataset; those it lacks are empty. Columns for the P-test may follow."""

FULL_REFERENCE = "full_reference_"
"""Prefix of the columns with full-reference qualities, higher better, empty for pristine images."""

_NUMBERS = ("opinion", "std", "votes")
ROWS_AT_ONCE = 100_000
"""Of a table that is hashed: the text of them all would take more memory than the table."""


def label_table(rows: Sequence[Mapping[str, Any]], spec: DatasetSpec) -> pd.DataFrame:
    """Labels of checked rows under the names of ``LABELS``; what the dataset lacks is empty.

    Returns:
        ``opinion``, ``std`` and ``votes`` float64 (NaN if there are none), ``level`` nullable integer; text.
    """
    import pandas as pd

    columns = {**vars(spec.columns), "file_name": spec.columns.image}
    table = pd.DataFrame({label: [_storable(row.get(columns[label])) for row in rows] for label in LABELS})
    if spec.opinion and spec.opinion.votes and not spec.columns.votes:
        table["votes"] = spec.opinion.votes
    # As the rows were checked: pandas refuses text that Python takes for a number, such as one with a no-break space.
    for label in (*_NUMBERS, "level"):
        table[label] = table[label].map(float, na_action="ignore").astype("float64")
    table["level"] = table["level"].astype("Int64")
    for name in spec.full_reference:
        qualities = [row.get(name) for row in rows]
        table[f"{FULL_REFERENCE}{name}"] = [math.nan if value in (None, "") else float(value) for value in qualities]
    text = [label for label in LABELS if label not in (*_NUMBERS, "level")]
    return table.assign(**{label: table[label].fillna("").astype(str) for label in text})


def _storable(value: Any) -> Any:
    return portable(value) if isinstance(value, str) else value


def labels_hash(table: pd.DataFrame) -> str:
    """SHA-256 of file names and labels: changes when a figure may change without any new score."""
    ordered, digest = table.sort_values("file_name"), hashlib.sha256()
    for start in range(0, max(len(ordered), 1), ROWS_AT_ONCE):
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator=os.linesep)
        if start == 0:
            writer.writerow(ordered.columns)
        rows = ordered.iloc[start : start + ROWS_AT_ONCE]
        writer.writerows(zip(*(_csv_fields(rows[name]) for name in rows.columns), strict=True))
        digest.update(text.getvalue().encode())
    return digest.hexdigest()


def _csv_fields(column: pd.Series) -> list[Any]:
    """What ``to_csv(float_format="%.17g")`` of pandas writes of a column; it takes several times as long."""
    if column.dtype == "float64":
        return ["" if math.isnan(value) else f"{value:.17g}" for value in column.tolist()]
    return ["" if missing else value for value, missing in zip(column.tolist(), column.isna(), strict=True)]


def pack_labels(table: pd.DataFrame, known_hash: str = "") -> bytes:
    """A table of labels as a Parquet file that carries its own hash, which takes longest unless it is known."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    packed, content = pa.Table.from_pandas(table, preserve_index=False), io.BytesIO()
    header = {**(packed.schema.metadata or {}), "labels_hash": known_hash or labels_hash(table)}
    pq.write_table(packed.replace_schema_metadata(header), content)
    return content.getvalue()


def said_hash(content: bytes) -> str:
    """The hash that a file of labels says they have, unchecked; "none" if it says nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return ((pq.read_schema(pa.BufferReader(content)).metadata or {})[b"labels_hash"]).decode() or "none"
    except Exception:  # damaged bytes raise many kinds of errors
        return "none"


def unpack_labels(path: Path, content: bytes) -> tuple[pd.DataFrame, str]:
    """The table of labels in the bytes of a file, as it was packed, and its hash.

    Raises:
        DamagedError: It cannot be read, or was altered.
    """
    table, header = read_bounded(path, content)
    labels = frame_from(path, table, typed)
    try:
        known = labels_hash(labels)
    except csv.Error:  # a zero byte, which Python 3.10 writes into no table
        known = ""
    if header.get("labels_hash", known) != known or not known:
        raise DamagedError(f"{path}: it was altered after it was written; delete it and run the dataset again")
    return labels, known


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """A table of labels that was stored, in the types of :func:`label_table`.

    Raises:
        KeyError: A column is missing.
        ValueError: A column holds something else.
    """
    numbers = [name for name in table.columns if name in _NUMBERS or name.startswith(FULL_REFERENCE)]
    text = [name for name in (*LABELS, "image_hash") if name not in (*_NUMBERS, "level")]
    types = dict.fromkeys(numbers, "float64") | dict.fromkeys(text, "str") | {"level": "Int64"}
    return table[[*LABELS, *(name for name in table.columns if name not in LABELS)]].astype(types)
