"""Labels of every dataset under the same column names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.data.specs import DatasetSpec

if TYPE_CHECKING:
    import pandas as pd

LABELS = ("file_name", "opinion", "std", "votes", "reference", "distortion", "level", "split")
"""Columns of every opened dataset; those it lacks are empty. Columns for the P-test may follow."""

FULL_REFERENCE = "full_reference_"
"""Prefix of the columns with full-reference qualities, higher better, empty for pristine images."""

_NUMBERS = ("opinion", "std", "votes")


def label_table(rows: Sequence[Mapping[str, Any]], spec: DatasetSpec) -> pd.DataFrame:
    """Labels of checked rows under the names of ``LABELS``; what the dataset lacks is empty.

    Returns:
        ``opinion``, ``std`` and ``votes`` float64 (NaN where there are none), ``level`` nullable integer; text.
    """
    import pandas as pd

    columns = {**vars(spec.columns), "file_name": spec.columns.image}
    table = pd.DataFrame({label: [row.get(columns[label]) for row in rows] for label in LABELS})
    if spec.opinion and spec.opinion.votes and not spec.columns.votes:
        table["votes"] = spec.opinion.votes
    for label in _NUMBERS:
        table[label] = pd.to_numeric(table[label]).astype("float64")
    table["level"] = pd.to_numeric(table["level"]).astype("Int64")
    for name in spec.full_reference:
        table[f"{FULL_REFERENCE}{name}"] = pd.to_numeric([row.get(name) or None for row in rows]).astype("float64")
    text = [label for label in LABELS if label not in (*_NUMBERS, "level")]
    return table.assign(**{label: table[label].fillna("").astype(str) for label in text})
