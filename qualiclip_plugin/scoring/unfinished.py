"""The rows of a ``qualiclip score`` that did not come to its end, beside the file that they were meant for.

``scores.csv.unfinished`` is JSON Lines. The first line says what is scored with and how, every other one is a row
with the size and the date of its file. Each carries its own hash. The next run takes up the rows whose files are as
they were and scores all others: images without a score, and what follows a line that was altered or that a kill cut
off. When the output is written, the file goes.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from qualiclip_plugin.scoring.local import ScoredImage
from qualiclip_plugin.utils.atomic import take_lock
from qualiclip_plugin.utils.errors import ConfigError, disk_errors
from qualiclip_plugin.utils.json_yaml import differences, is_sealed, sealed
from qualiclip_plugin.utils.shown import portable, printable

SUFFIX = ".unfinished"
KIND = "unfinished qualiclip scores 1"
BEGINNING = b'{"kind": "unfinished qualiclip scores'
Mark = tuple[int, int]
"""Size in bytes and date in nanoseconds of a file: they show whether it changed."""


class UnfinishedScores:
    """The file of the rows that are done, open and locked within a ``with`` block.

    Args:
        output: The file that the scores are meant for.
        identity: Everything that may change a score besides the images, JSON-serialisable.

    Attributes:
        changed: What differs from the run that left rows there; they are then given up. Empty where there was none.

    Raises:
        ConfigError: It is in use by another process, holds something else, or cannot be written.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any]) -> None:
        self.path = output.with_name(f"{output.name}{SUFFIX}")
        self.changed: tuple[str, ...] = ()
        self._kept: dict[str, tuple[Mark, ScoredImage]] = {}
        self._marks: dict[str, Mark | None] = {}
        with disk_errors(self.path, ConfigError):
            output.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open_locked(self.path)
        try:
            self._take_up(json.loads(json.dumps(identity)))
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> UnfinishedScores:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        with suppress(OSError):  # a line that the disk had no room for, which was told
            self._file.close()

    def remove(self) -> None:
        """Remove the file: its rows stand where they are meant to."""
        self.path.unlink(missing_ok=True)

    def __len__(self) -> int:
        """Number of rows that an earlier run left."""
        return len(self._kept)

    def _take_up(self, identity: dict[str, Any]) -> None:
        """Read what an earlier run left, and make the file end after the last line that can be used."""
        # Of the beginning a kill or a full disk may have left a part.
        if not BEGINNING.startswith(self._file.read(len(BEGINNING))):
            raise ConfigError(f"{printable(self.path)}: no scores of an interrupted run; it is in the way, move it")
        self._file.seek(0)
        lines = _sound_lines(self._file)
        end, header = next(lines, (0, {}))
        if header and header["identity"] != identity:
            self.changed, end = tuple(differences(header["identity"], identity)), 0
        elif header:
            for end, line in lines:  # noqa: B007 (the last one counts)
                row = ScoredImage(**line["row"])
                self._kept[row.path] = (tuple(line["mark"]), row)
        self._file.truncate(end)
        self._file.seek(end)
        if not end:
            self._append({"kind": KIND, "identity": identity})

    def row(self, file: str | os.PathLike[str]) -> ScoredImage | None:
        """The row that is kept of a file which is as it was."""
        mark, row = self._kept.get(portable(file), (None, None))
        return row if row is not None and _mark(file) == mark else None

    def watched(self, files: Iterable[Path]) -> Iterator[Path]:
        """The files, each looked at before it is read: what changes in between is scored again by the next run."""
        for file in files:
            self._marks[portable(file)] = _mark(file)
            yield file

    def add(self, row: ScoredImage) -> None:
        """Keep a row of a file that was :meth:`watched`, where it has a score.

        Raises:
            ConfigError: It cannot be written; the rows before it stay.
        """
        mark = self._marks.pop(row.path, None)
        if row.error is None and mark is not None:
            self._append({"row": asdict(row), "mark": mark})

    def _append(self, content: dict[str, Any]) -> None:
        with disk_errors(self.path, ConfigError):
            self._file.write(json.dumps(sealed(content)).encode() + b"\n")
            self._file.flush()


def rows_of(
    files: Sequence[Path], unfinished: UnfinishedScores, score: Callable[[Iterable[Path]], Iterator[ScoredImage]]
) -> Iterator[ScoredImage]:
    """The rows of all files in their order: those that are kept, and the others as they are scored.

    Args:
        unfinished: Where rows are, and where new ones are kept.
        score: Scores files, one row each, in their order.

    Raises:
        ConfigError: See :meth:`UnfinishedScores.add`.
    """
    kept = [unfinished.row(file) for file in files]
    missing = (file for file, row in zip(files, kept, strict=True) if row is None)
    with closing(score(unfinished.watched(missing))) as scored:  # type: ignore[type-var]
        for known in kept:
            row = known or next(scored)
            if known is None:
                unfinished.add(row)
            yield row


def _open_locked(path: Path) -> IO[bytes]:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
        regular = stat.S_ISREG(os.fstat(handle).st_mode)
        if regular and take_lock(handle):
            return os.fdopen(handle, "r+b")
        finished = os.fstat(handle).st_nlink == 0  # meanwhile, by the process that held it
        os.close(handle)
        if not regular:
            raise ConfigError(f"{printable(path)}: not a regular file")
        if not finished:
            raise ConfigError(f"{printable(path)}: another process is scoring into the same file")


def _sound_lines(file: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Lines from the first to the last that is whole and unaltered, each with the place where it ends."""
    end = 0
    for line in file:
        try:
            content = json.loads(line)
            whole = isinstance(content, dict) and is_sealed(content)
        except (ValueError, TypeError, RecursionError):
            return
        if not whole or not line.endswith(b"\n"):
            return
        end += len(line)
        yield end, content


def _mark(file: str | os.PathLike[str]) -> Mark | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
