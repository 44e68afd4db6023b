"""The examples of how to plug in somebody else's metric, with stand-ins of the same interfaces for their models."""

from __future__ import annotations

import json
import runpy
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import gaussian_blur, to_pil_image

from harness.scorers.names import facts
from harness.scorers.start import create_scorer

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"


def edges(images: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference along both axes, (N, 2)."""
    return torch.stack([images.diff(dim=axis).abs().mean(dim=(1, 2, 3)) for axis in (2, 3)], dim=1)


def test_a_distance_to_pristine_photographs_is_a_scorer(
    images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, image in enumerate(images):
        to_pil_image(image).save(tmp_path / f"{index}.png")
    monkeypatch.chdir(EXAMPLES)
    name = f"pristine_distance:score@lower_better=true,opinion_aware=false,encoder=edges,photos={tmp_path}"
    scorer = create_scorer(name, device="cpu")
    monkeypatch.setitem(sys.modules["pristine_distance"].ENCODERS, "edges", lambda: edges)
    # Softer than every pristine photograph: further from all of them than they are from each other.
    softer = gaussian_blur(images, [9, 9], [3.0, 3.0])
    assert scorer.score(softer).mean() > scorer.score(images).mean()
    assert scorer.lower_better
    assert facts(name).opinion_aware is False


def printed(script: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """What a script prints, read as JSON."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path(str(EXAMPLES / script))
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Three grey pictures, the second the brightest."""
    for index, grey in enumerate((50, 200, 100)):
        Image.new("L", (8, 8), grey).save(tmp_path / f"{index}.png")
    return [str(tmp_path / f"{index}.png") for index in range(3)]


def test_deqa_score_prints_a_list(
    paths: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class StandIn:
        @classmethod
        def from_pretrained(cls, name: str, **options: object) -> StandIn:
            assert name == "zhiyuanyou/DeQA-Score-Mix3"
            return cls()

        def score(self, pictures: list[Image.Image]) -> torch.Tensor:
            return torch.tensor([float(picture.getpixel((0, 0))[0]) for picture in pictures])

    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(AutoModelForCausalLM=StandIn))
    assert printed("deqa_score.py", paths, monkeypatch, capsys) == [50, 200, 100]


def test_mdfs_prints_a_list_of_distances(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), tmp_path / "MDFS_weights.pth")
    (tmp_path / "model.py").write_text("""
import torch

def prepare_image(picture):
    return torch.tensor(float(picture.getpixel((0, 0))[0]))

class EffNet(torch.nn.Module):
    def forward(self, image):
        return image / 50 + torch.tensor([[0.0, 0.1], [0.2, 0.0], [0.1, 0.3]])

class APL(torch.nn.Module):
    def forward(self, features, select):
        return features, torch.tensor([[1.0, 1.0, 2.0]])
""")
    monkeypatch.delitem(sys.modules, "model", raising=False)
    distances = printed("mdfs_score.py", [str(tmp_path), *paths], monkeypatch, capsys)
    monkeypatch.delitem(sys.modules, "model")
    # The stand-in's features lie around 1, 4 and 2; those of the pristine pictures around 0.
    assert 0 < distances[0] < distances[2] < distances[1]
