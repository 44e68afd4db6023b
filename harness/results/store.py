"""Per-image scores on disk: append-only Parquet parts that survive a kill and several writers at once.

``scores/<scorer>/<dataset>@<version>/<fingerprint>/part-<sha256>.parquet``. A part is written to a temporary
file and moved into place, and no writer ever touches another writer's temporary file, so that a reader sees
whole parts only. Its name is the hash of its bytes, cells are sealed and labels carry their hash: what a disk has
altered is an error, never another number. Rows are keyed by the image's content; of two rows for one image the
earlier success wins.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.labels import pack_labels, said_hash, unpack_labels
from harness.data.parquet import DamagedError, StoreError, frame_from, read_bounded
from harness.results.schemas import CELL
from qualiclip_plugin.utils.atomic import atomic_write, inside, remove_leftovers
from qualiclip_plugin.utils.errors import disk_errors
from qualiclip_plugin.utils.json_yaml import json_text, read_document, read_json, sealed
from qualiclip_plugin.utils.regular_files import read_regular

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
OTHER_OUTPUT = "use another --output"
DTYPES = {
    "image_hash": "str",
    "score": "float64",
    "error": "str",
    "seconds": "float64",
    "height": "int32",
    "width": "int32",
    "finished": "str",
    "device": "str",
}
_HASHED = re.compile(r"part-([0-9a-f]{64})")
"""Parts of earlier releases have shorter names, which say nothing of their content."""


def no_results(folder: str | os.PathLike[str]) -> str:
    """What to say of a results folder that holds none."""
    return f"{folder}: no results; `iqa-harness run --output {folder}` makes some"


@dataclass(frozen=True)
class ScoreKey:
    """What makes two scores of one image the same measurement.

    Attributes:
        scorer: Name, for the folder.
        dataset: Name and version, for the folder.
        identity: Everything that may change a score: code, weights, options, versions, how images are read.
    """

    scorer: str
    dataset: str
    identity: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the identity and the dataset's version."""
        text = json.dumps([self.dataset, self.identity], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """The results folder.

    Args:
        root: Created on the first write.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def sweep(self) -> None:
        """Remove temporary files of runs that were killed; those of runs that continue stay.

        Raises:
            StoreError: See :meth:`append`.
        """
        with disk_errors(self.root, StoreError):
            for folder, _, _ in os.walk(self.root):
                remove_leftovers(Path(folder))

    def scores(self, key: ScoreKey) -> pd.DataFrame:
        """All stored scores under a key, one row per image content, in the order of its hash.

        Raises:
            StoreError: A part was altered, has another schema version or belongs to another fingerprint.
        """
        import pandas as pd

        parts = self._read_parts(key)
        if len(parts) == 1 and _rising(parts[0]["image_hash"]):
            return parts[0]
        rows = pd.concat(parts) if parts else pd.DataFrame({name: [] for name in DTYPES}).astype(DTYPES)
        failed = rows["error"] != ""
        rows = rows.assign(failed=failed).sort_values(["image_hash", "failed", "finished", "score"], kind="stable")
        return rows.drop_duplicates("image_hash").drop(columns="failed").reset_index(drop=True)

    def append(self, key: ScoreKey, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows (the keys of ``DTYPES``) as one new part.

        Raises:
            StoreError: The folder is read-only or the disk full; what was stored before is untouched.
        """
        if rows:
            self._write_part(key, _frame(rows))

    def merge(self, key: ScoreKey) -> None:
        """Replace all parts by one with the same rows; safe beside other readers and writers.

        Raises:
            StoreError: See :meth:`append`.
        """
        self._write_identity(key)
        old = self._parts(key)
        if len(old) < 2:
            return
        merged = self._write_part(key, self.scores(key)[list(DTYPES)])
        for path in old:
            if path != merged:
                path.unlink(missing_ok=True)

    def identity(self, scorer: str, dataset: str, fingerprint: str) -> dict[str, Any]:
        """What a fingerprint stands for.

        Args:
            dataset: Name and version.

        Raises:
            StoreError: It is not there or cannot be read.
        """
        path = self._place("scores", slug(scorer), slug(dataset), fingerprint[:16], "identity.json")
        found = read_json(path, StoreError, "the identity of stored scores")
        found.pop("dataset", None)
        return found

    def write_cell(self, path: Path, cell: Mapping[str, Any]) -> None:
        """Write a cell, sealed, in one step; errors as :meth:`append`."""
        _write(path, json_text(sealed(cell)))

    def write_text(self, path: Path, text: str) -> None:
        """Write a text file in one step; see :meth:`write_cell`."""
        _write(path, text.encode())

    def write_labels(self, dataset: str, table: pd.DataFrame, known_hash: str = "") -> None:
        """Keep the labels beside the scores, so that reports need no images.

        Args:
            dataset: Name and version.
            known_hash: Their :func:`harness.data.labels.labels_hash`, where it is at hand.

        Raises:
            StoreError: See :meth:`append`.
        """
        _write(self.labels_path(dataset), pack_labels(table, known_hash))

    def labels(self, dataset: str) -> tuple[pd.DataFrame, str]:
        """The labels of a dataset, given as name and version, as they were written, and their hash.

        Raises:
            DamagedError: They cannot be read, or were altered.
        """
        path = self.labels_path(dataset)
        return unpack_labels(path, _content(path))

    def has_labels(self, dataset: str, table: pd.DataFrame, known_hash: str = "") -> bool:
        """Whether these labels are what is stored, byte for byte.

        Args:
            dataset: Name and version.
            table: The labels.
            known_hash: Their hash; none: what the file says, unchecked.
        """
        path = self.labels_path(dataset)
        if not path.is_file():
            return False
        content = _content(path)
        return content == pack_labels(table, known_hash or said_hash(content))

    def labels_path(self, dataset: str) -> Path:
        """Parquet file with the labels of a dataset, given as name and version."""
        return self._place("datasets", f"{slug(dataset)}.parquet")

    def cell_path(self, scorer: str, dataset: str) -> Path:
        """JSON file of a scorer on a dataset, both given by name."""
        return self._place("cells", slug(scorer), f"{slug(dataset)}.json")

    def cells(self) -> list[dict[str, Any]]:
        """All cells, in the order of their paths; errors as :meth:`read_cell`."""
        return [self.read_cell(path) for path in sorted((self.root / "cells").glob("*/*.json"))]

    def read_cell(self, path: Path) -> dict[str, Any]:
        """One cell.

        Raises:
            DamagedError: It is no cell, or was altered after it was written.
            StoreError: It has another schema version.
        """
        other = StoreError, OTHER_OUTPUT
        return read_document(path, CELL, DamagedError, "a result of this harness", SCHEMA_VERSION, other)

    def _folder(self, key: ScoreKey) -> Path:
        return self._place("scores", slug(key.scorer), slug(key.dataset), key.fingerprint[:16])

    def _place(self, *parts: str) -> Path:
        return inside(self.root, *parts, error=StoreError)

    def _parts(self, key: ScoreKey) -> list[Path]:
        return sorted(self._folder(key).glob("part-*.parquet"))

    def _read_parts(self, key: ScoreKey) -> list[pd.DataFrame]:
        # Another run may merge while this one reads. A part that is gone is inside a merged one, written before
        # it went; so what is new is read until two listings agree.
        read: dict[Path, pd.DataFrame | None] = {}
        listed: list[Path] | None = None
        while (found := self._parts(key)) != listed:
            listed = found
            for path in found:
                if path not in read:
                    read[path] = _read_part(path, key)
        return [part for part in read.values() if part is not None]

    def _write_part(self, key: ScoreKey, frame: pd.DataFrame) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        # First, so that no kill leaves scores that nothing explains.
        self._write_identity(key)
        header = {"schema_version": str(SCHEMA_VERSION), "fingerprint": key.fingerprint}
        table = pa.Table.from_pandas(frame, preserve_index=False)
        packed = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **header}), packed)
        path = self._folder(key) / f"part-{hashlib.sha256(packed.getvalue()).hexdigest()}.parquet"
        with disk_errors(path, StoreError), atomic_write(path) as file:
            file.write(packed.getvalue())
        return path

    def _write_identity(self, key: ScoreKey) -> None:
        _write(self._folder(key) / "identity.json", json_text({"dataset": key.dataset, **key.identity}))


MAX_SLUG = 100
"""Characters of a text that stands for itself as a file name; most file systems take 255 bytes, suffix included."""


def slug(name: str) -> str:
    """A file name for any text; different texts get different names."""
    safe = re.sub(r"[^A-Za-z0-9._+@=-]", "_", name)
    if safe == name and not name.startswith(".") and len(name) <= MAX_SLUG:
        return name
    return f"{safe.lstrip('.')[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _write(path: Path, content: bytes) -> None:
    """Write a file in one step; one that holds just that is left alone, so that nothing new needs no room."""
    with disk_errors(path, StoreError):
        if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
            return
        with atomic_write(path) as file:
            file.write(content)


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(list(rows), columns=list(DTYPES)).astype(DTYPES)


def _read_part(path: Path, key: ScoreKey) -> pd.DataFrame | None:
    try:
        content = _content(path)
    except FileNotFoundError:
        return None
    name = _HASHED.fullmatch(path.stem)
    if name and hashlib.sha256(content).hexdigest() != name[1]:
        raise DamagedError(
            f"{path}: it was altered after it was written; delete it and run again, which scores its images anew"
        )
    table, header = read_bounded(path, content)
    if header.get("schema_version") != str(SCHEMA_VERSION):
        found = header.get("schema_version")
        raise StoreError(f"{path}: schema version {found}, this release reads {SCHEMA_VERSION}; {OTHER_OUTPUT}")
    if header.get("fingerprint") != key.fingerprint:
        raise StoreError(f"{path}: belongs to another fingerprint than its folder; move it away")
    return frame_from(path, table, lambda frame: frame[list(DTYPES)].astype(DTYPES))


def _rising(hashes: pd.Series) -> bool:
    """Whether each text comes after the one before it; by Arrow, as pandas makes an object of each."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = pa.array(hashes)
    return len(values) < 2 or bool(pc.all(pc.less(values[:-1], values[1:])).as_py())


def _content(path: Path) -> bytes:
    with disk_errors(path, StoreError, "read", but=FileNotFoundError):
        return read_regular(path)
