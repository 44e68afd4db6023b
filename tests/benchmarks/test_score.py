"""The benchmark of scores: its arithmetic, its table, and one short run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from qualiclip_plugin.utils.errors import ConfigError
from tests.benchmarks import busy, meters, rivals, score
from tests.benchmarks.rivals import OTHERS, REFERENCE, WAYS

ROOT = Path(__file__).parents[2]


def row(network: str, seconds: list[float], file_seconds: list[float], value: float, operations: int) -> dict:
    return {
        "network": network,
        "precision": "fp32",
        "operations": operations,
        "peak_memory": 5_000_000,
        "score": value,
        "seconds": seconds,
        "file_seconds": file_seconds,
    }


def result() -> dict:
    machine = {"processor": "P", "cores": 2, "device": "cpu", "load": [0.5], "date": "2026-01-01", "versions": {}}
    rivals = {
        REFERENCE: row("qualiclip, pyiqa", [0.4, 0.8, 0.6], [], 0.5, 10**9),
        "qualiclip, eager fp32": row("qualiclip", [0.2, 0.2, 0.2], [0.25, 0.25, 0.4], 0.5, 10**9),
        "qualiclip, openvino fp32": row("qualiclip", [0.1, 0.1, 0.1], [0.2, 0.2, 0.2], 0.501, 0),
    }
    facts = {
        "machine": machine,
        "environment": {},
        "weights": "untrained",
        "missing": {"brisque": "no network"},
        "matrix_rate": {"fp32": 1e10},
        "size": [512, 384],
        "batch": 1,
        "rivals": rivals,
    }
    return {"benchmarks": [{"extra_info": facts}]}


def test_the_table_compares_round_by_round_and_counts_a_networks_operations_once() -> None:
    lines = score.to_markdown(result()).splitlines()
    assert "Not measured: brisque (no network)." in lines
    assert lines[-2] == "| qualiclip, eager fp32 | 200 | 3.00 | +0.0e+00 | 1.00 | 0.50 | 5 | 4.0 | 0.20 |"
    assert lines[-1] == "| qualiclip, openvino fp32 | 100 | 6.00 | +1.0e-03 | 1.00 | 1.00 | 5 | 5.0 | 0.50 |"


def test_the_table_of_busy_machines_compares_each_way_with_its_own_quiet_run() -> None:
    rows = {
        "as the commands set it": {"quiet": [0.040, 0.080], "beside": [0.12, 0.09]},
        "nothing set": {"quiet": [0.039, 0.078], "beside": [0.39, 0.78]},
    }
    lines = busy.to_lines({"busy": 4, "rows": rows})
    assert "beside 4 busy processes" in lines[0]
    assert lines[2] == "| as the commands set it | 40 | 80 | 3.00 | 1.12 | 1.03 |"
    assert lines[3] == "| nothing set | 39 | 78 | 10.00 | 10.00 | 1.00 |"


def test_tables_are_put_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (begin, end), others = score.marks("cpu"), "\nof the GPU\n".join(score.marks("cuda"))
    page.write_text(f"before\n{begin}\nold\n{end}\n{others}\n")
    score.write_into(page, "new", "cpu")
    assert page.read_text() == f"before\n{begin}\n\nnew\n\n{end}\n{others}\n"
    page.write_text(others)
    with pytest.raises(ConfigError, match="has no lines"):
        score.write_into(page, "new", "cpu")


def test_without_the_reference_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_rivals(official: Path, device: str) -> tuple[list[rivals.Rival], dict[str, str]]:
        return [], {REFERENCE: "No module named 'pkg_resources'"}

    monkeypatch.setattr(rivals, "official_weights", lambda folder: (folder, "untrained"))
    monkeypatch.setattr(rivals, "build_rivals", build_rivals)
    with pytest.raises(ConfigError, match="cannot start: No module named 'pkg_resources'"):
        score.measure(score.QUICK, 2, "cpu")


def test_meters() -> None:
    layer = nn.Conv2d(3, 8, 3, bias=False)
    assert meters.operations(lambda: layer(torch.zeros(1, 3, 12, 12))) == 2 * 8 * 10 * 10 * 27
    assert meters.matrix_rate("fp32", "cpu", rounds=1) > 1e6
    peak = meters.peak_memory(lambda: torch.ones(2**25), "cpu")
    assert peak is None or 1.2e8 < peak < 2e8


def test_a_document_without_a_place_for_the_tables_is_refused_before_measuring(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for reason in ("cannot be read", "has no lines <!-- bench score on cpu: begin -->"):
        with pytest.raises(ConfigError, match=reason):
            score.score_command(quick=True, output=tmp_path / "score.json", document=page)
        page.write_text("no place")
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


@pytest.mark.slow
def test_a_short_run_measures_every_rival(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the extra openvino")
    output, page = tmp_path / "score.json", tmp_path / "page.md"
    page.write_text("\n".join(score.marks("cpu")))
    command = [sys.executable, "-m", "tests.benchmarks", "score", "--quick", "--output", output, "--document", page]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for measured in json.loads(output.read_text())["benchmarks"]:
        rivals, missing = measured["extra_info"]["rivals"], measured["extra_info"]["missing"]
        assert len(rivals) + len(missing) == 1 + 2 * len(WAYS["cpu"]) + len(OTHERS)
        assert all(len(values["seconds"]) == 2 for values in rivals.values())
    assert page.read_text().count("| qualiclip-lite, openvino fp32 |") == len(score.QUICK)


def test_a_benchmark_sees_the_weights_that_are_there_and_a_test_does_not(tmp_path: Path) -> None:
    code = "import {}, os; print(os.environ['TORCH_HOME'])"
    seen = {
        module: subprocess.run(
            [sys.executable, "-c", code.format(module)],
            env={**os.environ, "TORCH_HOME": str(tmp_path)},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for module in ("tests.benchmarks", "tests.faults", "tests.fuzz")
    }
    assert seen.pop("tests.benchmarks") == str(tmp_path)
    assert not set(seen.values()) & {str(tmp_path)}
