"""Every kind of degradation: what all share, and parity with the reference where there is one."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import skimage.color
import torch
from PIL import Image
from torch import Tensor

from qualiclip_plugin.distortions import DISTORTIONS, GROUPS, Distortion, get_distortion, get_table, make_table
from qualiclip_plugin.distortions.blur import disk_kernel, line_kernel, motion_blur, shake_kernel
from qualiclip_plugin.distortions.color import lab_to_rgb, linear_to_srgb, rgb_to_lab, srgb_to_linear
from qualiclip_plugin.distortions.filters import gaussian_filter
from qualiclip_plugin.distortions.jpeg import jpeg, quantization_tables
from qualiclip_plugin.distortions.jpeg2000 import jpeg2000, wavelet_transform
from qualiclip_plugin.distortions.random_fields import normal_field, uniform_field
from qualiclip_plugin.utils.errors import ConfigError

# Float32 rounding of an untouched flat area, far below any 8-bit step.
ROUNDING = 1e-6
# Where there is little but one colour, JPEG's error is the chance distance from it to the next colour it can code.
ONE_COLOUR = 4 / 255

# Of seed 9: saved plans must replay on later versions.
GOLDEN_FIELD = [0.4973835, 0.3629453, 0.6724378]

# Small pictures: a second thread waits more than it works.
pytestmark = pytest.mark.usefixtures("one_thread")

ARNIQA_STRENGTHS = {
    "blur": {
        "gaussian_blur": (0.1, 0.5, 1, 2, 5),
        "lens_blur": (1, 2, 4, 6, 8),
        "motion_blur": (1, 2, 4, 6, 10),
    },
    "color": {
        "color_diffusion": (1, 3, 6, 8, 12),
        "color_shift": (1, 3, 6, 8, 12),
        "saturation_hsv": (0.4, 0.2, 0.1, 0, -0.4),
        "saturation_lab": (1, 2, 3, 6, 9),
    },
    "compression": {"jpeg2000": (16, 32, 45, 120, 170), "jpeg": (43, 36, 24, 7, 4)},
    "noise": {
        "white_noise": (0.001, 0.002, 0.003, 0.005, 0.01),
        "color_noise": (0.0001, 0.0005, 0.001, 0.002, 0.003),
        "impulse_noise": (0.001, 0.005, 0.01, 0.02, 0.03),
        "multiplicative_noise": (0.001, 0.005, 0.01, 0.02, 0.05),
    },
    "brightness": {
        "brighten": (0.1, 0.2, 0.4, 0.7, 1.1),
        "darken": (0.05, 0.1, 0.2, 0.4, 0.8),
        "mean_shift": (0, 0.08, -0.08, 0.15, -0.15),
    },
    "spatial": {
        "jitter": (0.05, 0.1, 0.2, 0.5, 1),
        "non_eccentricity_patch": (20, 40, 60, 80, 100),
        "pixelate": (0.01, 0.05, 0.1, 0.2, 0.5),
        "quantization": (20, 16, 13, 10, 7),
        "color_block": (2, 4, 6, 8, 10),
    },
    "sharpness": {
        "high_sharpen": (1, 2, 3, 6, 12),
        "linear_contrast": (0, 0.15, -0.4, 0.3, -0.6),
        "nonlinear_contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    },
}

EVERY_KIND = [
    pytest.param(kind, id=f"{table}-{kind.name}")
    for table in ("default", "arniqa")
    for kind in get_table(table).values()
]
DEFAULT_KINDS = [pytest.param(kind, id=kind.name) for kind in DISTORTIONS.values()]


def to_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def ladder(kind: Distortion, image: Tensor, seed: int = 7) -> Tensor:
    """All levels of one image, (L, 3, H, W)."""
    strengths = torch.tensor(kind.strengths)
    L = len(strengths)
    return kind.apply(image.expand(L, -1, -1, -1), strengths, torch.full((L,), seed))


def errors(degraded: Tensor, pristine: Tensor) -> Tensor:
    return (degraded.double() - pristine.double()).square().mean(dim=(-3, -2, -1)).sqrt()


@pytest.fixture(scope="module")
def crops(photographs: list[np.ndarray]) -> Tensor:
    """Nine crops of photographs of the scikit-image wheel, (9, 3, 128, 128)."""
    from skimage import data

    motorcycle = data.stereo_motorcycle()[0]
    sources = [*photographs, motorcycle, data.retina()]
    places = [(40, 130), (60, 60), (100, 200), (10, 250), (200, 300), (600, 500)]
    cuts = [image[y : y + 128, x : x + 128] for image, (y, x) in zip(sources, places, strict=True)]
    cuts += [motorcycle[:128, 400:528], photographs[0][300:428, 20:148], photographs[2][240:368, 60:188]]
    return torch.stack([to_tensor(cut) for cut in cuts])


# What every kind has in common.


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_contract(kind: Distortion, crops: Tensor) -> None:
    images = crops[:5, :, :75, :62].clone()  # odd sizes, no multiple of a block
    before = images.clone()
    strengths, seeds = torch.tensor(kind.strengths), torch.arange(5)
    degraded = kind.apply(images, strengths, seeds)
    assert degraded.shape == images.shape
    assert degraded.dtype == images.dtype
    assert degraded.isfinite().all()
    assert degraded.min() >= 0
    assert degraded.max() <= 1
    assert torch.equal(images, before), "the input was edited in place"
    assert torch.equal(degraded, kind.apply(images, strengths, seeds)), "equal arguments, other pixels"
    assert kind.apply(images[:1].double(), strengths[:1], seeds[:1]).dtype == torch.float64


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_sample_does_not_depend_on_the_batch(kind: Distortion, crops: Tensor) -> None:
    images = crops[:5, :, :64, :64]
    strengths, seeds = torch.tensor(kind.strengths), torch.tensor([3, 1, 3, 2, 0])
    together = kind.apply(images, strengths, seeds)
    order = torch.tensor([4, 2, 0, 3, 1])
    assert (kind.apply(images[order], strengths[order], seeds[order]) - together[order]).abs().max() < 1e-5
    for i in range(5):
        alone = kind.apply(images[i : i + 1], strengths[i : i + 1], seeds[i : i + 1])
        assert (alone[0] - together[i]).abs().max() < 1e-5


@pytest.mark.parametrize("kind", DEFAULT_KINDS)
def test_error_never_falls_with_the_level_for_every_photograph(kind: Distortion, crops: Tensor) -> None:
    for number, crop in enumerate(crops):
        for seed in (number, number + 100):
            error = errors(ladder(kind, crop, seed), crop)
            assert error[0] > 1e-4, f"level 1 leaves photograph {number} as it is"
            assert (error.diff() > -ROUNDING).all(), f"photograph {number}, seed {seed}: {error.tolist()}"


@pytest.mark.parametrize("kind", DEFAULT_KINDS)
def test_strengths_run_one_way(kind: Distortion) -> None:
    steps = np.diff(kind.strengths)
    assert len(kind.strengths) == 5
    assert (steps > 0).all() or (steps < 0).all()


PIXELWISE = [
    "saturation_hsv",
    "white_noise",
    "color_noise",
    "impulse_noise",
    "multiplicative_noise",
    "shot_noise",
    "blotchy_noise",
    "darken",
    "mean_shift_up",
    "mean_shift_down",
    "overexposure",
    "underexposure",
    "low_light",
    "vignette",
    "non_eccentricity_patch",
    "color_block",
    "high_sharpen",
    "contrast_up",
    "contrast_down",
    "nonlinear_contrast",
    "haze",
    "color_diffusion",
    "color_shift",
]


@pytest.mark.parametrize("name", PIXELWISE)
def test_no_pixel_comes_back(name: str) -> None:
    # Ordered by construction, pixel by pixel: so on noise and flat pictures too, not only on photographs.
    generator = torch.Generator().manual_seed(0)
    pictures = torch.stack((torch.rand(3, 48, 48, generator=generator), torch.full((3, 48, 48), 0.3)))
    for picture in pictures:
        distance = (ladder(DISTORTIONS[name], picture) - picture).abs()
        assert (distance.diff(dim=0) > -ROUNDING).all()


@pytest.mark.parametrize("name", ["gaussian_blur", "pixelate", "quantization"])
def test_projections_and_diffusion_order_any_picture(name: str) -> None:
    stripes = (torch.arange(96) // 3 % 2).float().expand(3, 96, 96)
    checks = ((torch.arange(96)[:, None] + torch.arange(96)) % 2).float().expand(3, 96, 96)
    noise = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    for picture in (stripes, checks, noise, 0.2 + 0.1 * noise):
        assert (errors(ladder(DISTORTIONS[name], picture), picture).diff() > -ROUNDING).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", DEFAULT_KINDS)
def test_order_on_pristine_photographs(kind: Distortion, shared_dir: Path) -> None:
    for number, crop in enumerate(pristine_crops(shared_dir, np.random.default_rng(0))):
        if kind.name == "jpeg" and float(crop.std(dim=(1, 2)).max()) < ONE_COLOUR:
            continue
        error = errors(ladder(kind, crop, number), crop)
        # A picture of one colour is coded all but exactly; a hundredth of an 8-bit step means nothing.
        assert (error.diff() > -0.01 / 255).all(), f"photograph {number}: {error.tolist()}"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_same_on_the_gpu(kind: Distortion, crops: Tensor) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    strengths, seeds = torch.tensor(kind.strengths), torch.arange(5)
    on_cpu = kind.apply(crops[:5], strengths, seeds)
    on_gpu = kind.apply(crops[:5].cuda(), strengths, seeds)
    assert on_gpu.is_cuda
    # A value on the edge between two steps may fall to either side.
    assert (on_gpu.cpu() - on_cpu).abs().mean() < 1e-3


# The registry.


def test_tables() -> None:
    paper, arniqa = get_table("paper"), get_table("arniqa")
    assert get_table("default") is DISTORTIONS
    assert get_table("all") is DISTORTIONS
    assert len(arniqa) == 24
    assert {kind.type for kind in paper.values()} == set(arniqa)
    assert {kind.group for kind in arniqa.values()} == set(GROUPS)
    assert all(paper[name].paper for name in paper)
    assert not any(DISTORTIONS[name].paper for name in set(DISTORTIONS) - set(paper))
    assert set(get_table("camera")) <= set(DISTORTIONS)
    with pytest.raises(TypeError):
        DISTORTIONS["other"] = DISTORTIONS["jpeg"]  # type: ignore[index]


def test_arniqa_has_its_published_strengths() -> None:
    found: dict[str, dict[str, tuple[float, ...]]] = {group: {} for group in GROUPS}
    for kind in get_table("arniqa").values():
        found[kind.group][kind.name] = kind.strengths
    assert found == ARNIQA_STRENGTHS


def test_original_ladders_that_are_not_ordered_stay_available(crops: Tensor) -> None:
    for name in ("mean_shift", "linear_contrast"):
        error = errors(ladder(get_distortion(name, "arniqa"), crops[0]), crops[0])
        assert (error.diff() < -1e-3).any()
    assert torch.equal(ladder(get_distortion("motion_blur", "arniqa"), crops[0])[0], crops[0])


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match=r"unknown distortion 'jpg'.*did you mean jpeg"):
        get_distortion("jpg")
    with pytest.raises(ConfigError, match="gaussian_blur"):
        get_distortion("blur")
    with pytest.raises(ConfigError, match=r"unknown distortion table 'kadis'; there are default"):
        get_table("kadis")


def test_bad_records() -> None:
    jpeg_kind = DISTORTIONS["jpeg"]
    with pytest.raises(ConfigError, match="two distortions are called 'jpeg'"):
        make_table((jpeg_kind, jpeg_kind))
    with pytest.raises(ConfigError, match="unknown group"):
        Distortion("x", "sound", jpeg, (1,), "")
    with pytest.raises(ConfigError, match="no strengths"):
        Distortion("x", "blur", jpeg, (), "")
    with pytest.raises(ConfigError, match="jpeg has levels 1 to 5, not 6"):
        jpeg_kind.strength(6)


# Random fields.


def test_fields_are_uniform_and_normal() -> None:
    uniform = uniform_field(torch.tensor([1, 2**40]), (200, 500)).double()
    assert uniform.min() > 0
    assert uniform.max() < 1
    assert uniform.mean(dim=(1, 2)).sub(0.5).abs().max() < 4 / math.sqrt(12 * 1e5)
    assert np.histogram(uniform[0], bins=10, range=(0, 1))[0].std() < 300
    correlation = np.corrcoef(
        np.stack((uniform[0].flatten()[:-1], uniform[0].flatten()[1:], uniform[1].flatten()[1:]))
    )
    assert np.abs(correlation - np.eye(3)).max() < 0.015
    normal = normal_field(torch.tensor([5]), (400, 500)).double()
    assert abs(float(normal.mean())) < 0.01
    assert abs(float(normal.std()) - 1) < 0.01
    assert abs(float((normal**4).mean()) - 3) < 0.1


@pytest.mark.slow
def test_normal_field_is_finite_at_its_ends() -> None:
    # A hundred million draws meet both ends of the 23-bit grid.
    for seed in range(100):
        assert normal_field(torch.tensor([seed]), (1000, 1000)).isfinite().all()


def test_fields_depend_on_seed_stream_and_position_alone() -> None:
    field = uniform_field(torch.tensor([4, 9, 4]), (3, 7))
    assert torch.equal(field[0], field[2])
    assert not torch.equal(field[0], field[1])
    assert torch.equal(uniform_field(torch.tensor([9]), (2, 7))[0], field[1, :2])
    assert not torch.equal(uniform_field(torch.tensor([9]), (3, 7), stream=1)[0], field[1])
    assert field[1, 0, :3].tolist() == pytest.approx(GOLDEN_FIELD, abs=1e-7)


# Parity with references.


def test_gaussian_is_scipys(crops: Tensor) -> None:
    sigma = torch.tensor([0.1, 0.5, 2.0, 5.0, 25.0], dtype=torch.float64)
    images = crops[:5, :, :50, :70].double()
    blurred = gaussian_filter(images, sigma)
    for image, mine, s in zip(images, blurred, sigma.tolist(), strict=True):
        reference = scipy.ndimage.gaussian_filter(image.numpy(), (0, s, s), mode="reflect", truncate=10)
        assert np.abs(mine.numpy() - reference).max() < 1e-9


def test_disk_has_the_disks_area_and_no_negative_weight() -> None:
    radii = torch.tensor([0.3, 1.0, 2.5, 8.0])
    for radius, kernel in zip(radii.tolist(), disk_kernel(radii), strict=True):
        assert kernel.min() >= 0
        assert float(kernel.sum()) == pytest.approx(1)
        assert torch.equal(kernel, kernel.flip(0))
        assert (kernel - kernel.T).abs().max() < 1e-3
        fine = 41
        offset = (np.arange(kernel.shape[0] * fine) + 0.5) / fine - kernel.shape[0] / 2
        inside = (offset[:, None] ** 2 + offset**2 < radius**2).reshape(len(kernel), fine, len(kernel), fine)
        area = inside.mean(axis=(1, 3))
        assert np.abs(kernel.numpy() - area / area.sum()).max() < 5e-3 / (radius**2 + 0.1)


def test_lines() -> None:
    horizontal = line_kernel(torch.tensor([5.0]), torch.tensor([0.0]))[0]
    assert horizontal[len(horizontal) // 2].nonzero().numel() == 5
    assert float(horizontal.sum()) == pytest.approx(1)
    identity = line_kernel(torch.tensor([1.0]), torch.tensor([0.7]))[0]
    assert float(identity[identity.shape[0] // 2, identity.shape[0] // 2]) == 1
    # Counter-clockwise: at 45 degrees the line rises to the right, so the upper right corner is lit.
    rising = shake_kernel(torch.tensor([9.0]), torch.tensor([math.pi / 4]))[0]
    middle = len(rising) // 2
    assert rising[middle - 2, middle + 2] > 0
    assert rising[middle + 2, middle + 2] == 0
    variance = (rising * (torch.arange(len(rising)) - middle).double().square()).sum() * 2
    assert float(variance) == pytest.approx(9**2 / 24, rel=0.2)


def test_motion_keeps_its_direction_over_the_levels(crops: Tensor) -> None:
    dot = torch.zeros(1, 3, 41, 41)
    dot[..., 20, 20] = 1
    spread = motion_blur(dot.expand(2, -1, -1, -1), torch.tensor([9.0, 21.0]), torch.tensor([5, 5]))[:, 0]
    y, x = (torch.arange(41.0) - 20)[:, None], torch.arange(41.0) - 20
    angles = [0.5 * math.atan2(2 * float((s * x * y).sum()), float((s * (x**2 - y**2)).sum())) for s in spread]
    assert angles[0] == pytest.approx(angles[1], abs=0.05)


def test_lab_is_scikit_images(crops: Tensor) -> None:
    lab = rgb_to_lab(crops[:3].double())
    reference = skimage.color.rgb2lab(crops[:3].double().numpy(), channel_axis=1)
    assert np.abs(lab.numpy() - reference).max() < 0.01
    assert (lab_to_rgb(lab) - crops[:3]).abs().max() < 1e-3
    assert (linear_to_srgb(srgb_to_linear(crops[:3])) - crops[:3]).abs().max() < 1e-5


def test_saturation_is_hsv(crops: Tensor) -> None:
    hsv = skimage.color.rgb2hsv(crops[0].double().numpy(), channel_axis=0)
    hsv[1] *= 0.4
    reference = skimage.color.hsv2rgb(hsv, channel_axis=0)
    mine = DISTORTIONS["saturation_hsv"].apply(crops[:1].double(), torch.tensor([0.4]), torch.tensor([0]))[0]
    assert np.abs(mine.numpy() - reference).max() < 1e-6


def pillow_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))


def test_jpeg_tables_are_libjpegs() -> None:
    for quality in (1, 4, 24, 50, 75, 100):
        with io.BytesIO() as file:
            Image.new("RGB", (16, 16)).save(file, "JPEG", quality=quality)
            written = Image.open(file).quantization
        tables = quantization_tables(torch.tensor([float(quality)]))
        for number, table in enumerate(tables):
            assert sorted(written[number]) == sorted(table.flatten().int().tolist())


@pytest.mark.parametrize("size", [(224, 224), (97, 131), (64, 65), (9, 7)], ids=str)
def test_jpeg_is_pillows(size: tuple[int, int], photographs: list[np.ndarray]) -> None:
    qualities = [95, 75, 50, 43, 36, 24, 7, 4]
    for photo in photographs:
        pixels = np.ascontiguousarray(photo[80 : 80 + size[0], 120 : 120 + size[1]])
        batch = to_tensor(pixels).expand(len(qualities), -1, -1, -1)
        decoded = jpeg(batch, torch.tensor(qualities), torch.zeros(len(qualities), dtype=torch.int64))
        for quality, mine in zip(qualities, (decoded * 255).round().permute(0, 2, 3, 1).numpy(), strict=True):
            reference = pillow_jpeg(pixels, quality).astype(float)
            assert np.abs(mine - reference).mean() <= 0.7
            error, expected = (float(np.sqrt(((image - pixels) ** 2).mean())) for image in (mine, reference))
            # In a handful of pixels the whole error is a few roundings.
            assert error == pytest.approx(expected, rel=0.05, abs=0.3 if min(size) < 64 else 0)


def test_jpeg_rounds_its_input_and_output(crops: Tensor) -> None:
    quality, seed = torch.tensor([50.0]), torch.tensor([0])
    decoded = jpeg(crops[:1], quality, seed)
    assert torch.equal((decoded * 255).round() / 255, decoded)
    assert torch.equal(jpeg(crops[:1] + 0.3 / 255, quality, seed), decoded)


def test_noise_has_its_variance() -> None:
    grey = torch.full((1, 3, 256, 256), 0.5)
    seed = torch.tensor([3])
    for name, strength, variance in (
        ("white_noise", 0.003, 0.003),
        ("multiplicative_noise", 0.01, 0.0025),
        ("shot_noise", 0.01, 0.005),
        ("blotchy_noise", 0.03, 0.0009),
    ):
        noisy = DISTORTIONS[name].apply(grey, torch.tensor([strength]), seed)
        assert float((noisy - grey).var()) == pytest.approx(variance, rel=0.05), name
    peppered = DISTORTIONS["impulse_noise"].apply(grey, torch.tensor([0.02]), seed)
    assert float((peppered == 1).float().mean()) == pytest.approx(0.01, rel=0.1)
    assert float((peppered == 0).float().mean()) == pytest.approx(0.01, rel=0.1)


def test_contrast_curve_meets_its_points() -> None:
    amount = 0.3
    values = torch.tensor([0.0, 0.3, 0.5, 0.7, 1.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    bent = DISTORTIONS["contrast_up"].apply(values, torch.tensor([amount]), torch.tensor([0]))[0, 0, 0]
    expected = torch.tensor([0, 0.25 - amount / 4, 0.5, 0.75 + amount / 4, 1])
    assert (bent - expected).abs().max() < 1e-6
    unchanged = DISTORTIONS["contrast_up"].apply(values, torch.tensor([-0.2]), torch.tensor([0]))
    assert (unchanged - values).abs().max() < 1e-6


def test_quantization_keeps_that_many_values(crops: Tensor) -> None:
    for count in (32, 8, 2):
        flat = DISTORTIONS["quantization"].apply(crops[:1], torch.tensor([count]), torch.tensor([0]))[0]
        assert all(len(channel.unique()) <= count for channel in flat)
        assert (flat.mean(dim=(1, 2)) - crops[0].mean(dim=(1, 2))).abs().max() < 1e-4


def test_pixelate_averages_squares(crops: Tensor) -> None:
    coarse = DISTORTIONS["pixelate"].apply(crops[:1], torch.tensor([8]), torch.tensor([0]))
    means = torch.nn.functional.avg_pool2d(crops[:1], 8)
    assert (coarse - means.repeat_interleave(8, 2).repeat_interleave(8, 3)).abs().max() < 1e-5


def test_milder_blocks_are_a_part_of_the_harder_ones(crops: Tensor) -> None:
    for name in ("color_block", "non_eccentricity_patch"):
        levels = ladder(DISTORTIONS[name], crops[0])
        changed = (levels != crops[0]).any(dim=1)
        for milder, harder, before, after in zip(changed, changed[1:], levels, levels[1:], strict=False):
            assert (harder | ~milder).all()
            assert torch.equal(after[:, milder], before[:, milder])


@pytest.mark.parametrize("ratio", [16, 32, 45, 120, 170])
def test_jpeg2000_errs_as_much_as_openjpeg(ratio: int, images: Tensor) -> None:
    seeds = torch.zeros(len(images), dtype=torch.int64)
    mine = errors(jpeg2000(images, torch.full((len(images),), float(ratio)), seeds), images)
    for image, error in zip(images, mine.tolist(), strict=True):
        assert error == pytest.approx(float(errors(openjpeg(image, ratio), image)), rel=0.12)


def openjpeg(image: Tensor, ratio: float) -> Tensor:
    """A picture (3, H, W) in [0, 1] through OpenJPEG's irreversible coder at a compression ratio."""
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(
            file, "JPEG2000", irreversible=True, mct=1, quality_mode="rates", quality_layers=[ratio]
        )
        return to_tensor(np.asarray(Image.open(file)))


@pytest.mark.slow
def test_codecs_on_pristine_photographs(shared_dir: Path) -> None:
    rng = np.random.default_rng(0)
    worst_jpeg, jpeg2000_ratios = 0.0, []
    for crop in pristine_crops(shared_dir, rng):
        pixels = (crop * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        for quality in (4, 7, 24, 43, 69, 95):
            mine = jpeg(crop[None], torch.tensor([float(quality)]), torch.tensor([0]))[0]
            theirs = to_tensor(pillow_jpeg(pixels, quality))
            assert (mine - theirs).abs().mean() <= 2 / 255
            worst_jpeg = max(worst_jpeg, abs(float(errors(mine, crop) / errors(theirs, crop)) - 1))
        for ratio in (16.0, 45.0, 170.0):
            mine = jpeg2000(crop[None], torch.tensor([ratio]), torch.tensor([0]))[0]
            jpeg2000_ratios.append(float(errors(mine, crop) / errors(openjpeg(crop, ratio), crop)))
    assert worst_jpeg < 0.05
    low, middle, high = np.percentile(jpeg2000_ratios, [5, 50, 95])
    assert 0.9 < low < middle < high < 1.25
    assert middle == pytest.approx(1, abs=0.05)


def pristine_crops(shared_dir: Path, rng: np.random.Generator) -> Iterator[Tensor]:
    """One crop of 160 x 160 at a random place of every pristine photograph."""
    for path in sorted((shared_dir / "photos" / "pristine").glob("*.jpg")):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        y, x = (rng.integers(side - 160 + 1) for side in pixels.shape[:2])
        yield to_tensor(pixels[y : y + 160, x : x + 160])


def test_jpeg2000_is_nearly_lossless_where_there_is_room(crops: Tensor) -> None:
    near = jpeg2000(crops[:1], torch.tensor([1.5]), torch.tensor([0]))
    assert torch.equal((near * 255).round() / 255, near)
    assert float(errors(near, crops[0])) < 0.5 / 255


def test_wavelet_goes_there_and_back_and_keeps_energy() -> None:
    planes = torch.randn(2, 3, 37, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bands = wavelet_transform(planes)
    assert (wavelet_transform(bands, inverse=True) - planes).abs().max() < 1e-12
    assert float(bands.square().sum() / planes.square().sum()) == pytest.approx(1, abs=0.1)
    flat = wavelet_transform(torch.ones(1, 1, 64, 64, dtype=torch.float64))
    assert float(flat[..., 2:, :].abs().max()) < 1e-9
    assert flat[..., :2, :2].tolist() == [[[[pytest.approx(32)] * 2] * 2]]


# Pictures of one pixel to a few: no kind may fail on them.


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("size", [(1, 1), (3, 20)], ids=str)
def test_tiny_pictures(kind: Distortion, size: tuple[int, int]) -> None:
    picture = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    degraded = ladder(kind, picture)
    assert degraded.shape == (5, 3, *size)
    assert degraded.isfinite().all()
    assert 0 <= degraded.min() <= degraded.max() <= 1
