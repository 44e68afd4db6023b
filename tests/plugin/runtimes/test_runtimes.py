"""Every runtime against eager torch: sizes, tiles, precisions; and what a runtime refuses."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from itertools import product

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from harness.scorers.start import create_scorer
from qualiclip_plugin import runtimes
from qualiclip_plugin.cli import app
from qualiclip_plugin.models.backbones import build_image_encoder
from qualiclip_plugin.models.prompts import ATTRIBUTES
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.runtimes import check_openvino, prepare_for_scoring
from qualiclip_plugin.runtimes.export import export_program
from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.weights.checkpoint import CLIP_MEAN, CLIP_STD
from tests.conftest import needs_openvino
from tests.support.rounding import score_bound

VIT = {"embed_dim": 16, "vision_cfg": {"layers": 1, "width": 64, "patch_size": 16, "image_size": 64}}
# At sides that are no sum of eight powers of two, arithmetic on sizes in bf16 would show.
SIZES = {"fp32": [(448, 480), (32, 32), (285, 407), (33, 480)], "bf16": [(448, 480), (285, 407)]}
TILE = 300**2
TOLERANCES = {"fp32": 1e-5, "bf16": score_bound("bf16")}


@torch.inference_mode()
def compare(eager: QualiCLIP, fast: QualiCLIP, photo: torch.Tensor, precision: str) -> None:
    """Scores of two photographs and of one at every size, whole and in tiles."""
    photo = photo.to(eager.mean.device)
    for tile, (height, width) in product((None, TILE), SIZES[precision]):
        eager.tile_pixels = fast.tile_pixels = tile
        batch = photo[:, :, :height, :width]
        expected = eager(batch)
        torch.testing.assert_close(fast(batch), expected, rtol=0, atol=TOLERANCES[precision])
        torch.testing.assert_close(fast(batch[1:]), expected[1:], rtol=0, atol=TOLERANCES[precision])


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("name", ["lite", "resnet"])
def test_openvino_gives_the_scores_of_eager(load, photo, name, precision):
    needs_openvino(precision)
    fast = load(name, runtime="openvino", precision=precision)
    compare(load(name, precision=precision), fast, photo, precision)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lite", {"runtime": "tensorrt"}, "unknown runtime 'tensorrt': choose one of auto, eager, openvino, cuda"),
        ("lite", {"runtime": "openvino", "inference": False}, "cannot be trained"),
        ("lite", {"runtime": "cuda", "inference": False}, "cannot be trained"),
        ("resnet", {"runtime": "cuda"}, "'cuda' computes on NVIDIA GPUs, not on cpu"),
        ("resnet", {"runtime": "openvino", "precision": "fp64"}, "fp32, fp16, bf16"),
        ("lite", {"tile_pixels": 10}, "tiles of 10 pixels are too small: this network needs"),
    ],
)
def test_combinations_that_are_refused(load, name, options, message):
    with pytest.raises(ConfigError, match=message):
        load(name, **options)


def test_openvino_refuses_what_the_processor_cannot(load, monkeypatch):
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
    monkeypatch.setattr(openvino.Core, "get_property", lambda *arguments: ["FP32", "INT8"])
    with pytest.raises(ConfigError, match=r"OpenVINO computes no bf16 on this processor \(it does FP32, INT8\)"):
        load("lite", runtime="openvino", precision="bf16")


def test_openvino_that_is_missing_is_named(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match=r"pip install \"qualiclip-plugin\[openvino\]\""):
        load("lite", runtime="openvino")


def test_signals_after_two_openvino_models_have_gone():
    needs_openvino()
    program = """
import gc, os, signal
from qualiclip_plugin.weights.loading import load_model
first, second = (load_model("lite", runtime="openvino") for _ in range(2))
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("received"))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "received\n"), done.stderr


def test_openvino_keeps_little_of_the_sizes_it_has_seen():
    needs_openvino()
    # A process of its own, whose memory nothing else uses. Left alone, OpenVINO kept a megabyte of every size.
    program = """
import psutil, torch
from qualiclip_plugin.weights.loading import load_model
torch.set_num_threads(1)
model = load_model("lite", runtime="openvino")
def memory_after(heights):
    with torch.inference_mode():
        for height in heights:
            for width in range(64, 124, 3):
                model(torch.zeros(1, 3, height, width))
    return psutil.Process().memory_info().rss
print(-memory_after(range(64, 76, 3)) + memory_after(range(76, 100, 3)))
"""
    grown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert int(grown) < 80e6


def test_openvino_stays_on_the_cpu():
    with pytest.raises(ConfigError, match="computes on the CPU, not on cuda"):
        check_openvino("fp32", torch.device("cuda"))


@pytest.mark.parametrize("runtime", ["cuda", "openvino"])
def test_other_towers_are_refused(images, runtime):
    with pytest.raises(ConfigError, match=f"'{runtime}' serves convolutional towers, not AnySizeViT"):
        prepare_for_scoring(_vit(), runtime)


def _vit():
    encoder = build_image_encoder(VIT)
    prompts = nn.functional.normalize(torch.randn(7, 2, 16), dim=-1)
    return QualiCLIP(encoder, prompts, 10.0, CLIP_MEAN, CLIP_STD, ATTRIBUTES, backbone=VIT)


def test_gradients_copies_and_graphs_are_refused(load, photo):
    needs_openvino()
    model = load("lite", runtime="openvino")
    with pytest.raises(ConfigError, match="gives no gradients: load with runtime='eager'"):
        model(photo.float().div(255).requires_grad_())
    for use in (export_program, copy.deepcopy, pickle.dumps):
        with pytest.raises(ConfigError, match="neither copied nor exported"):
            use(model)


def test_pyiqa_passes_the_runtime_on(use_official, photo):
    pyiqa = pytest.importorskip("pyiqa")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device 'cuda' cannot be used"):
            pyiqa.create_metric("qualiclip", device="cpu", weights="official", runtime="cuda")
    needs_openvino()
    fast, plain = (
        pyiqa.create_metric("qualiclip", device="cpu", weights="official", runtime=runtime)
        for runtime in ("openvino", "eager")
    )
    image = photo[:1, :, :96, :111].float() / 255
    torch.testing.assert_close(fast(image), plain(image), rtol=0, atol=1e-5)


def test_the_command_takes_a_runtime(photographs, tmp_path, monkeypatch):
    needs_openvino()
    Image.fromarray(photographs[0][:96, :111]).save(tmp_path / "photo.png")
    monkeypatch.delenv("QUALICLIP_RUNTIME")
    scores = []
    for options in (["--runtime", "eager"], []):
        run = CliRunner().invoke(app, ["score", str(tmp_path / "photo.png"), *options])
        assert run.exit_code == 0, run.output
        assert ("runtime: openvino" in run.stderr) is not bool(options)
        scores.append(float(run.stdout.splitlines()[1].split("\t")[1]))
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_auto_is_openvino_where_it_is_there_and_serves(load, monkeypatch):
    lite, half = load("lite"), load("lite", precision="bf16")
    monkeypatch.setattr(runtimes, "find_spec", lambda name: object())
    assert [runtimes.choose_runtime(model, "cpu") for model in (lite, half)] == ["openvino", "eager"]
    assert runtimes.choose_runtime(lite, "cuda:1") == "eager"
    assert runtimes.choose_runtime(_vit(), "cpu") == "eager"
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    assert runtimes.choose_runtime(lite, "cpu") == "eager"
    assert prepare_for_scoring(_vit(), "auto").runtime == "eager"


def test_the_runtime_is_part_of_a_scorers_fingerprint():
    needs_openvino()
    names = ("qualiclip-lite", "qualiclip-lite@runtime=openvino", "qualiclip-lite@runtime=auto")
    plain, fast, chosen = (create_scorer(name) for name in names)
    assert plain.identity != fast.identity == chosen.identity
