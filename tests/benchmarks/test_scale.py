"""The benchmark of scale: its arithmetic, and one short run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from qualiclip_plugin.utils.errors import ConfigError
from tests.benchmarks import scale


def report(**changes: object) -> scale.Report:
    machine = {"processor": "P", "cores": 2, "device": "cpu", "load": [0.5], "date": "2026-01-01", "versions": {}}
    pools = (scale.Pool(1, 5.0, 9.0), scale.Pool(2, 6.0, 18.0))
    values = {"machine": machine, "weights": "lite", "images": 600, "bytes_per_image": 1e5, "pools": pools}
    return scale.Report(**{**values, "decode": 100.0, "network": 20.0, "process": 10.0, "write": 5e4, **changes})  # type: ignore[arg-type]


def test_the_cost_of_a_million_images() -> None:
    assert scale.cost_of_a_million(100, 3.6) == pytest.approx(10)  # 10 000 seconds at 0.001 a second


def test_the_table_prices_every_worker() -> None:
    lines = scale.to_markdown(report(), price=0.36).splitlines()
    assert lines[4] == "| one process, files to scores, one core | 10.0 | 1.00 | 27.8 h, 10.00 |"
    assert lines[7] == "| Ray, 2 workers | 18.0 | 1.80 | 15.4 h, 11.11 |"
    assert "100 kB" in lines[9]
    assert lines[10] == "Seconds until the first shard: 5, 6."


def test_a_short_shard_counts_for_the_images_that_it_has() -> None:
    # The clock starts with the second of seven shards; the one with the last images comes when it is finished.
    shards = [(3.0, 10), (4.0, 10), (5.0, 10), (6.0, 10), (7.0, 5), (8.0, 10), (9.0, 10)]
    assert scale.later_rate(shards) == pytest.approx(45 / 5)


@pytest.mark.parametrize("pools", ["a", "1,,2", "0"])
def test_numbers_of_workers_that_are_none_are_refused(pools: str) -> None:
    with pytest.raises(ConfigError, match=f"--pools is '{pools}': numbers of workers, separated by commas"):
        scale.scale_command(pools=pools)


def test_photographs_differ_and_have_the_size(tmp_path: Path) -> None:
    files = scale.photographs(tmp_path, 5)
    assert len({path.read_bytes() for path in files}) == 5
    assert {Image.open(path).size for path in files} == {scale.SIZE}


@pytest.mark.slow
def test_a_short_run_measures_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setattr(scale, "SIZE", (96, 64))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    app = scale.typer.Typer()
    app.command()(scale.scale_command)
    run = CliRunner().invoke(app, ["--images", "80", "--pools", "1", "--output", str(tmp_path / "scale.json")])
    assert run.exit_code == 0, run.output
    assert "| Ray, 1 worker |" in run.output
    numbers = json.loads((tmp_path / "scale.json").read_text())
    assert numbers["images"] == 80
    assert all(numbers[name] > 0 for name in ("decode", "network", "process", "write", "bytes_per_image"))
    assert [pool["workers"] for pool in numbers["pools"]] == [1]
    assert numbers["pools"][0]["rate"] > 0
