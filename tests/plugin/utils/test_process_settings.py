"""What the commands set before torch is loaded, and that the library sets nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qualiclip_plugin.utils import memory, process_settings
from qualiclip_plugin.utils.process_settings import (
    WAITING,
    allowed_cores,
    free_memory,
    settings,
    settle_process,
    usable_cores,
)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/box/inner\n", {"box/cpu.max": "150000 100000\n", "box/inner/cpu.max": "max 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/../other\n", {"cpu.max": "300000 100000\n"}, 3),
        (
            "4:cpu,cpuacct:/docker/1\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "50000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            1,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ("3:cpuset:/a\n0::/a\n", {}, 8),
        ("", {"cpu.max": "no number"}, 8),
    ],
)
def test_quotas_of_both_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(process_settings, "allowed_cores", lambda: 8)
    own, root = tmp_path / "cgroup", tmp_path / "root"
    own.write_text(groups)
    for name, text in files.items():
        _write(root / name, text)
    assert usable_cores(own, root) == expected


GIB = 2**30
FILES = {"memory.stat": f"anon 1\ninactive_file {GIB}\n"}


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, 8 * GIB),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "5\n"}, 8 * GIB),
        ("0::/\n", {"memory.max": f"{4 * GIB}\n", "memory.current": f"{3 * GIB}\n", **FILES}, 2 * GIB),
        ("0::/a\n", {"a/memory.max": f"{6 * GIB}\n", "a/memory.current": f"{GIB}\n", **FILES}, 5 * GIB),
        (
            "4:memory:/docker/1\n",
            {"memory/memory.limit_in_bytes": f"{GIB}\n", "memory/memory.usage_in_bytes": f"{2 * GIB}\n"},
            0,
        ),
    ],
)
def test_free_memory_is_that_of_the_container(
    tmp_path: Path, groups: str, files: dict[str, str], expected: int
) -> None:
    own, root, system = tmp_path / "cgroup", tmp_path / "root", tmp_path / "meminfo"
    own.write_text(groups)
    system.write_text(f"MemTotal: {16 * 2**20} kB\nMemAvailable:    {8 * 2**20} kB\n")
    for name, text in files.items():
        _write(root / name, text)
    assert free_memory(own, root, system) == expected
    assert free_memory(own, root, tmp_path / "nowhere") == 0


def test_what_the_user_set_stays() -> None:
    assert settings({}, 8, 8) == WAITING
    assert settings({}, 8, 2) == {**WAITING, "OMP_NUM_THREADS": "2"}
    assert settings({"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "6"}, 8, 2) == {}
    assert settings({"GOMP_SPINCOUNT": "5"}, 8, 8) == {}


def test_a_process_that_has_torch_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "torch" in sys.modules
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(process_settings, "keep_freed", lambda: pytest.fail("set for the whole process"))
    settle_process()
    assert "OMP_WAIT_POLICY" not in os.environ


PROGRAM = """
import os, sys
import {package}, {package}.cli
assert "OMP_WAIT_POLICY" not in os.environ and "torch" not in sys.modules
sys.argv = ["command", "--version"]
try:
    {package}.cli.main()
except SystemExit:
    pass
print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
"""


@pytest.mark.parametrize("package", ["qualiclip_plugin", "harness"])
def test_a_command_sets_it_before_torch_and_an_import_does_not(package: str) -> None:
    environment = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    command = [sys.executable, "-c", PROGRAM.format(package=package)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["PASSIVE False"], done.stderr


def test_large_images_ask_the_system_anew_where_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(memory, "_of_glibc", lambda name: lambda *values: set_to.append(values) or 1)
    monkeypatch.setattr(memory, "give_back", lambda: None)
    with memory.frugal(memory.LARGE + 1):
        assert not set_to  # a program that keeps nothing is left alone
    monkeypatch.setattr(memory._Kept, "on", True)
    with memory.frugal(memory.LARGE):
        assert not set_to
    with memory.frugal(memory.LARGE + 1):
        assert set_to == [(-4, 65536)]
    assert set_to == [(-4, 65536), (-4, 0)]


def test_threads_follow_the_cores_of_the_process() -> None:
    assert 1 <= usable_cores() <= allowed_cores() <= (os.cpu_count() or 1)
