"""What a score costs beside busy processes, with what the commands set for their process and with nothing set.

``python -m tests.benchmarks.busy`` prints the table; ``python -m tests.benchmarks score`` has it too. Both kinds of
process are measured in turn, first by themselves, then beside processes that compute all the time.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any

from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.utils.process_settings import WAITING, settle_process, usable_cores

WAYS = {"as the commands set it": True, "nothing set": False}
"""What is compared, and whether the process is settled (:func:`settle_process`)."""
CALLS, SIZE = 20, (512, 384)
_CHILD = "from tests.benchmarks.busy import child; child({})"
_SPIN = "while True: pass"


def measure_busy(calls: int = CALLS) -> dict[str, Any]:
    """Median seconds of a score of ``lite`` (``eager``, fp32, ``SIZE``) on the clock and of the processor.

    Returns:
        ``busy``: number of busy processes, two a core; ``rows``: by way, pairs of clock and processor ``quiet`` and
        ``beside``.

    Raises:
        ConfigError: A process that measures has ended.
    """
    number = 2 * usable_cores()
    with ExitStack() as stack:
        children = {way: stack.enter_context(_child(settled)) for way, settled in WAYS.items()}
        for ask in children.values():
            ask(1)  # No process is quiet while another one still loads.
        rows = {way: {"quiet": ask(calls)} for way, ask in children.items()}
        for _ in range(number):
            stack.enter_context(_running(subprocess.Popen([sys.executable, "-c", _SPIN])))
        for way, ask in children.items():
            rows[way]["beside"] = ask(calls)
    return {"busy": number, "rows": rows}


def to_lines(measured: Mapping[str, Any]) -> list[str]:
    """A table; ratios are to the quiet run of the same way, and of the quiet runs to that with nothing set."""
    rows = measured["rows"]
    reference = rows["nothing set"]["quiet"]
    lines = [
        f"| qualiclip-lite, eager fp32, {SIZE[0]}x{SIZE[1]} | ms on the clock | ms of the processor "
        f"| beside {measured['busy']} busy processes, clock | processor | quiet clock / nothing set |",
        "|---|---|---|---|---|---|",
    ]
    for way, row in rows.items():
        clock, processor = (beside / quiet for beside, quiet in zip(row["beside"], row["quiet"], strict=True))
        quiet = " | ".join(f"{1000 * value:.3g}" for value in row["quiet"])
        lines.append(f"| {way} | {quiet} | {clock:.2f} | {processor:.2f} | {row['quiet'][0] / reference[0]:.2f} |")
    return lines


@contextmanager
def _child(settled: bool) -> Iterator[Callable[[int], Sequence[float]]]:
    """A process that measures when it is asked to."""
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    command = [sys.executable, "-c", _CHILD.format(settled)]
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    with _running(process):
        yield lambda calls: _answer(process.stdin, process.stdout, calls)


def _answer(asked: IO[str] | None, answers: IO[str] | None, calls: int) -> Sequence[float]:
    try:
        print(calls, file=asked)
        found: list[float] = json.loads(answers.readline())  # type: ignore[union-attr]
    except (OSError, ValueError) as error:
        raise ConfigError("a process that measures beside busy ones has ended: see above") from error
    return found


@contextmanager
def _running(process: subprocess.Popen[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()


def child(settled: bool) -> None:
    """Answer every number of calls on standard input with medians of clock and processor seconds."""
    if settled:
        settle_process()
    import torch

    from qualiclip_plugin.weights.loading import load_model

    model = load_model("lite")
    image = torch.randint(0, 256, (1, 3, SIZE[1], SIZE[0]), dtype=torch.uint8)
    with torch.inference_mode():
        model(image)
        for line in sys.stdin:
            taken = [_seconds(lambda: model(image)) for _ in range(int(line))]
            print(json.dumps([statistics.median(column) for column in zip(*taken, strict=True)]), flush=True)


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


if __name__ == "__main__":
    print("\n".join(to_lines(measure_busy())))
