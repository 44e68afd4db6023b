"""Four regressions planted into a copy of this project: the command that guards its scores catches each.

Run by ``tox -e regression``. Nothing is patched in the running process: the copy is changed as a commit would change
it, and ``iqa-harness check`` runs on it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qualiclip_plugin.weights.checkpoint import read_weights, save_checkpoint
from qualiclip_plugin.weights.loading import load_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
SCORERS = ("qualiclip-lite", "entropy")


def edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    """Exchange a piece of source, which must be there once."""

    def plant(tree: Path) -> None:
        source = (tree / file).read_text(encoding="utf-8")
        assert source.count(old) == 1, f"{old!r} in {file}"
        (tree / file).write_text(source.replace(old, new), encoding="utf-8")

    return plant


def alter_a_weight(tree: Path) -> None:
    """One tensor of the shipped weights, three per cent larger."""
    path = tree / "qualiclip_plugin" / "assets" / "qualiclip-lite.safetensors"
    card = read_weights(path).header["card"]
    model = load_model(path, inference=False)
    with torch.no_grad():
        max(model.image_encoder.parameters(), key=torch.numel).mul_(1.03)
    save_checkpoint(path, model, card, torch.float16)


PLANTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "altered weight": (alter_a_weight, "qualiclip-lite", "score"),
    "changed resize": (
        edit(
            "qualiclip_plugin/utils/images/decode.py",
            "return pixels.to(torch.float32) / 255",
            "return torch.nn.functional.interpolate(pixels.float() / 255, scale_factor=0.9, mode='bilinear')",
        ),
        "qualiclip-lite",
        "score",
    ),
    "flipped direction": (
        edit(
            "harness/scorers/kinds.py",
            "lower_better=bool(metric.lower_better)",
            "lower_better=not metric.lower_better",
        ),
        "entropy",
        "direction",
    ),
    "changed prompt": (
        edit(
            "qualiclip_plugin/models/prompts.py", '("Good photo.", "Bad photo.")', '("Good photo.", "Awful photo.")'
        ),
        "qualiclip-lite",
        "prompt",
    ),
}
"""What is planted, the scorer that it reaches, and the kind of finding that names it."""


def check(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", "check", "--baseline", str(tree / "baseline.json"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    return subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of both packages with a baseline of its own."""
    tree = tmp_path_factory.mktemp("whole")
    for package in ("qualiclip_plugin", "harness"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    taken = check(tree, "--update", *(word for name in SCORERS for word in ("--scorer", name)))
    assert taken.returncode == 0, taken.stderr
    return tree


def test_the_unchanged_copy_passes(whole: Path) -> None:
    passed = check(whole)
    assert passed.returncode == 0, passed.stdout + passed.stderr


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_regression_is_caught(whole: Path, tmp_path: Path, name: str) -> None:
    plant, scorer, kind = PLANTS[name]
    tree = tmp_path / "tree"
    shutil.copytree(whole, tree, ignore=shutil.ignore_patterns("__pycache__"))
    plant(tree)
    caught = check(tree)
    assert caught.returncode == 1, caught.stdout + caught.stderr
    rows = [line.replace("|", " ").split() for line in caught.stdout.splitlines()]
    assert any(row[:2] == [scorer, kind] for row in rows), caught.stdout
