"""Tiles against the whole image, at sizes that no stride divides; memory at 100 megapixels."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from qualiclip_plugin import tiling
from qualiclip_plugin.backbones import backbone_config, build_image_encoder
from qualiclip_plugin.checkpoint import CLIP_MEAN, CLIP_STD, save_checkpoint
from qualiclip_plugin.errors import ConfigError
from qualiclip_plugin.inference import prepare_for_inference
from qualiclip_plugin.model import QualiCLIP
from qualiclip_plugin.prompts import ATTRIBUTES
from qualiclip_plugin.tiling import can_tile, encode_in_tiles, reach, spans
from qualiclip_plugin.towers import ResNetTower, StagePoolTower
from tests.conftest import TINY_BACKBONE, calibrate

# Stages of two strides, 8 and 16, that follow the early ones.
TINY_STAGES = {
    "embed_dim": 16,
    "vision_cfg": {"stage_pool": {"model": "tf_efficientnet_lite0", "stages": [2, 3]}},
}
LITE = {"embed_dim": 384, "vision_cfg": {"stage_pool": {"model": "tf_efficientnet_lite0", "stages": [5, 6]}}}
RESNET50 = backbone_config("RN50")
SIZES = [(285, 407), (322, 321), (260, 463), (431, 64), (33, 480), (320, 320)]
TOLERANCE = 1e-5  # of the largest feature; the issue asks for 1e-4


@pytest.fixture(scope="module", params=[TINY_BACKBONE, TINY_STAGES], ids=["clip-resnet", "stage-pool"])
def model(request, images) -> QualiCLIP:
    torch.manual_seed(0)
    encoder = build_image_encoder(request.param)
    features = calibrate(encoder, images)
    options = {"backbone": request.param, "tile_pixels": None}
    return prepare_for_inference(QualiCLIP(encoder, features, 10.0, CLIP_MEAN, CLIP_STD, ATTRIBUTES, **options))


@pytest.fixture(scope="module")
def photo(photographs) -> torch.Tensor:
    """A photograph enlarged to (1, 3, 448, 480), float in [0, 1]."""
    pixels = torch.from_numpy(photographs[0].copy()).permute(2, 0, 1)[None].float() / 255
    return nn.functional.interpolate(pixels, (448, 480), mode="bilinear")


def small_tile(encoder: nn.Module, more: int = 0) -> int:
    """Pixels of a tile not much larger than its halo."""
    return ({ResNetTower: 224, StagePoolTower: 96}[type(encoder)] + more) ** 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("more", [0, 37])
def test_features_equal_those_of_the_whole_image(model, photo, size, more):
    encoder = model.image_encoder
    image = photo[:, :, : size[0], : size[1]]
    whole = encoder(model._normalise(image))
    tiled = encode_in_tiles(encoder, image, model._normalise, small_tile(encoder, more))
    torch.testing.assert_close(tiled, whole, rtol=0, atol=TOLERANCE * whole.abs().max().item())


def test_the_halo_is_not_wider_than_needed(model, photo, monkeypatch):
    encoder = model.image_encoder
    whole = encoder(model._normalise(photo))
    true_reach = reach

    def shorter(*parts):
        stride, halo = true_reach(*parts)
        return stride, halo - stride

    monkeypatch.setattr(tiling, "reach", shorter)
    tiled = encode_in_tiles(encoder, photo, model._normalise, small_tile(encoder))
    assert (tiled - whole).abs().max() > 10 * TOLERANCE * whole.abs().max()


def test_the_model_tiles_large_images_by_itself(model, photo, monkeypatch):
    calls = []

    def counted(*arguments, **options):
        calls.append(arguments)
        return encode_in_tiles(*arguments, **options)

    monkeypatch.setattr("qualiclip_plugin.model.encode_in_tiles", counted)
    batch = torch.cat([photo, photo.flip(3)])
    whole = model(batch)
    monkeypatch.setattr(model, "tile_pixels", small_tile(model.image_encoder))
    torch.testing.assert_close(model(batch), whole, rtol=0, atol=1e-5)
    assert len(calls) == 2
    model(photo[:, :, :64, :64])
    pixels = photo.clone().requires_grad_()
    model(pixels).sum().backward()
    assert torch.isfinite(pixels.grad).all()
    assert len(calls) == 2


def test_spans_cover_every_pixel_once_and_keep_the_images_phase():
    for length in range(300, 700, 7):
        cut = spans(length, 256, 64, 32)
        assert [span.start for span in cut[1:]] == [span.stop for span in cut[:-1]]
        assert cut[0].start == 0
        assert cut[-1].stop is None
        for span in cut:
            assert span.read.start % 32 == 0
            assert span.read.stop - span.read.start <= 256
            assert (span.read.stop - span.read.start - length) % 32 == 0
            assert span.read.start in (0, span.start - 64)
            assert span.read.stop == length or span.read.stop >= span.stop + 64


def test_halos_of_the_shipped_networks():
    resnet = build_image_encoder(RESNET50)
    assert reach(resnet) == (32, 224)
    lite = build_image_encoder(LITE)
    assert lite.early == 3
    assert reach(lite.trunk.conv_stem, lite.trunk.blocks[:3]) == (8, 40)
    assert reach(lite.trunk.blocks[3:]) == (4, 52)


def test_towers_that_see_everything_at_once_are_not_tiled():
    attention = {"layers": 1, "width": 64, "patch_size": 16, "image_size": 64}
    squeeze = {"stage_pool": {"model": "tf_efficientnet_b0", "stages": [1]}}
    for vision_config in (attention, squeeze):
        assert not can_tile(build_image_encoder({"embed_dim": 16, "vision_cfg": vision_config}))


def test_too_small_tiles_are_refused(model, photo):
    with pytest.raises(ConfigError, match="too small"):
        encode_in_tiles(model.image_encoder, photo, model._normalise, 64**2)


HUGE = """
import resource, sys, torch
from qualiclip_plugin.weights import load_model
model = load_model(sys.argv[1])
rows = torch.linspace(0, 1, 8660).view(-1, 1)
image = torch.empty(1, 3, 8660, 11548)
for channel, noise in zip(image[0], torch.rand(3, 1, 11548)):
    torch.mul(rows, noise, out=channel)
with torch.inference_mode():
    print(model(image).item())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backbone", [LITE, RESNET50], ids=["lite", "RN50"])
def test_a_hundred_megapixels_in_four_gigabytes(backbone, tmp_path):
    torch.manual_seed(0)
    prompts = torch.nn.functional.normalize(torch.randn(7, 2, backbone["embed_dim"]), dim=-1)
    model = QualiCLIP(
        build_image_encoder(backbone), prompts, 10.0, CLIP_MEAN, CLIP_STD, ATTRIBUTES, backbone=backbone
    )
    save_checkpoint(tmp_path / "random.safetensors", model, {})
    command = [sys.executable, "-c", HUGE, str(tmp_path / "random.safetensors")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    score, peak = done.stdout.split()
    assert 0 < float(score) < 1
    assert int(peak) < 4e9
