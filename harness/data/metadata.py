"""Labels of a dataset: a specification for local images, and rows checked as a specification wants them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from harness.data.patterns import Pattern
from harness.data.spec import DatasetSpec, Opinion
from qualiclip_plugin.utils.errors import DatasetError
from qualiclip_plugin.utils.metadata import UNBOUNDED, check_labels, find_metadata, local_columns
from qualiclip_plugin.utils.shown import portable
from qualiclip_plugin.utils.tables import Placed


def local_spec(path: Path, name: str = "", lower_better: bool | None = None) -> DatasetSpec:
    """A specification for local images, from the columns of their metadata.

    Args:
        path: See :func:`~qualiclip_plugin.utils.metadata.local_columns`, also for ``lower_better`` and errors.
        name: Name in tables; empty: the folder's or the file's.
        lower_better: The direction of a column ``dmos``.
    """
    columns, down = local_columns(path, lower_better)
    table = path if path.is_file() else find_metadata(path)[0]
    kind: Literal["mos", "dmos"] = "mos" if columns.opinion == "mos" else "dmos"
    return DatasetSpec(
        name=portable(name or (path.resolve().name if path.is_dir() else path.stem)),
        version="local",
        description=f"local images with {table.name}",
        licence="as its owner says",
        citation="",
        columns=columns,
        opinion=Opinion(kind, down, UNBOUNDED) if columns.opinion else None,
        folder=str(path),
        verified="run",
    )


def check_rows(origin: str | Path, rows: Iterable[Placed], spec: DatasetSpec) -> list[Placed]:
    """Rows as read with the columns that are derived from others, every number checked.

    Args:
        origin: Where they all come from, for messages.
        spec: Names of the columns, those derived from others, and range of the opinions.

    Raises:
        DatasetError: See :func:`~qualiclip_plugin.utils.metadata.check_labels`; or a text that columns are derived
            from is not of the declared form.
    """
    return check_labels(
        origin,
        _derived(rows, spec),
        spec.columns,
        opinions=spec.opinion.range if spec.opinion else UNBOUNDED,
        full_reference=spec.full_reference,
        repeated=spec.archive is not None and spec.archive.repeated,
    )


def _derived(rows: Iterable[Placed], spec: DatasetSpec) -> Iterator[Placed]:
    if spec.derive is None:
        yield from rows
        return
    pattern = Pattern(spec.derive.pattern, "derive.pattern")
    for where, row in rows:
        text = str(row.get(spec.derive.column, ""))
        found = pattern.match(text)
        if found is None:
            raise DatasetError(f"{where}: {spec.derive.column} is {text!r}, not of the form {spec.derive.pattern}")
        yield where, {**row, **found}
