"""Tiles against the whole image, at sizes that no stride divides; memory at 100 megapixels."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torch import nn
from typer.testing import CliRunner

from qualiclip_plugin.cli import app
from qualiclip_plugin.models import conv_towers
from qualiclip_plugin.models.backbones import backbone_config, build_image_encoder
from qualiclip_plugin.models.conv_towers import ConvTower, ResNetTower, StagePoolTower
from qualiclip_plugin.models.precision import prepare_for_inference
from qualiclip_plugin.models.prompts import ATTRIBUTES
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.models.tiling import Span, automatic_tile, cut, divisions, reach
from qualiclip_plugin.utils.errors import ConfigError, ImageError
from qualiclip_plugin.utils.images import read_image
from qualiclip_plugin.weights.checkpoint import CLIP_MEAN, CLIP_STD, save_checkpoint
from tests.conftest import TINY_BACKBONE, calibrate

# Stages of two strides, 8 and 16, that follow the early ones.
TINY_STAGES = {
    "embed_dim": 16,
    "vision_cfg": {"stage_pool": {"model": "tf_efficientnet_lite0", "stages": [2, 3]}},
}
LITE = {"embed_dim": 384, "vision_cfg": {"stage_pool": {"model": "tf_efficientnet_lite0", "stages": [5, 6]}}}
RESNET50 = backbone_config("RN50")
SIZES = [(285, 407), (322, 321), (260, 463), (431, 64), (33, 480), (320, 320)]
TOLERANCE = 1e-5  # of the largest feature


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
    whole = encoder(model.normalise(image))
    tiled = encoder.encode_in_tiles(image, model.normalise, small_tile(encoder, more))
    torch.testing.assert_close(tiled, whole, rtol=0, atol=TOLERANCE * whole.abs().max().item())


def test_the_halo_is_not_wider_than_needed(model, photo, monkeypatch):
    encoder = model.image_encoder
    whole = encoder(model.normalise(photo))
    true_reach = reach

    def shorter(*parts):
        stride, halo = true_reach(*parts)
        return stride, halo - stride

    monkeypatch.setattr(conv_towers, "reach", shorter)
    tiled = encoder.encode_in_tiles(photo, model.normalise, small_tile(encoder))
    assert (tiled - whole).abs().max() > 10 * TOLERANCE * whole.abs().max()


def test_the_model_tiles_large_images_by_itself(model, photo, monkeypatch):
    calls = []

    encode = model.image_encoder.encode_in_tiles

    def counted(*arguments, **options):
        calls.append(arguments)
        return encode(*arguments, **options)

    monkeypatch.setattr(model.image_encoder, "encode_in_tiles", counted)
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
        ways = divisions(length, 64, 32)
        assert ways[0] == [Span(slice(0, length), 0, None)]
        assert len(ways[-1]) == math.ceil(length / 32)
        for spans in ways:
            assert [span.start for span in spans[1:]] == [span.stop for span in spans[:-1]]
            assert spans[0].start == 0
            assert spans[-1].stop is None
            for span in spans:
                assert span.read.start % 32 == 0
                assert (span.read.stop - span.read.start - length) % 32 == 0
                assert span.read.start == max(0, span.start - 64)
                assert span.read.stop == length or span.read.stop >= span.stop + 64


@pytest.mark.parametrize(
    ("height", "width", "tile", "shape"),
    [
        (2160, 3840, 2**23, (1, 1)),  # fits as a whole
        (2160, 3840, 2**23 - 2**17, (1, 2)),  # just not
        (3840, 2160, 2**22, (3, 1)),
        (64, 40000, 2**21, (1, 2)),  # a narrow image leaves the budget to its long side
        (8660, 11548, 2**23, (3, 6)),
    ],
)
def test_the_grid_reads_as_little_as_its_tiles_allow(height, width, tile, shape):
    tiles = cut(torch.empty(1, 1, 1, 1).expand(1, 1, height, width), tile, 32, 224)
    rows, columns = zip(*tiles, strict=True)
    assert (len({span.start for span in rows}), len({span.start for span in columns})) == shape
    sizes = [[span.read.stop - span.read.start for span in pair] for pair in tiles]
    assert max(tall * wide for tall, wide in sizes) <= tile
    assert sum(tall * wide for tall, wide in sizes) < 1.6 * height * width


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
        tower = build_image_encoder({"embed_dim": 16, "vision_cfg": vision_config})
        assert not (isinstance(tower, ConvTower) and tower.can_tile())


def test_tiles_by_default(model):
    encoder = model.image_encoder
    assert automatic_tile(encoder, 100) > 5e6
    sizes = [automatic_tile(encoder, int(pixels)) for pixels in (1e6, 24e6, 100e6, 1e9)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > 5e6 / 4


def test_too_small_tiles_are_refused(model, photo):
    with pytest.raises(ConfigError, match="too small"):
        model.image_encoder.encode_in_tiles(photo, model.normalise, 64**2)


SIZE_OF_A_HUNDRED_MEGAPIXELS = (11548, 8660)
SCORE_FILE = """
import resource, sys
from qualiclip_plugin.scoring.local import score_files
from qualiclip_plugin.weights.loading import load_model
weights, runtime, path = sys.argv[1:]
(row,) = score_files([path], load_model(weights, runtime=runtime))
print(row.score, row.error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.fixture(scope="module")
def huge_files(tmp_path_factory) -> dict[str, Path]:
    """A picture of 100 megapixels as JPEG and as PNG: a smooth ramp with a texture of its own in every column."""
    folder, (width, height) = tmp_path_factory.mktemp("huge"), SIZE_OF_A_HUNDRED_MEGAPIXELS
    columns = np.random.default_rng(0).random((1, width, 3))
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, 433):
        pixels[top : top + 433] = 255 * np.linspace(top, top + 433, 433)[:, None, None] / height * columns
    picture = Image.fromarray(pixels)
    picture.save(folder / "huge.jpg", quality=90)
    picture.save(folder / "huge.png", compress_level=1)
    return {path.suffix[1:]: path for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("backbone", "suffix", "runtime"),
    [
        (LITE, "jpg", "eager"),
        (LITE, "png", "eager"),
        (LITE, "jpg", "openvino"),
        (LITE, "png", "openvino"),
        (RESNET50, "jpg", "eager"),
        (RESNET50, "jpg", "openvino"),
    ],
    ids=["lite-jpg-eager", "lite-png-eager", "lite-jpg-openvino", "lite-png-openvino", "RN50-eager", "RN50-openvino"],
)
def test_from_a_file_of_a_hundred_megapixels_to_its_score_in_four_gigabytes(
    backbone, suffix, runtime, huge_files, tmp_path
):
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="needs the extra openvino")
    torch.manual_seed(0)
    prompts = torch.nn.functional.normalize(torch.randn(7, 2, backbone["embed_dim"]), dim=-1)
    model = QualiCLIP(
        build_image_encoder(backbone), prompts, 10.0, CLIP_MEAN, CLIP_STD, ATTRIBUTES, backbone=backbone
    )
    save_checkpoint(tmp_path / "random.safetensors", model, {})
    command = [sys.executable, "-c", SCORE_FILE, str(tmp_path / "random.safetensors"), runtime, huge_files[suffix]]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=plain)
    row, peak = done.stdout.splitlines()
    assert row.endswith(" None"), row
    assert 0 < float(row.split()[0]) < 1
    assert int(peak) < 4e9, f"{int(peak) / 1e9:.2f} GB"
    print(f"peak {int(peak) / 1e9:.2f} GB")


def test_images_above_the_limit_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    Image.new("RGB", (100, 90)).save(path)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(ImageError, match="100x90 pixels are more than the limit of 8999"):
        read_image(path, max_pixels=8999)
    run = CliRunner().invoke(app, ["score", str(path), "--max-pixels", "8999"])
    assert run.exit_code == 1
    assert "more than the limit of 8999" in run.stdout
