"""The time of a score beside pyiqa's own class with the same weights, as ratios of one run."""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qualiclip_plugin.utils.atomic import atomic_write
from qualiclip_plugin.utils.errors import ConfigError
from tests.benchmarks.busy import to_lines

if TYPE_CHECKING:
    from tests.benchmarks.bench_score import Bench, Case

SMALL, MIDDLE, LARGE = (512, 384), (1024, 768), (3840, 2160)
CASES = {
    "cpu": ((SMALL, 1), (MIDDLE, 1), (LARGE, 1)),
    "cuda": ((SMALL, 1), (SMALL, 32), (MIDDLE, 1), (MIDDLE, 16), (LARGE, 1)),
}
"""Size of the images and how many at once, by type of device."""
QUICK = (((240, 224), 1), ((240, 224), 2))
FEWEST_ROUNDS = 2
MOST_FILES = 8
RESULTS = Path("results/benchmarks")


class _Settings:
    """A pytest plugin that hands a test what it measures."""

    def __init__(self, bench: Bench, cases: Sequence[Case]) -> None:
        self.bench, self.cases = bench, cases

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Give ``bench`` and every ``case`` to the test that asks for them."""
        metafunc.parametrize(("bench", "case"), [(self.bench, case) for case in self.cases])


def measure(cases: Sequence[tuple[tuple[int, int], int]], rounds: int, device: str) -> dict[str, Any]:
    """Measure all rivals in all cases.

    Args:
        cases: Width and height of the images, and how many at once.
        rounds: Measurements of every rival in the first case; where there are more pixels there are fewer.
        device: ``cpu`` or ``cuda``.

    Returns:
        What pytest-benchmark writes; ``extra_info`` of every benchmark has the rivals.

    Raises:
        ConfigError: pytest-benchmark is missing, the reference cannot start, or a measurement failed.
    """
    from tests.benchmarks.bench_score import Bench, Case
    from tests.benchmarks.busy import CALLS, measure_busy
    from tests.benchmarks.meters import matrix_rate
    from tests.benchmarks.rivals import REFERENCE, WAYS, build_rivals, memory_settings, official_weights
    from tests.benchmarks.scale import machine, photographs

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        official, kind = official_weights(folder)
        rivals, missing = build_rivals(official, device)
        if REFERENCE in missing:
            raise ConfigError(f"{REFERENCE}, which all others are compared with, cannot start: {missing[REFERENCE]}")
        least = math.prod(cases[0][0]) * cases[0][1]
        planned = [
            Case(*size, batch, max(FEWEST_ROUNDS, rounds * least // (math.prod(size) * batch)))
            for size, batch in cases
        ]
        facts = {
            "machine": machine(device, "openvino", "pyiqa"),
            "environment": memory_settings(),
            "weights": kind,
            "missing": missing,
            "matrix_rate": {precision: matrix_rate(precision, device) for precision in {p for _, p in WAYS[device]}},
        }
        files = {}
        for size in dict.fromkeys(case.size for case in planned):
            files[size] = photographs(folder / f"{size[0]}x{size[1]}", min(rounds, MOST_FILES), size)
        if device == "cpu":  # before this process has threads that wait
            facts["beside"] = measure_busy(min(rounds, CALLS))
        return _run(Bench(rivals, files, device, facts), planned, folder / "score.json")


def _run(bench: Bench, cases: Sequence[Case], output: Path) -> dict[str, Any]:
    try:
        import pytest
        import pytest_benchmark  # noqa: F401
    except ImportError as error:
        raise ConfigError("the benchmark needs: pip install pytest pytest-benchmark") from error
    case = Path(__file__).with_name("bench_score.py")
    options = ["-q", "-s", "-c", os.devnull, "--rootdir", str(output.parent), "-p", "no:cacheprovider"]
    options += ["--benchmark-quiet", f"--benchmark-json={output}"]
    if pytest.main([*options, str(case)], plugins=[_Settings(bench, cases)]) or not output.exists():
        raise ConfigError("the measurement failed: see above")
    result: dict[str, Any] = json.loads(output.read_text())
    result["machine_info"].pop("node", None)  # names of the machine, folder and branch say nothing of the figures
    for name in ("project", "branch"):
        result["commit_info"].pop(name, None)
    for measured in result["benchmarks"]:
        measured.pop("params", None)  # the rivals themselves, as text
        measured.pop("param", None)
    return result


def speedup(row: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
    """How many times faster than the reference: the median of the ratios of the rounds."""
    return statistics.median(theirs / ours for theirs, ours in zip(reference["seconds"], row["seconds"], strict=True))


def to_markdown(result: Mapping[str, Any]) -> str:
    """One table for every case, and where they were measured."""
    facts = result["benchmarks"][0]["extra_info"]
    machine = facts["machine"]
    libraries = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    rates = ", ".join(f"{1e-9 * rate:.0f} in {name}" for name, rate in sorted(facts["matrix_rate"].items()))
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['device']}, load average {machine['load'][0]}, "
        f"{machine['date']}; {libraries}. Weights of `qualiclip`: {facts['weights']}. "
        f"Matrix products: {rates} (10^9 operations a second)."
    ]
    if facts["environment"]:
        lines.append(f"Environment: {', '.join(f'{name}={value}' for name, value in facts['environment'].items())}.")
    lines += [f"Not measured: {name} ({reason})." for name, reason in facts["missing"].items()]
    if "beside" in facts:
        lines += ["", *to_lines(facts["beside"])]
    for measured in result["benchmarks"]:
        lines += ["", *_table(measured["extra_info"])]
    return "\n".join(lines)


def _table(facts: Mapping[str, Any]) -> list[str]:
    from tests.benchmarks.rivals import REFERENCE

    rows, (width, height) = facts["rivals"], facts["size"]
    counted: dict[str, float] = {}
    for row in rows.values():
        counted[row["network"]] = max(counted.get(row["network"], 0), row["operations"])
    rounds = len(rows[REFERENCE]["seconds"])
    together = f", {facts['batch']} at once" if facts["batch"] > 1 else ""
    lines = [
        f"| {width}x{height}{together}, {rounds} rounds "
        "| ms an image | times pyiqa's speed | score - pyiqa's or fp32's "
        "| 10^9 operations | share of matrix rate | peak memory, MB | files a second | not the network |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(_cells(row, rows, counted[row['network']], facts['matrix_rate']))} |")
    return lines


def _cells(
    row: Mapping[str, Any], rows: Mapping[str, Any], operations: float, rates: Mapping[str, float]
) -> list[str]:
    from tests.benchmarks.rivals import REFERENCE

    median = statistics.median(row["seconds"])
    first = REFERENCE if row["network"] == "qualiclip" else f"{row['network']}, eager fp32"
    difference = f"{row['score'] - rows[first]['score']:+.1e}" if first in rows and row is not rows[first] else ""
    files = statistics.median(row["file_seconds"]) if row["file_seconds"] else None
    return [
        f"{1000 * median:.4g}",
        f"{speedup(row, rows[REFERENCE]):.2f}",
        difference,
        f"{1e-9 * operations:.2f}" if operations else "",
        f"{operations / median / rates[row['precision']]:.2f}" if operations else "",
        f"{row['peak_memory'] / 1e6:.0f}" if row["peak_memory"] is not None else "",
        f"{1 / files:.1f}" if files else "",
        f"{max(0.0, 1 - _network_share(row)):.2f}" if files else "",
    ]


def _network_share(row: Mapping[str, Any]) -> float:
    return statistics.median(alone / whole for alone, whole in zip(row["seconds"], row["file_seconds"], strict=True))


def marks(device: str) -> tuple[str, str]:
    """The two lines of a document between which the tables of a device stand."""
    return f"<!-- bench score on {device}: begin -->", f"<!-- bench score on {device}: end -->"


def write_into(document: Path, text: str, device: str) -> None:
    """Put ``text`` between the two :func:`marks` of a document.

    Raises:
        ConfigError: See :func:`around_marks`.
    """
    before, after = around_marks(document, device)
    with atomic_write(document, "w") as file:
        file.write(f"{before}\n\n{text}\n\n{after}")


def around_marks(document: Path, device: str) -> tuple[str, str]:
    """A document up to the first of the :func:`marks`, and from the second on.

    Raises:
        ConfigError: It cannot be read, or has no such lines.
    """
    first, last = marks(device)
    try:
        before, begin, rest = document.read_text(encoding="utf-8").partition(first)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{document}: cannot be read: {error}") from error
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ConfigError(f"{document} has no lines {first} and {last}")
    return before + begin, end + after


def score_command(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[
        int, typer.Option(min=2, help="In the first case; where there are more pixels there are fewer.")
    ] = 12,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny images, two rounds: whether it runs.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="JSON file of pytest-benchmark.", show_default=f"{RESULTS}/score-DEVICE.json"),
    ] = None,
    document: Annotated[
        Path | None, typer.Option(help="Also put the tables into this Markdown file, between the device's marks.")
    ] = None,
    from_json: Annotated[
        bool, typer.Option("--from-json", help="Measure nothing: tables from the file --output.")
    ] = False,
) -> None:
    """Measure scores of this project beside pyiqa's own class with the same weights, and other metrics."""
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"device {device!r}: cpu or cuda is measured")
    if document is not None:
        around_marks(document, device)  # before minutes of measuring
    output = output or RESULTS / f"score-{device}.json"
    if from_json:
        result = json.loads(output.read_text())
    else:
        result = measure(QUICK, 2, device) if quick else measure(CASES[device], rounds, device)
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(output, "w") as file:
            file.write(json.dumps(result, indent=1) + "\n")
    text = to_markdown(result)
    if document is not None:
        write_into(document, text, device)
    typer.echo(text)
