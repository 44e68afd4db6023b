"""The folder of a training run: whose it is, its checkpoints, its logs.

=========================  ===================================================================================
``run.json``               configuration, photographs, versions: what the run is, written before the first step
``start.safetensors``      the starting weights
``checkpoints/step-N/``    ``weights.safetensors`` (and ``averaged.safetensors``), ``state.pt`` (optimizer,
                           gradient scaler, generators), ``checkpoint.json`` (step, data position,
                           configuration, hashes)
``log.csv``                one row a step
``validation.csv``         one row a validation
``skipped.csv``            photographs that were left out, with the reason
``training.png``           the curves
``model.safetensors``      the result
=========================  ===================================================================================

A checkpoint is written into a temporary folder, flushed to the disk and moved into place, so a folder under its
final name is whole. The last ``keep`` ones stay. A folder without ``run.json`` holds no run yet: one that was killed
before its first step can be started again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file
from safetensors.torch import save as save_safetensors
from torch import Tensor

from qualiclip_plugin.training.config import differences
from qualiclip_plugin.utils.atomic import atomic_folder, atomic_write, remove_folder, remove_leftovers, sha256_file
from qualiclip_plugin.utils.errors import ConfigError, disk_errors, first_line
from qualiclip_plugin.utils.json_yaml import json_text, read_document, sealed, write_json
from qualiclip_plugin.utils.regular_files import open_regular
from qualiclip_plugin.weights.pickles import load_pickle

RUN_FILES = ("run.json", "checkpoints", "model.safetensors", "log.csv")
LOCK = ".lock"
STATE, RECORD = "state.pt", "checkpoint.json"
WEIGHTS, AVERAGED = "weights.safetensors", "averaged.safetensors"
MAX_CSV_BYTES = 2**28
"""Of a log; a million steps take a tenth."""
_STEP = re.compile(r"step-(\d{1,18})")

_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**53}
RECORD_SCHEMA = {
    "type": "object",
    "required": ["step", "position", "config", "sha256"],
    "properties": {
        "step": _COUNT,
        "config": {"type": "object"},
        "position": {"anyOf": [_COUNT, {"type": "array", "items": _COUNT, "minItems": 2, "maxItems": 2}]},
        "sha256": {
            "type": "object",
            "required": [STATE, WEIGHTS],
            "propertyNames": {"enum": [STATE, WEIGHTS, AVERAGED]},
            "additionalProperties": {"type": "string"},
        },
    },
}
RUN_SCHEMA = {
    "type": "object",
    "required": ["config", "photographs", "start", "trained_stages", "processes", "device"],
    "properties": {
        "config": {"type": "object"},
        "photographs": {"type": "object"},
        "start": {"type": "object", "required": ["licence", "opinion_aware"]},
    },
}


@dataclass(frozen=True)
class RunState:
    """What a checkpoint holds besides its step.

    Attributes:
        weights: Every parameter and buffer of the network.
        state: Optimizer, gradient scaler and generator states: tensors, numbers, text and containers of these.
        position: Where reading of the photographs continues.
    """

    weights: dict[str, Tensor]
    averaged: dict[str, Tensor] | None
    state: dict[str, Any]
    position: Any
    config: dict[str, Any]


class RunFolder:
    """One run's folder."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock: FileLock | None = None
        self._made: list[Path] = []

    def check(self, *, resume: bool) -> None:
        """Refuse a folder that cannot serve, before any work.

        Raises:
            ConfigError: It holds another run, or none to resume; or it cannot be written.
        """
        if resume and not (self.path / "run.json").is_file():
            raise ConfigError(f"nothing to resume in {self.path}: it holds no run.json")
        found = [name for name in RUN_FILES if (self.path / name).exists()]
        if found and not resume:
            raise ConfigError(
                f"{self.path} already holds a run ({', '.join(found)}): continue it with --resume or choose "
                "another --output"
            )
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise ConfigError(f"cannot write to {self.path}: {error.strerror or error}") from error

    def lock(self) -> None:
        """Prevent other processes from training into this folder until this process ends.

        Raises:
            ConfigError: Another process is training there.
        """
        self._lock = FileLock(self.path / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(f"another process is training into {self.path}") from error
        remove_leftovers(self.path)
        if (self.path / "checkpoints").is_dir():
            remove_leftovers(self.path / "checkpoints")

    @property
    def held(self) -> bool:
        """Whether this object keeps others out of the folder."""
        return self._lock is not None and self._lock.is_locked

    def release(self) -> None:
        """Give the folder back; where :meth:`check` made it and nothing was written into it, it goes again."""
        with suppress(OSError):
            if self.held and self._made and [entry.name for entry in self.path.iterdir()] == [LOCK]:
                (self.path / LOCK).unlink()
        if self._lock is not None:
            self._lock.release()
        with suppress(OSError):  # not empty
            for folder in self._made:
                folder.rmdir()

    def check_space(self, needed: int) -> None:
        """Raise :class:`ConfigError` where fewer than ``needed`` bytes are free."""
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise ConfigError(
                f"{self.path} has {free / 1e6:.0f} MB free, the checkpoints need about {needed / 1e6:.0f} MB"
            )

    def read_run(self) -> dict[str, Any]:
        """What ``run.json`` says.

        Raises:
            ConfigError: It cannot be read.
        """
        return read_document(self.path / "run.json", RUN_SCHEMA, ConfigError, "the record of a run")

    def check_same_run(self, config: Mapping[str, Any], photographs: Mapping[str, Any]) -> None:
        """Refuse to continue a run under another configuration or on other photographs.

        Raises:
            ConfigError: Names every difference.
        """
        run = self.read_run()
        before = run["config"]
        changed = differences(before, config)
        advice = ""
        if before.get("steps") != config.get("steps") and before.get("schedule") == config.get("schedule"):
            advice = (
                f". Each step of the schedule {before.get('schedule')} depends on their number: finish the run with "
                f"steps={before.get('steps')} and train on from its result in a new one, --set "
                f"weights={self.path / 'model.safetensors'} --output ANOTHER"
            )
        # Where names and sizes of the photographs are known, the way to them does not matter.
        ignored = "source" if photographs.get("fingerprint") else ""
        changed += [
            f"photographs {key}: {run['photographs'].get(key)} -> {value}"
            for key, value in photographs.items()
            if run["photographs"].get(key) != value and key != ignored
        ]
        if changed:
            raise ConfigError(f"{self.path} holds a run with other settings ({'; '.join(changed)}){advice}")

    def record_steps(self, steps: int) -> None:
        """Write into ``run.json`` how many steps the run has from now on."""
        run = self.read_run()
        if run["config"].get("steps") != steps:
            self.write_run({**run, "config": {**run["config"], "steps": steps}})

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Write ``run.json``, atomically."""
        write_json(self.path / "run.json", run)

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, in order."""
        names = [_STEP.fullmatch(folder.name) for folder in (self.path / "checkpoints").glob("step-*")]
        return sorted(int(name[1]) for name in names if name)

    def last_whole(self) -> str:
        """A phrase for the step that the run can continue from."""
        steps = self.steps()
        return f"the checkpoint of step {steps[-1]} is whole" if steps else "no checkpoint was written yet"

    def save(self, step: int, run_state: RunState, keep: int) -> None:
        """Write a checkpoint, then remove those before the last ``keep``.

        Raises:
            ConfigError: It cannot be written (a full disk); the checkpoints before it stay.
        """
        parent = self.path / "checkpoints"
        final = parent / f"step-{step:08d}"
        try:
            with atomic_folder(final, replace=True) as temporary:
                _write_checkpoint(temporary, step, run_state)
            _flush_folder(parent)
        except OSError as error:
            raise ConfigError(
                f"the checkpoint of step {step} cannot be written to {parent} ({error.strerror or error}); "
                f"{self.last_whole()}. Make room and continue with --resume"
            ) from error
        self.prune(keep)

    def prune(self, keep: int) -> None:
        """Remove the checkpoints before the last ``keep``; a run that was killed may have left more."""
        parent = self.path / "checkpoints"
        for old in self.steps()[:-keep]:
            remove_folder(parent / f"step-{old:08d}")

    def load(self) -> tuple[int, RunState] | None:
        """The last checkpoint with its step, or None if none was written yet.

        Raises:
            ConfigError: Its files are not those that were written.
        """
        if not self.steps():
            return None
        folder = self.path / "checkpoints" / f"step-{self.steps()[-1]:08d}"
        ahead = "remove it to continue from the one before"
        try:
            record = read_document(folder / RECORD, RECORD_SCHEMA, ConfigError, "a record of this program")
        except ConfigError as error:
            reason = str(error).removeprefix(f"{folder}{os.sep}")
            raise ConfigError(f"checkpoint {folder} was altered ({reason}): {ahead}") from error
        altered = []
        for name, sha in record["sha256"].items():
            with disk_errors(f"checkpoint {folder / name}", ConfigError, "read"):
                altered += [name] if sha256_file(folder / name) != sha else []
        if altered or record["step"] != self.steps()[-1]:
            raise ConfigError(f"checkpoint {folder} was altered ({', '.join(altered) or RECORD}): {ahead}")
        try:
            state = load_pickle(folder / STATE)
            weights = load_file(folder / WEIGHTS)
            averaged = load_file(folder / AVERAGED) if AVERAGED in record["sha256"] else None
        except Exception as error:  # a file made by somebody else raises whatever it pleases
            raise ConfigError(f"checkpoint {folder} cannot be loaded: {first_line(error)}") from error
        if not isinstance(state, dict) or not {"optimizer", "scaler", "generators"} <= state.keys():
            raise ConfigError(f"checkpoint {folder} cannot be loaded: {STATE} holds no state of a run")
        return record["step"], RunState(weights, averaged, state, record["position"], record["config"])

    def read_skipped(self) -> dict[str, str]:
        """Photographs that ``skipped.csv`` lists, with the reason."""
        path = self.path / "skipped.csv"
        try:
            return {row["photograph"]: row["reason"] for row in read_csv(path)}
        except KeyError as error:
            raise ConfigError(f"{path}: no column {error}") from error

    def write_skipped(self, reasons: Mapping[str, str]) -> None:
        """Write ``skipped.csv``, or remove that of an earlier try where there is nothing to list."""
        if not reasons:
            (self.path / "skipped.csv").unlink(missing_ok=True)
        else:
            rows = [{"photograph": name, "reason": reason} for name, reason in list(reasons.items())]
            write_csv(self.path / "skipped.csv", ["photograph", "reason"], rows)


def _write_checkpoint(folder: Path, step: int, run_state: RunState) -> None:
    files = {WEIGHTS: _tensor_bytes(run_state.weights), STATE: _state_bytes(run_state.state)}
    if run_state.averaged is not None:
        files[AVERAGED] = _tensor_bytes(run_state.averaged)
    for name, content in files.items():
        _write_flushed(folder / name, content)
    record = {
        "step": step,
        "position": run_state.position,
        "config": run_state.config,
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
    }
    _write_flushed(folder / RECORD, json_text(sealed(record)))
    _flush_folder(folder)


# Both libraries can write files themselves, and say of a full disk what nobody understands.


def _tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    # safetensors refuses tensors that share memory or are laid out channels-last.
    return save_safetensors({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})


def _state_bytes(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def _write_flushed(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class CsvLog:
    """A CSV file that grows by one row at a time and can be continued.

    Args:
        columns: Its columns; ``step`` is one of them.
        last_step: Rows after this step are removed (they were written after the checkpoint that is resumed).
    """

    def __init__(self, path: Path, columns: Sequence[str], last_step: int) -> None:
        self.columns = list(columns)
        kept = [row for row in read_log(path) if int(row["step"]) <= last_step]
        write_csv(path, self.columns, kept)
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, self.columns, lineterminator="\n")

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; a column that it lacks stays empty."""
        self._writer.writerow(dict(row))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(path: Path) -> list[dict[str, str]]:
    """Rows of a :class:`CsvLog`: a step and figures; see :func:`read_csv`.

    Raises:
        ConfigError: A cell that is not empty holds no number, or a row no step.
    """
    rows = read_csv(path)
    for number, row in enumerate(rows, 1):
        try:
            int(row["step"])
            _ = [float(value) for value in row.values() if value]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}, row {number}: no figures of a step ({first_line(error)})") from error
    return rows


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; none if it is missing. A row cut off by an interruption is left out.

    Raises:
        ConfigError: It is no CSV file.
    """
    if not path.exists():
        return []
    try:
        with io.TextIOWrapper(open_regular(path, MAX_CSV_BYTES), newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if None not in (*row, *row.values())]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read: {first_line(error)}") from error


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a whole CSV file, atomically."""
    with atomic_write(path, "w") as file:
        writer = csv.DictWriter(file, list(columns), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
