"""Shared material: photographs from the scikit-image wheel, seeded random checkpoints in the official formats."""

from __future__ import annotations

# isort: off
from tests.support import fresh_caches  # noqa: F401 - before all others

# isort: on
import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qualiclip_plugin.models.backbones import backbone_config, build_image_encoder
from qualiclip_plugin.models.prompts import ATTRIBUTES
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.runtimes import check_openvino
from qualiclip_plugin.runtimes.export import ONNX_SINCE, export_onnx
from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.weights.checkpoint import CLIP_MEAN, CLIP_STD, build_text_side, read_weights, save_checkpoint
from qualiclip_plugin.weights.loading import load_model
from tests.benchmarks.untrained import calibrate, write_official
from tests.support.local_server import LocalServer, serving

# Tests must not depend on the user's choice of weights.
os.environ.pop("QUALICLIP_WEIGHTS", None)
os.environ["QUALICLIP_RUNTIME"] = "eager"  # others take seconds to start; who tests them asks for them

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
]
TINY_BACKBONE = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 64, "patch_size": None},
}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sums, and what a result says of its device, depend on the number of threads; subprocesses here get one too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="session")
def lite_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``qualiclip-lite`` as ONNX."""
    if torch.__version__ < ONNX_SINCE:
        pytest.skip(f"ONNX graphs need torch {ONNX_SINCE}")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    path = tmp_path_factory.mktemp("onnx") / "lite.onnx"
    export_onnx(load_model("lite"), path)
    return path


def load_photographs() -> list[np.ndarray]:
    """Photographs of the scikit-image wheel, uint8 RGB (H, W, 3)."""
    data = importlib.import_module("skimage.data")
    return [getattr(data, name)()[..., :3] for name in PHOTOGRAPHS]


def crops_of(photographs: list[np.ndarray]) -> torch.Tensor:
    """Crops of the photographs, float RGB in [0, 1], (4, 3, 224, 224)."""
    crops = [torch.from_numpy(photo[40:264, 100:324].copy()).permute(2, 0, 1) for photo in photographs]
    return torch.stack(crops).float() / 255


@pytest.fixture(scope="session")
def photographs() -> list[np.ndarray]:
    return load_photographs()


@pytest.fixture(scope="session")
def images(photographs: list[np.ndarray]) -> torch.Tensor:
    return crops_of(photographs)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with data that is not part of the project."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared with scored photographs, which is not part of the project")
    return folder


@pytest.fixture(scope="session")
def tiny_model(images: torch.Tensor) -> QualiCLIP:
    """See :func:`build_tiny_model`; shared, so not to be changed."""
    return build_tiny_model(images)


def build_tiny_model(images: torch.Tensor) -> QualiCLIP:
    """A tiny QualiCLIP (CLIP ResNet, 16 features, seven prompt pairs), seeded."""
    torch.manual_seed(0)
    encoder = build_image_encoder(TINY_BACKBONE)
    features = calibrate(encoder, images)
    return QualiCLIP(encoder, features, 10.0, CLIP_MEAN, CLIP_STD, ATTRIBUTES, backbone=TINY_BACKBONE)


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model: QualiCLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a file in this project's format."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_checkpoint(path, tiny_model, {"name": "tiny", "training_data": "none, random weights"})
    return path


def needs_openvino(precision: str = "fp32") -> None:
    """Skip where OpenVINO is missing or this processor has no such precision."""
    try:
        check_openvino(precision, torch.device("cpu"))
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def load(tiny_checkpoint: Path) -> Callable[..., QualiCLIP]:
    """``load_model`` where ``resnet`` is a tiny CLIP ResNet."""
    return lambda name, **options: load_model({"resnet": tiny_checkpoint}.get(name, name), **options)


@pytest.fixture(scope="session")
def photo(photographs) -> torch.Tensor:
    """Two photographs enlarged to (2, 3, 448, 480), bytes."""
    pixels = torch.stack([torch.from_numpy(photo[:300, :400].copy()).permute(2, 0, 1) for photo in photographs[:2]])
    return torch.nn.functional.interpolate(pixels.float(), (448, 480), mode="bilinear").to(torch.uint8)


@pytest.fixture(scope="session")
def official_home(images: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TORCH_HOME whose pyiqa cache holds seeded random full-size weights in the official formats."""
    home = tmp_path_factory.mktemp("torch-home")
    cache = home / "hub" / "pyiqa"
    cache.mkdir(parents=True)
    write_official(cache / "QualiCLIP.pth", images)
    return home


@pytest.fixture(scope="session")
def official_plus(official_home: Path) -> Path:
    """A seeded random QualiCLIP+ file in pyiqa's format, in the cache of ``official_home``."""
    from qualiclip_plugin.models.backbones import build_tokenizer
    from qualiclip_plugin.models.prompt_learner import PromptLearner

    cache = official_home / "hub" / "pyiqa"
    config = backbone_config("RN50")
    torch.manual_seed(2)
    tower = build_text_side(read_weights(cache / "QualiCLIP.pth"), config)
    learner = PromptLearner(tower, build_tokenizer(config))
    learner.ctx.data.mul_(10)
    state = {f"prompt_learner.{key}": value for key, value in learner.state_dict().items()}
    torch.save({"params": state}, cache / "QualiCLIP+_koniq.pth")
    return cache / "QualiCLIP+_koniq.pth"


@pytest.fixture
def use_official(official_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the weight cache to ``official_home``."""
    monkeypatch.setenv("TORCH_HOME", str(official_home))
    return official_home


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory, photographs: list[np.ndarray]) -> str:
    """Eight small photographs."""
    folder = tmp_path_factory.mktemp("photos")
    for number, photo in enumerate(photographs):
        for part in range(2):
            crop = photo[60 : 60 + 96, 100 * part : 100 * part + 112]
            Image.fromarray(crop).save(folder / f"photo{number}{part}.png")
    return str(folder)


@pytest.fixture(scope="session")
def run_settings(tiny_checkpoint: Path) -> dict[str, Any]:
    """A run of a second."""
    return {
        "weights": str(tiny_checkpoint),
        "steps": 6,
        "batch_size": 2,
        "crop_size": 64,
        "levels": 3,
        "distortions": ["gaussian_blur", "jpeg", "white_noise", "darken"],
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "cpu": True,
        "workers": 2,
        "validation_photos": 0,
        "validation_size": 64,
        "save_every": 2,
    }


@pytest.fixture(scope="module")
def finished_run(
    run_settings: dict[str, Any], photo_folder: str, one_thread: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a finished run of ``run_settings``."""
    from tests.support.training_runs import run

    output = tmp_path_factory.mktemp("whole") / "run"
    run(run_settings, photo_folder, output)
    return output


@pytest.fixture
def refuse_writing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From a call on, the system makes no file and gives a number as the reason (root may write anywhere)."""
    opened = os.open

    def refuse(reason: int) -> None:
        def open_existing(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                raise OSError(reason, os.strerror(reason), str(path))
            return opened(path, flags, *arguments, **options)

        monkeypatch.setattr(os, "open", open_existing)

    return refuse


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalServer]:
    """A web server on this machine, asked directly, and an empty cache."""
    monkeypatch.setenv("QUALICLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    with serving() as started:
        yield started
