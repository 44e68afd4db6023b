"""Run a user's program with limited time and output, and stop everything that it started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from harness.scorers.names import ScorerError

if TYPE_CHECKING:
    from torch import Tensor

TIMEOUT = 3600.0
"""Seconds that a command may take for one batch, where it does not say ``timeout``."""
MAX_OUTPUT = 64 * 2**20
"""Bytes on standard output or standard error."""
_LOOK_EVERY = 0.1


class ScorerStoppedError(ScorerError):
    """A scorer was stopped; it is not tried again with fewer images, as after another error."""


def score_by_command(words: Sequence[str], images: Tensor, timeout: float) -> Tensor:
    """Give images as PNG files, read a JSON list of numbers, or an object file name -> number.

    Args:
        words: The program and its arguments; the files follow.
        images: RGB in [0, 1], (N, 3, H, W).
        timeout: In seconds.

    Raises:
        ScorerStoppedError: It took longer or wrote more than it may, and was ended with all that it started.
        ScorerError: It failed or answered something else.
    """
    import torch
    from torchvision.utils import save_image  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, f"{index:05d}.png")) for index in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            save_image(image, path)
        code, output, complaint = _run([*words, *paths], timeout)
    if code:
        last = (complaint.decode("utf-8", "replace").strip().splitlines() or ["no message"])[-1]
        raise ScorerError(f"{words[0]} ended with {code}: {last}")
    try:
        answer = json.loads(output)
        numbers = [answer[Path(path).name] for path in paths] if isinstance(answer, dict) else list(answer)
        return torch.tensor(numbers, dtype=torch.float64)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ScorerError(f"{words[0]} did not print a JSON list of numbers or an object by file name") from error


def _run(words: Sequence[str], timeout: float) -> tuple[int, bytes, bytes]:
    """Exit code, standard output and standard error of a program."""
    # Into files: a pipe ends only when everybody who inherited it has ended, also a child that was left behind.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as complaint:
        # The command is the user's own, from their command line.
        process = subprocess.Popen(  # noqa: S603
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=complaint, start_new_session=True
        )
        try:
            _wait(process, words[0], timeout, (output, complaint))
        finally:
            _end(process)
        return process.returncode, _content(output), _content(complaint)


def _wait(process: subprocess.Popen[bytes], name: str, timeout: float, files: Sequence[IO[bytes]]) -> None:
    deadline, running = time.monotonic() + timeout, True
    while running:
        try:
            process.wait(min(_LOOK_EVERY, max(0.0, deadline - time.monotonic())))
            running = False
        except subprocess.TimeoutExpired:
            if time.monotonic() >= deadline:
                raise ScorerStoppedError(
                    f"{name} took more than {timeout:g} s for one batch and was stopped; @timeout=SECONDS allows more"
                ) from None
        if any(os.fstat(file.fileno()).st_size > MAX_OUTPUT for file in files):
            raise ScorerStoppedError(f"{name} printed more than {MAX_OUTPUT} bytes and was stopped")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program, and what it has started, as far as that stayed in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()
