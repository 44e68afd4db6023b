"""``results/lite/ablate.py`` runs as it is documented, on a few small pictures."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch

from qualiclip_plugin.weights.loading import load_model
from tests.support.programs import program

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = [
    "crop_size=32",
    "crop_scale=[1, 1]",
    "validation_photos=1",
    "workers=1",
    "head.batches=8",
    "head.epochs=1",
]


@pytest.fixture
def ablate(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    with program("lite", "ablate") as module:
        monkeypatch.setattr(sys.modules["measure"], "SIDE", 64)
        # The packages that bring its ImageNet weights are not needed: the trunk of the shipped weights is the same.
        monkeypatch.setattr(module, "starting_model", lambda: load_model("lite", inference=False))
        yield module


@pytest.fixture
def panel(photo_folder: str, tmp_path: Path) -> Path:
    """An imagefolder of four photographs with human scores."""
    folder = tmp_path / "livec_panel"
    folder.mkdir()
    files = sorted(Path(photo_folder).glob("*.png"))[:4]
    for file in files:
        shutil.copy(file, folder)
    pd.DataFrame({"file_name": [file.name for file in files], "mos": [1, 4, 2, 3]}).to_csv(
        folder / "metadata.csv", index=False
    )
    return folder


def test_the_ablation_runs_to_its_end(
    ablate: ModuleType, photo_folder: str, panel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tmp_path / "held_out.txt"
    names.write_text("photo00.png\nphoto10.png\n")
    only = ["as shipped", "linear part alone", "without motion blur and camera shake"]
    command = ["ablate.py", "--photos", photo_folder, "--names", str(names), "--panels", str(panel)]
    command += ["--features", str(tmp_path / "features.pt"), "--output", str(tmp_path), "--only", *only]
    monkeypatch.setattr(sys, "argv", [*command, "--set", *SMALL])
    ablate.main()
    table = pd.read_csv(tmp_path / "panels.csv")
    assert table.variant.tolist() == only
    assert table[["livec", "D", "L"]].notna().all(axis=None)
    known = torch.load(tmp_path / "features.pt", weights_only=True)
    assert known["seen"]["features"].shape[:2] == (64, 6)
    # A second run fits to the features that are kept.
    monkeypatch.setattr(ablate, "starting_model", lambda: pytest.fail("the features are there"))
    ablate.main()
    assert pd.read_csv(tmp_path / "panels.csv").equals(table)


def test_every_variant_is_a_configuration(ablate: ModuleType) -> None:
    for trial in ablate.TRIALS.values():
        assert ablate.load_config("lite", trial.settings).head is not None
