"""What a command sets for its own process before torch is loaded; importing this package sets nothing.

Torch's threads are OpenMP's. They wait for each other in a loop, which costs the other processes of a busy machine,
and each other, several times what the score itself takes. ``OMP_WAIT_POLICY=PASSIVE`` lets them sleep, which by
itself makes a score on a quiet machine a fifth slower; so GNU's threads look a thousand times before they do.
``python -m tests.benchmarks score`` measures both. OpenMP counts the cores that a process may run on, and not the
quota of a container.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from qualiclip_plugin.utils.memory import keep_freed

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""How threads wait, for OpenMP in general and for GNU's."""


def settle_process() -> None:
    """Set waiting and number of threads, as far as the user did not, and keep freed memory; see :func:`settings`.

    In a process that has torch already it is too late, and nothing is set.
    """
    if "torch" in sys.modules:
        return
    os.environ.update(settings(os.environ, allowed_cores(), usable_cores()))
    if not any(name.startswith("MALLOC_") for name in os.environ):
        keep_freed()


def settings(environment: Mapping[str, str], allowed: int, usable: int) -> dict[str, str]:
    """What to add to the environment of a process that scores.

    Args:
        environment: What the user set, which stays.
        allowed: Cores that it may run on.
        usable: Of these, as many as its quota pays for.
    """
    waiting = {} if environment.keys() & WAITING.keys() else WAITING
    # Libraries choose well among the cores that they see: not two threads for one core, for example.
    threads = {"OMP_NUM_THREADS": str(usable)} if usable < allowed and "OMP_NUM_THREADS" not in environment else {}
    return {**waiting, **threads}


def allowed_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores(own: Path = OWN_CGROUPS, root: Path = CGROUPS) -> int:
    """Cores that this process may use all the time: those it may run on, or the quota of its containers, rounded up.

    Args:
        own: Where Linux lists the control groups of this process.
        root: Where control groups lie.
    """
    return max(1, math.ceil(min([allowed_cores(), *_quotas(own, root)])))


def free_memory(own: Path = OWN_CGROUPS, root: Path = CGROUPS, system: Path = MEMINFO) -> int:
    """Bytes that this process may still take, of the machine or, where that is less, of its containers.

    Files that the system keeps in memory and can drop count as free.

    Args:
        own: Where Linux lists the control groups of this process.
        root: Where control groups lie.
        system: Where Linux tells what the machine has.

    Returns:
        0 where the system does not tell.
    """
    available = re.search(r"^MemAvailable: *(\d+) kB", _text(system), re.MULTILINE)
    free = [int(available[1]) * 1024 if available else 0]
    for folder in _groups("memory", own, root):
        dropped = re.search(r"^inactive_file (\d+)", _text(folder / "memory.stat"), re.MULTILINE)
        for limit, used in (("max", "current"), ("limit_in_bytes", "usage_in_bytes")):
            with suppress(ValueError):  # there is no limit, or no such file
                least, most = (int(_text(folder / f"memory.{name}")) for name in (used, limit))
                free.append(most - least + (int(dropped[1]) if dropped else 0))
    return max(0, min(free))


def _quotas(own: Path, root: Path) -> Iterator[float]:
    """Quotas in cores of the control groups that hold this process."""
    for folder in _groups("cpu", own, root):
        yield _quota(_text(folder / "cpu.max").split())
        yield _quota([_text(folder / f"cpu.cfs_{part}_us").strip() for part in ("quota", "period")])


def _groups(controller: str, own: Path, root: Path) -> Iterator[Path]:
    """Folders of the control groups that hold this process, of version 1 and 2."""
    for line in _text(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if not controllers:
            yield from _and_above(root, name)
        elif controller in controllers.split(","):
            for base in (root / controller, root / controllers):
                yield from _and_above(base, name)


def _and_above(root: Path, name: str) -> Iterator[Path]:
    """The folder of a group and of those that hold it; in a container the first may be seen as the root."""
    group = PurePosixPath(name.lstrip("/"))
    if ".." not in group.parts:
        yield from (root / one for one in (group, *group.parents))
    else:
        yield root


def _quota(words: list[str]) -> float:
    """Processor time over clock time; infinite where there is no limit."""
    try:
        quota, period = (int(word) for word in words)
    except ValueError:
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
