"""A process that has everything imported and forks for every job, so that a trial takes a second and not ten.

A job is a command line of this project with what is to be done to its process before it starts. It runs in a fork
whose only thread is its own, and ends as a process of its own would: with an exit code, or by a signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROGRAMS = {"qualiclip": "qualiclip_plugin.cli", "iqa-harness": "harness.cli"}
PRELOADED = (
    *PROGRAMS.values(),
    *("torch", "torchvision", "open_clip", "timm", "datasets", "pandas", "pyarrow.parquet", "scipy.stats"),
    *(
        "harness.run.runner",
        "harness.data.archives",
        "harness.data.inspect",
        "harness.data.ladders",
        "harness.report",
    ),
    *("qualiclip_plugin.weights.loading", "qualiclip_plugin.scoring.table", "qualiclip_plugin.training.trainer"),
    *(
        "qualiclip_plugin.training.model_card",
        "skimage.data",
        "jsonschema.validators",
        "matplotlib.pyplot",
        "tabulate",
    ),
    "tests.faults.setups",
)
_CAPABILITIES_3 = 0x20080522
_OVERRIDE_MODES = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


@dataclass(frozen=True)
class Job:
    """A command and what happens to its process.

    Attributes:
        argv: Program and arguments.
        log: File that receives standard output and error.
        environment: Variables to set.
        setups: Functions of ``tests.faults.setups`` to call first, with their arguments.
        file_bytes: Largest size of any file it writes.
        memory_bytes: Address space that it may take beyond what it starts with.
        obey_modes: Give up root's right to write into read-only folders.
    """

    argv: tuple[str, ...]
    log: str
    environment: Mapping[str, str] = field(default_factory=dict)
    setups: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    file_bytes: int | None = None
    memory_bytes: int | None = None
    obey_modes: bool = False


class Server:
    """The parent of all jobs; one at a time.

    Args:
        environment: Variables of the server and so of every job.
    """

    def __init__(self, environment: Mapping[str, str] = {}) -> None:
        fixed = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        fixed["QUALICLIP_RUNTIME"] = "eager"  # the others take seconds to start
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**{k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}, **fixed, **environment},
        )

    def start(self, job: Job) -> int:
        """Start a job; returns the number of its process."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()
        return int(self._answer())

    def finish(self) -> int:
        """Wait for the job; its exit code, or the negative number of the signal that ended it."""
        return int(self._answer())

    def run(self, job: Job) -> int:
        """Start a job and wait for it."""
        self.start(job)
        return self.finish()

    def close(self) -> None:
        """End the server."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the server of the fault trials has ended")
        return line


@contextlib.contextmanager
def server(environment: Mapping[str, str] = {}) -> Iterator[Server]:
    """A server for the length of a block."""
    opened = Server(environment)
    try:
        yield opened
    finally:
        opened.close()


def serve() -> None:
    """Fork for every line of standard input; write the child's number, and its exit code once it has ended."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what imports print
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        job = Job(**json.loads(line))
        # Through a pipe: what limits the files of a job must not limit what it says.
        with open(job.log, "wb") as log, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log) as sink:
            assert sink.stdin is not None
            child = os.fork()
            if child == 0:
                answers.close()
                os._exit(_run(job, sink.stdin.fileno()))
            sink.stdin.close()
            print(child, file=answers, flush=True)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            # A process of the job may outlive it for a while; sleeping under a clock that jumps is an OSError.
            with contextlib.suppress(subprocess.TimeoutExpired, OSError):
                sink.wait(5)
            sink.kill()
        print(code, file=answers, flush=True)


def _run(job: Job, output: int) -> int:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False, encoding="utf-8") for number in (1, 2))
    os.environ.update(job.environment)
    try:
        _prepare(job)
        sys.argv = list(job.argv)
        importlib.import_module(PROGRAMS[job.argv[0]]).main()
        code: Any = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code if isinstance(code, int) else int(bool(code))


def _prepare(job: Job) -> None:
    setups = importlib.import_module("tests.faults.setups")
    for name, arguments in job.setups.items():
        getattr(setups, name)(*arguments)
    if job.file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job.file_bytes, resource.RLIM_INFINITY))
    if job.memory_bytes is not None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + job.memory_bytes, resource.RLIM_INFINITY))
    if job.obey_modes and os.geteuid() == 0:
        _drop_override()


def _drop_override() -> None:
    """Take from root what makes the modes of files and folders meaningless to it."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: low words, then high words
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    sets[0] &= ~_OVERRIDE_MODES
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


if __name__ == "__main__":
    serve()
