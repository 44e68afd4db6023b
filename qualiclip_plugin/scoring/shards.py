"""The folder of a large run: what is scored and how, one Parquet file of scores per shard, and the sum of them.

::

    manifest.json                          the sources, the model and the options; another run is refused here
    scores/shard-0000000-<sha256>.parquet  rows of the first portion, in its order; whole or not there
    summary.json                           numbers of images, scores and failures, and the time the last run took

A shard whose content has the hash of its name is finished. Its rows depend on the manifest alone, so that it does not
matter which worker scored it, how often, or in which run.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qualiclip_plugin.utils.atomic import atomic_write
from qualiclip_plugin.utils.errors import ConfigError, disk_errors
from qualiclip_plugin.utils.json_yaml import differences, read_json, write_json
from qualiclip_plugin.utils.regular_files import read_regular
from qualiclip_plugin.utils.shown import printable

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA_VERSION = 2
_NAME = re.compile(r"shard-(\d{7,10})-[0-9a-f]{64}\.parquet")


@dataclass(frozen=True)
class ShardFolder:
    """A folder that holds the run of one manifest."""

    root: Path
    sizes: tuple[int, ...]
    _files: dict[int, Path] = field(default_factory=dict)

    @property
    def scores(self) -> Path:
        """The folder of the shards, which readers of Parquet take as one table."""
        return self.root / "scores"

    def write(self, shard: int, frame: DataFrame) -> None:
        """Write the rows of a shard in one step, in place of those that it may have had.

        Raises:
            ConfigError: The folder cannot be written.
        """
        packed = io.BytesIO()
        frame.to_parquet(packed, index=False)
        content = packed.getvalue()
        path = self.scores / f"shard-{shard:07d}-{hashlib.sha256(content).hexdigest()}.parquet"
        with disk_errors(path, ConfigError), atomic_write(path) as file:
            file.write(content)
        self._take(shard, path)

    def _take(self, shard: int, path: Path) -> None:
        """Let a file be that of a shard; one before it goes, or readers of the folder would see its rows twice."""
        before, self._files[shard] = self._files.get(shard), path
        if before not in (None, path):
            before.unlink(missing_ok=True)

    def failures(self) -> dict[int, int]:
        """Number of images without a score in every finished shard.

        Raises:
            ConfigError: A file is no shard of this run, or not what was written.
        """
        found = self.scores.iterdir() if self.scores.is_dir() else ()
        # The last one counts where a kill came between a shard that was scored again and the removal of the first.
        for path in sorted((path for path in found if path.name[0] != "."), key=lambda path: path.stat().st_mtime_ns):
            name = _NAME.fullmatch(path.name)
            if name is None or int(name[1]) >= len(self.sizes):
                raise ConfigError(f"{printable(path)}: no shard of this run; remove it")
            self._take(int(name[1]), path)
        return {shard: self._failures(shard, path) for shard, path in sorted(self._files.items())}

    def _failures(self, shard: int, path: Path) -> int:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile

        with disk_errors(path, ConfigError, "read"):
            content = read_regular(path)
        if hashlib.sha256(content).hexdigest() != path.stem[-64:]:
            raise ConfigError(f"{printable(path)}: was altered after it was written; delete it")
        # `read_table` takes several times as long for what it does with paths and threads, and there may be millions.
        errors = ParquetFile(pa.BufferReader(content)).read(columns=["error"], use_threads=False).column("error")
        if len(errors) != self.sizes[shard]:
            raise ConfigError(f"{printable(path)}: {len(errors)} rows instead of {self.sizes[shard]}; delete it")
        return len(errors) - int(errors.null_count)

    def summarise(self, failures: Mapping[int, int], **facts: Any) -> dict[str, Any]:
        """Write ``summary.json`` and return its content: the sums over finished shards, and ``facts``.

        Raises:
            ConfigError: The folder cannot be written.
        """
        images = sum(self.sizes[shard] for shard in failures)
        summary = {
            "images": sum(self.sizes),
            "scored": images - sum(failures.values()),
            "failed": sum(failures.values()),
            "shards": len(self.sizes),
            "unfinished_shards": len(self.sizes) - len(failures),
            **facts,
        }
        path = self.root / "summary.json"
        with disk_errors(path, ConfigError):
            write_json(path, summary)
        return summary


def open_shards(root: str | os.PathLike[str], sizes: tuple[int, ...], identity: Mapping[str, Any]) -> ShardFolder:
    """Begin a run in a new folder, or continue with the same run.

    Args:
        root: The folder; created if missing.
        identity: Everything that may change a row, JSON-serialisable.

    Raises:
        ConfigError: The folder holds another run (the message says what differs), or cannot be written.
    """
    folder = ShardFolder(Path(root), sizes)
    path = folder.root / "manifest.json"
    manifest = {"schema_version": SCHEMA_VERSION, "shards": len(sizes), "images": sum(sizes), **identity}
    if path.exists():
        known = read_json(path, ConfigError, "a manifest of scores")
        if changed := differences(known, json.loads(json.dumps(manifest))):
            raise ConfigError(f"{path.parent}: holds another run ({'; '.join(changed)}); choose another --output")
    elif folder.scores.exists():
        raise ConfigError(f"{printable(folder.scores)}: scores without a manifest; choose another --output")
    else:
        with disk_errors(path, ConfigError):
            write_json(path, manifest)
    return folder
