"""What ``results/full`` shows of the recipe ``paper`` without CLIP's weights."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.training.config import load_config
from qualiclip_plugin.training.layers import stages
from qualiclip_plugin.weights.loading import load_model

ROOT = Path(__file__).parents[1]
NO_PART = {"attnpool.positional_embedding", "attnpool.k_proj.bias"}
"""Switched off; cancels in the softmax."""


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "results" / "full" / "measure.py"))


@pytest.fixture(scope="module")
def pair(images: torch.Tensor) -> torch.Tensor:
    """Two crops of one photograph, (1, 2, 3, 64, 64)."""
    return torch.stack([images[0, :, :64, :64], images[0, :, 16:80, 16:80]])[None]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_gradient_reaches_every_tensor_of_clips_resnet(
    program: dict[str, Any], official_home: Path, pair: torch.Tensor, precision: str
) -> None:
    model = load_model(str(official_home / "hub" / "pyiqa" / "QualiCLIP.pth"), inference=False)
    gradients = program["gradient"](model, pair, load_config("paper"), precision)
    assert {name for name, gradient in gradients.items() if gradient is None} == NO_PART
    for stage, names in stages(model.image_encoder).items():
        for name in {*names} - NO_PART:
            assert gradients[name].isfinite().all(), f"{stage}: {name}"
            assert gradients[name].abs().sum() > 0, f"{stage}: {name}"


def test_what_a_step_of_1e_9_moves(program: dict[str, Any], tiny_model: QualiCLIP, pair: torch.Tensor) -> None:
    def moved(rate: float, dtype: torch.dtype) -> dict[str, float]:
        config = load_config("paper", [f"learning_rate={rate}"])
        return program["moved_shares"](copy.deepcopy(tiny_model), pair, config, dtype)

    name = "moved after 10 steps"
    single, half = moved(1e-9, torch.float32), moved(1e-9, torch.bfloat16)
    assert half[name] <= half["can be moved by one step"] < 1e-4
    assert 0.2 < single[name] < 0.9
    # Whoever cannot be moved by a whole step is not moved by ten.
    assert single[name] <= single["can be moved by one step"]
    assert moved(1e-5, torch.float32)[name] > 0.99
