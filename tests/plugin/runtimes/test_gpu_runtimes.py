"""The runtime of GPUs: its logic with torch's operators anywhere, and against eager where there is a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qualiclip_plugin.models.avg_pool import HalvingPool, halve, has_triton, spread, use_halving_pools
from qualiclip_plugin.models.precision import exact_fp32
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.runtimes.cuda_graphs import KEPT, MOST_PIXELS, Replayed
from qualiclip_plugin.runtimes.cuda_resnet import FusedMap, Normalise
from qualiclip_plugin.scoring.local import score_files
from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.weights.loading import load_model
from tests.benchmarks.scale import photographs as write_photographs
from tests.plugin.runtimes.test_runtimes import TOLERANCES, compare

SHAPES = [(2, 64, 7, 11), (1, 3, 2, 2), (3, 40, 33, 2), (1, 8, 9, 300)]
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def on_gpu(test: Callable[..., None]) -> Callable[..., None]:
    for mark in gpu:
        test = mark(test)
    return test


# Halving maps.


def check_halving(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    """The kernels against torch's pool, forwards and backwards."""
    features = torch.randn(shape, device=device).to(dtype, memory_format=torch.channels_last).requires_grad_()
    expected = F.avg_pool2d(features, 2)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    rounding = torch.finfo(dtype).eps * 4
    torch.testing.assert_close(halve(features.detach()), expected, rtol=rounding, atol=rounding)
    assert halve(features.detach()).stride() == expected.stride()
    torch.testing.assert_close(spread(gradient, features.shape), features.grad, rtol=rounding, atol=rounding)


@pytest.mark.skipif(not has_triton(), reason="needs Triton")
def test_halving_kernels_are_right_where_triton_is_interpreted() -> None:
    program = """
import contextlib, torch
from tests.plugin.runtimes import test_gpu_runtimes as tests
torch.cuda.device_of = lambda tensor: contextlib.nullcontext()
for dtype in (torch.float32, torch.float16):
    for shape in tests.SHAPES:
        tests.check_halving(shape, dtype, "cpu")
print("right")
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=Path(__file__).parents[3]
    )
    assert done.stdout == "right\n", done.stderr


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_halving_on_a_gpu(dtype: torch.dtype) -> None:
    for shape in [*SHAPES, (2, 256, 97, 130)]:
        check_halving(shape, dtype, "cuda")
    features = torch.randn(2, 64, 30, 41, device="cuda").to(dtype, memory_format=torch.channels_last)
    features.requires_grad_()
    HalvingPool()(features).sum().backward()
    assert features.grad is not None
    assert features.grad[..., :40].unique().tolist() == [0.25]
    assert not features.grad[..., 40].any()


def test_all_pools_of_clips_resnet_halve(load: Callable[..., QualiCLIP], photo: Tensor) -> None:
    encoder = load("resnet").image_encoder
    pools = [module for module in encoder.modules() if isinstance(module, nn.AvgPool2d)]
    assert len(pools) == 7  # the stem's, and two in the first block of each stage but the first
    assert {type(pool) for pool in pools} == {HalvingPool}
    other = nn.Sequential(nn.AvgPool2d(2), nn.AvgPool2d(1), nn.AvgPool2d(3), nn.AvgPool2d(2, stride=1))
    use_halving_pools(other)
    assert [type(pool) for pool in other] == [HalvingPool, nn.Identity, nn.AvgPool2d, nn.AvgPool2d]


# Fused convolutions.


@pytest.fixture
def plain_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's fused operators by torch's plain ones."""

    def with_relu(images, weight, bias, stride, padding, dilation, groups):
        return F.conv2d(images, weight, bias, stride, padding, dilation, groups).relu()

    def with_sum(images, weight, other, factor, bias, stride, padding, dilation, groups):
        return (F.conv2d(images, weight, bias, stride, padding, dilation, groups) + factor * other).relu()

    monkeypatch.setattr(torch, "cudnn_convolution_relu", with_relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", with_sum)


@pytest.mark.usefixtures("plain_cudnn")
def test_the_fused_map_is_that_of_the_tower(load: Callable[..., QualiCLIP], photo: Tensor) -> None:
    model, fused = load("resnet"), load("resnet")
    fused.image_encoder.feature_map = FusedMap(fused.image_encoder)
    fused.normalise = Normalise(fused.mean, fused.std, torch.float32)
    compare(model, fused, photo, "fp32")


def test_normalising_in_one_pass(load: Callable[..., QualiCLIP], photo: Tensor) -> None:
    model = load("resnet")
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float16, 2e-3)):
        normalise = Normalise(model.mean, model.std, dtype)
        for images in (photo, photo.float() / 255, photo[:, :1], photo.permute(0, 1, 3, 2)):
            normalised = normalise(images)
            assert normalised.dtype == dtype
            assert normalised.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(normalised.float(), model.normalise(images), rtol=0, atol=tolerance)


@on_gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ["resnet", "lite"])
def test_cuda_gives_the_scores_of_eager(
    load: Callable[..., QualiCLIP], photo: Tensor, name: str, precision: str
) -> None:
    eager, fast = (load(name, device="cuda", precision=precision, runtime=kind) for kind in ("eager", "cuda"))
    # Sizes that are tiled in `compare` are recorded whole as well: tile_pixels is one of the settings.
    sizes = "fp32" if precision == "fp32" else "bf16"
    assert isinstance(fast.similarities, Replayed)
    with exact_fp32():
        for _ in range(3):  # as it is, recorded, replayed
            compare(eager, fast, photo, sizes)


@on_gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_clips_resnet_on_a_gpu_within_a_thousandth(use_official: Path, tmp_path: Path, precision: str) -> None:
    files = write_photographs(tmp_path, 8, (512, 384))
    expected = [row.score for row in score_files(files, load_model("official"))]
    model = load_model("official", device="cuda", precision=precision, runtime="cuda")
    tolerance = TOLERANCES["fp32"] if precision == "fp32" else 1e-3
    for batch_size in (1, 4, 0):
        scores = [row.score for row in score_files(files, model, batch_size=batch_size)]
        assert scores == pytest.approx(expected, rel=0, abs=tolerance)
        assert scores == [row.score for row in score_files(files, model, batch_size=batch_size)]


@on_gpu
def test_pyiqas_metric_on_a_gpu(use_official: Path, photo: Tensor) -> None:
    pyiqa = pytest.importorskip("pyiqa")
    images = photo.cuda().float() / 255
    eager, fast = (
        pyiqa.create_metric("qualiclip", device="cuda", weights="official", runtime=runtime)
        for runtime in ("eager", "cuda")
    )
    for _ in range(3):
        torch.testing.assert_close(fast(images), eager(images), rtol=0, atol=TOLERANCES["fp32"])
    with pytest.raises(ConfigError, match="stays there as it is"):
        fast.net.cpu()


@on_gpu
def test_more_sizes_than_are_kept(load: Callable[..., QualiCLIP], photo: Tensor) -> None:
    eager, fast = (load("resnet", device="cuda", runtime=runtime) for runtime in ("eager", "cuda"))
    with exact_fp32():
        for _ in range(3):
            for side in range(64, 64 + 8 * (KEPT + 2), 8):
                images = photo[:, :, :side, :96].cuda()
                torch.testing.assert_close(fast(images), eager(images), rtol=0, atol=TOLERANCES["fp32"])


def test_a_prepared_model_stays_where_it_is(load: Callable[..., QualiCLIP]) -> None:
    model = load("resnet")
    model.stays = True
    assert model.to("cpu") is model
    for move in (lambda: model.to("meta"), model.double):
        with pytest.raises(ConfigError, match="prepared for cpu stays there as it is: load another one"):
            move()


# Replaying.


def settings() -> str:
    return torch.get_float32_matmul_precision()


class Log:
    """What was computed, recorded and replayed, by the first side of the images."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def compute(self, images: Tensor) -> Tensor:
        self.events.append(("compute", images.shape[2]))
        return images.mean((1, 2, 3))

    def record(self, compute: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[Tensor], Tensor]:
        self.events.append(("record", images.shape[2]))

        def replay(images: Tensor) -> Tensor:
            self.events.append(("replay", images.shape[2]))
            return images.mean((1, 2, 3))

        return replay


def test_a_shape_is_recorded_when_it_comes_again() -> None:
    log = Log()
    function = Replayed(log.compute, log.record, settings)
    for side in (32, 33, 32, 32, 33):
        images = torch.rand(2, 3, side, 40)
        torch.testing.assert_close(function(images), images.mean((1, 2, 3)))
    assert log.events == [
        ("compute", 32), ("compute", 33), ("record", 32), ("replay", 32), ("replay", 32), ("record", 33),
        ("replay", 33),
    ]  # fmt: skip


def test_other_settings_types_and_batches_have_recordings_of_their_own() -> None:
    log = Log()
    function = Replayed(log.compute, log.record, settings)
    images = torch.rand(2, 3, 32, 40)
    function(images)
    function(images[:1])
    function(images.half())
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    function(images)
    torch.set_float32_matmul_precision(before)
    assert [event for event, _ in log.events] == ["compute"] * 4
    function(images)
    assert log.events[-1][0] == "replay"


def test_the_longest_unused_recording_goes_and_large_batches_have_none() -> None:
    log = Log()
    function = Replayed(log.compute, log.record, settings)
    for side in (*range(32, 32 + KEPT), 32, 200, 32, 33):
        function(torch.rand(1, 3, side, 40))
    assert log.events[KEPT:] == [("record", 32), ("replay", 32), ("compute", 200), ("replay", 32), ("compute", 33)]
    log.events.clear()
    for _ in range(3):
        function(torch.rand(1, 1, MOST_PIXELS // 40 + 1, 40))
    assert {event for event, _ in log.events} == {"compute"}


def test_without_memory_for_a_recording_images_are_computed_as_they_are() -> None:
    log = Log()

    def full(compute: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[Tensor], Tensor]:
        raise RuntimeError("CUDA out of memory")

    function = Replayed(log.compute, full, settings)
    for _ in range(3):
        function(torch.rand(1, 3, 32, 32))
    assert log.events == [("compute", 32)] * 3

    def broken(compute: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[Tensor], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    function = Replayed(log.compute, broken, settings)
    function(torch.rand(1, 3, 32, 32))
    with pytest.raises(RuntimeError, match="not permitted"):
        function(torch.rand(1, 3, 32, 32))


def test_gradients_through_a_recording_are_refused() -> None:
    log = Log()
    function = Replayed(log.compute, log.record, settings)
    with pytest.raises(ConfigError, match="'cuda' gives no gradients: load with runtime='eager'"):
        function(torch.rand(1, 3, 32, 32, requires_grad=True))
    weights = torch.ones(1, requires_grad=True)
    (function(torch.rand(1, 3, 32, 32)) * 1 * weights).sum().backward()  # results can be used like any others
    assert weights.grad is not None


@on_gpu
def test_replayed_images_are_not_those_that_were_recorded(load: Callable[..., QualiCLIP]) -> None:
    eager, fused = (load("resnet", device="cuda", runtime=runtime) for runtime in ("eager", "cuda"))
    generator = torch.Generator().manual_seed(0)
    with exact_fp32():
        for index in range(6):
            images = torch.rand(2, 3, 64 + 32 * (index % 2), 96, generator=generator).cuda()
            torch.testing.assert_close(fused(images), eager(images), rtol=0, atol=TOLERANCES["fp32"])
