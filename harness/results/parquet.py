"""Parquet from a results folder: a table of this project's size, or an error that names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qualiclip_plugin.utils.errors import QualiCLIPError, first_line

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MAX_TABLE_BYTES = 2**31
"""Text of a table in memory: ten million rows of hashes and names."""


class StoreError(QualiCLIPError):
    """The results folder cannot be written, or holds results that cannot be used."""


class DamagedError(StoreError):
    """A stored file is not what was written; what is derived from others can be made again."""


def read_bounded(path: Path, content: bytes) -> tuple[pa.Table, dict[str, str]]:
    """A table and the text of its header from the bytes of a Parquet file.

    Args:
        path: For messages.
        content: The bytes.

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
        if max((file.metadata.num_rows, *groups)) > len(content) or file.metadata.num_columns > 1000:
            raise DamagedError(f"{path}: more rows than its {len(content)} bytes can hold")
        names = [field.name for field in file.schema_arrow if pa.types.is_string(field.type)]
        table = pq.read_table(pa.BufferReader(content), read_dictionary=names)
        table.validate(full=True)  # text that is no UTF-8, for one
        header = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
        if sum(_text_bytes(column) for column in table.columns) > MAX_TABLE_BYTES:
            raise DamagedError(f"{path}: more than {MAX_TABLE_BYTES} bytes of text")
    except DamagedError:
        raise
    except Exception as error:  # damaged bytes raise whatever they please: OSError, ArrowInvalid, UnicodeDecodeError
        raise DamagedError(f"{path}: not a readable Parquet file: {first_line(error)}") from error
    return table.replace_schema_metadata(None), header


def frame_from(path: Path, table: pa.Table, shaped: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """A data frame with the columns and types that ``shaped`` gives it.

    Raises:
        DamagedError: The table has others.
    """
    try:
        return shaped(table.to_pandas())
    except (KeyError, ValueError, TypeError, OverflowError, ArithmeticError) as error:
        raise DamagedError(f"{path}: not a table of this harness: {first_line(error)}") from error


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Bytes of a dictionary-encoded text column once every row has its own copy."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(column.type):
        return column.nbytes
    return sum(
        pc.sum(pc.take(pc.binary_length(chunk.dictionary), chunk.indices)).as_py() or 0 for chunk in column.chunks
    )
