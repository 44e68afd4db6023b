"""pyiqa's own trainer on this package's model, dataset and losses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.training.config import CONFIGS
from qualiclip_plugin.training.losses import consistency_loss, negative_ranking_loss, positive_ranking_loss
from qualiclip_plugin.training.model_card import starting_record
from qualiclip_plugin.utils.errors import ConfigError, DatasetError, ImageError
from qualiclip_plugin.weights.checkpoint import save_checkpoint
from qualiclip_plugin.weights.loading import load_model
from tests.support.rounding import bound_of


@pytest.fixture
def photos(tmp_path: Path, photographs: list[np.ndarray]) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, photo in enumerate(photographs):
        Image.fromarray(photo[60:156, 100:212]).save(folder / f"photo{number}.png")
    Image.fromarray(photographs[0][:20, :90]).save(folder / "small.png")
    return folder


def options(weights: Path, photos: Path) -> dict[str, Any]:
    """The shipped options, made small."""
    opt = yaml.safe_load((CONFIGS / "pyiqa_train.yaml").read_text(encoding="utf-8"))
    opt["num_gpu"] = 0
    opt["network"]["weights"] = str(weights)
    opt["datasets"]["train"] |= {
        "photos": str(photos),
        "crop_size": 64,
        "batch_size_per_gpu": 2,
        "num_worker_per_gpu": 0,
    }
    opt["train"]["optim"]["lr"] = 1e-3
    opt["train"]["total_iter"] = 4
    opt["train"]["degradation"] |= {"levels": 2, "distortions": ["jpeg", "gaussian_blur"]}
    opt["logger"]["print_freq"] = 1
    return opt


def test_train_pipeline_writes_a_network_that_create_metric_loads(
    tiny_model: QualiCLIP, photos: Path, tmp_path: Path, images: torch.Tensor
) -> None:
    option_file, start = tmp_path / "options.yaml", tmp_path / "start.safetensors"
    save_checkpoint(start, tiny_model, {"opinion_aware": True, "licence": "CC0-1.0"})
    option_file.write_text(yaml.safe_dump(options(start, photos)))
    code = "import sys; from pyiqa.train import train_pipeline; train_pipeline(sys.argv.pop(1))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "-opt", str(option_file)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    assert "small.png" in log
    for part in ("l_consistency", "l_positive", "l_negative", "ranking_accuracy"):
        assert part in log
    saved = tmp_path / "experiments" / "QualiCLIP_pristine" / "models" / "net_latest.safetensors"

    import pyiqa

    metric = pyiqa.create_metric("qualiclip", weights=str(saved), device="cpu")
    before = load_model(str(start))(images)
    after = metric(images)
    assert after.shape == (4, 1)
    assert not torch.allclose(before, after, atol=1e-4)
    ours = load_model(str(saved))
    torch.testing.assert_close(after, ours(images), atol=bound_of(ours), rtol=0)
    # Who trains on from here finds what the starting weights have seen where every card says it.
    assert starting_record(str(saved)) == {"weights": str(saved), "opinion_aware": True, "licence": "CC0-1.0"}


def test_registries_know_everything_by_name() -> None:
    from pyiqa.losses import build_loss
    from pyiqa.utils.registry import DATASET_REGISTRY, MODEL_REGISTRY

    assert "QualiCLIPTrainingModel" in MODEL_REGISTRY
    assert "QualiCLIPPristineDataset" in DATASET_REGISTRY
    s = torch.rand(2, 2, 3, 7, 2, generator=torch.Generator().manual_seed(0))
    cases = {"Consistency": consistency_loss, "PositiveRanking": positive_ranking_loss}
    cases |= {"NegativeRanking": negative_ranking_loss}
    for name, function in cases.items():
        loss = build_loss({"type": f"QualiCLIP{name}Loss", "margin": 0.1, "loss_weight": 0.5})
        torch.testing.assert_close(loss(s), 0.5 * function(s, 0.1))
        torch.testing.assert_close(type(loss)(0.1, loss_weight=0.5)(s), loss(s))
        with pytest.raises(TypeError, match="margn"):
            type(loss)(margn=0.1)


def test_registering_twice_is_harmless() -> None:
    from qualiclip_plugin.integrations.pyiqa_training import register_dataset, register_losses, register_model

    for register in (register_dataset, register_losses, register_model) * 2:
        register()


def test_the_dataset_gives_crop_pairs_and_draws_anew(photos: Path) -> None:
    from qualiclip_plugin.integrations.pyiqa_training import QualiCLIPPristineDataset

    dataset = QualiCLIPPristineDataset({"photos": str(photos), "crop_size": 48, "name": "x", "phase": "train"})
    assert len(dataset) == 4
    first, second = dataset[0], dataset[0]
    assert first["crops"].shape == (2, 3, 48, 48)
    assert first["crops"].dtype == torch.uint8
    assert not torch.equal(first["crops"], second["crops"])
    assert first["img_path"].endswith("photo0.png")
    with pytest.raises(DatasetError, match="no usable photograph"):
        QualiCLIPPristineDataset({"photos": str(photos), "crop_size": 200})
    with pytest.raises(DatasetError, match="lack photos"):
        QualiCLIPPristineDataset({})


def test_a_photograph_that_cannot_be_used_is_named_and_not_replaced(photos: Path) -> None:
    from qualiclip_plugin.integrations.pyiqa_training import QualiCLIPPristineDataset

    dataset = QualiCLIPPristineDataset({"photos": str(photos), "crop_size": 48})
    (photos / "photo1.png").write_bytes((photos / "photo1.png").read_bytes()[:500])
    for row in range(4):
        if dataset.photos.name(dataset.indices[row]).endswith("photo1.png"):
            with pytest.raises(ImageError, match=r"photo1\.png cannot be used: .*truncated"):
                dataset[row]
        else:
            assert dataset[row]["crops"].shape == (2, 3, 48, 48)
    unchecked = QualiCLIPPristineDataset({"photos": str(photos), "crop_size": 48, "check_photos": False})
    small = [unchecked.photos.name(row).endswith("small.png") for row in range(5)].index(True)
    with pytest.raises(ImageError, match=r"small\.png cannot be used: "):
        unchecked[small]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"consistency_loss_opt": None, "positive_loss_opt": None, "negative_loss_opt": None}}, "no loss"),
        ({"network": {"train_image_encoder": False}}, "train_image_encoder"),
        ({"train": {"degradation": {"level": 2}}}, "did you mean levels"),
        ({"train": {"degradation": {"pristine": True}}}, "'pristine' is no setting of degradation; there are"),
        ({"train": {"degradation": {"learning_rate": 1e-3}}}, "'learning_rate' is no setting of degradation"),
    ],
)
def test_wrong_options_are_named(
    tiny_checkpoint: Path, photos: Path, change: dict[str, dict[str, Any]], message: str
) -> None:
    from pyiqa.models import build_model

    opt = options(tiny_checkpoint, photos) | {"is_train": True, "dist": False}
    for section, values in change.items():
        opt[section] |= values
    with pytest.raises(ConfigError, match=message):
        build_model(opt)
