"""Parquet from a results folder: a table of this project's size, or an error that names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qualiclip_plugin.utils.errors import QualiCLIPError, first_line

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_COLUMNS = 1000
FREE_BYTES = 2**24
"""Memory that every table may take, however small its file."""
MAX_TABLE_BYTES = 2**31
"""Text of a table in memory: ten million rows of hashes and names."""


class StoreError(QualiCLIPError):
    """The results folder cannot be written, or holds results that cannot be used."""


class DamagedError(StoreError):
    """A stored file is not what was written; what is derived from others can be made again."""


def read_bounded(path: Path, content: bytes) -> tuple[pa.Table, dict[str, str]]:
    """A table and the text of its header from the bytes of a Parquet file.

    Raises:
        DamagedError: Not Parquet, or it would take more memory than any table of scores or labels: a few bytes can
            stand for very many equal rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        groups = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
        # Each row names another image, which takes more than a byte.
        if max((file.metadata.num_rows, *groups)) > len(content) or file.metadata.num_columns > MAX_COLUMNS:
            raise DamagedError(f"{path}: more rows than its {len(content)} bytes can hold")
        _check_columns(path, file, len(content))
        names = [field.name for field in file.schema_arrow if any(known(field.type) for known in _text_types())]
        table = pq.read_table(pa.BufferReader(content), read_dictionary=names)
        table.validate(full=True)  # text that is no UTF-8, for one
        header = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
        if sum(_text_bytes(column) for column in table.columns) > MAX_TABLE_BYTES:
            raise DamagedError(f"{path}: more than {MAX_TABLE_BYTES} bytes of text")
        table = pa.table([_own_text(column) for column in table.columns], names=table.column_names)
    except DamagedError:
        raise
    except Exception as error:  # damaged bytes raise whatever they please: OSError, ArrowInvalid, UnicodeDecodeError
        raise DamagedError(f"{path}: not a readable Parquet file: {first_line(error)}") from error
    return table, header


def frame_from(path: Path, table: pa.Table, shaped: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """A data frame with the columns and types that ``shaped`` gives it.

    Raises:
        DamagedError: The table has others.
    """
    try:
        return shaped(table.to_pandas())
    except (KeyError, ValueError, TypeError, OverflowError, ArithmeticError) as error:
        raise DamagedError(f"{path}: not a table of this harness: {first_line(error)}") from error


def _check_columns(path: Path, file: pq.ParquetFile, size: int) -> None:
    """Refuse columns of which a few bytes can stand for gigabytes once they are decoded."""
    import pyarrow as pa

    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    plain = (*_text_types(), *numbers)
    if others := [field for field in file.schema_arrow if not any(known(field.type) for known in plain)]:
        raise DamagedError(f"{path}: the column {others[0].name!r} holds {others[0].type}, no text and no numbers")
    parts = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
    chunks = [part.column(index) for part in parts for index in range(part.num_columns)]
    # Other compressions make nearly nothing of a page of equal bytes.
    if strange := {chunk.compression for chunk in chunks} - {"SNAPPY", "UNCOMPRESSED"}:
        raise DamagedError(f"{path}: compressed by {', '.join(sorted(strange))}, which this harness does not")
    if 8 * sum(chunk.num_values for chunk in chunks) > 64 * size + FREE_BYTES:
        raise DamagedError(f"{path}: more values than its {size} bytes can hold")


def _text_types() -> tuple[Callable[[pa.DataType], bool], ...]:
    import pyarrow as pa

    return pa.types.is_string, pa.types.is_large_string


def _own_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A dictionary-encoded text column with a copy for every row."""
    import pyarrow as pa

    return column.cast(pa.large_string()) if pa.types.is_dictionary(column.type) else column


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Bytes of a dictionary-encoded text column once every row has its own copy."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(column.type):
        return column.nbytes
    return sum(
        pc.sum(pc.take(pc.binary_length(chunk.dictionary), chunk.indices)).as_py() or 0 for chunk in column.chunks
    )
