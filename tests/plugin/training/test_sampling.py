"""Plans replay, ladders keep to their photographs, crop pairs overlap."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qualiclip_plugin.distortions import DISTORTIONS, GROUPS, get_distortion, get_table
from qualiclip_plugin.training.sampling import DegradationPlan, degrade, sample_crop_pairs, sample_plan
from qualiclip_plugin.utils.errors import ConfigError, ImageError

# Small pictures: a second thread waits more than it works.
pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def crop_pairs(images: Tensor) -> Tensor:
    """Two overlapping crops of four photographs, (4, 2, 3, 64, 64)."""
    return torch.stack((images[:, :, :64, :64], images[:, :, 20:84, 10:74]), dim=1)


# Plans.


def test_same_generator_same_plan() -> None:
    plan = sample_plan(20, generator(1), compositions=(1, 3))
    assert plan == sample_plan(20, generator(1), compositions=(1, 3))
    assert plan != sample_plan(20, generator(2), compositions=(1, 3))


def test_plan_describes_its_ladders() -> None:
    plan = sample_plan(50, generator(), compositions=2)
    assert len(plan) == 50
    assert plan.steps == 5
    for kinds, levels, strengths, seeds in zip(plan.kinds, plan.levels, plan.strengths, plan.seeds, strict=True):
        assert len(kinds) == 2
        for name, ladder, values, draws in zip(kinds, levels, strengths, seeds, strict=True):
            assert ladder == (1, 2, 3, 4, 5)
            assert values == pytest.approx(DISTORTIONS[name].strengths)
            assert len(set(draws)) == 1


@pytest.mark.parametrize("count", range(1, 8))
def test_compositions_take_distinct_groups(count: int) -> None:
    plan = sample_plan(30, generator(), compositions=count)
    for kinds in plan.kinds:
        assert len({DISTORTIONS[name].group for name in kinds}) == count
    if count > 1:
        # Random order: the group that comes first is not the same everywhere.
        assert len({DISTORTIONS[kinds[0]].group for kinds in plan.kinds}) > 3


def test_number_of_kinds_can_be_drawn() -> None:
    counts = Counter(len(kinds) for kinds in sample_plan(400, generator(), compositions=(1, 2)).kinds)
    assert set(counts) == {1, 2}
    assert abs(counts[1] - 200) < 50


def test_groups_types_and_sides_are_equally_likely() -> None:
    drawn = Counter(kinds[0] for kinds in sample_plan(7000, generator(), table="paper").kinds)
    groups: Counter[str] = Counter()
    types: Counter[str] = Counter()
    for name, count in drawn.items():
        groups[DISTORTIONS[name].group] += count
        types[DISTORTIONS[name].type] += count
    assert all(abs(groups[group] - 1000) < 150 for group in GROUPS)
    assert abs(types["mean_shift"] - 1000 / 3) < 100
    assert abs(drawn["mean_shift_up"] - 1000 / 6) < 60
    by_name = Counter(kinds[0] for kinds in sample_plan(7000, generator(), table="paper", by_group=False).kinds)
    expected = 7000 / len(get_table("paper"))
    assert all(abs(by_name[name] - expected) < 0.4 * expected for name in get_table("paper"))


def test_choice_of_kinds_and_levels() -> None:
    plan = sample_plan(20, generator(), distortions=("jpeg", "haze"), levels=(2, 5))
    assert {kinds[0] for kinds in plan.kinds} == {"jpeg", "haze"}
    assert {ladder[0] for ladder in plan.levels} == {(2, 5)}
    assert sample_plan(3, generator(), levels=3).steps == 3


def test_fresh_noise_of_the_original() -> None:
    plan = sample_plan(4, generator(), table="arniqa", share_noise=False)
    assert all(len(set(seeds[0])) == 5 for seeds in plan.seeds)


def test_plans_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"unknown distortion 'jpge'.*jpeg"):
        sample_plan(2, generator(), distortions=("jpge",))
    with pytest.raises(ConfigError, match=r"8 distortions per photograph: must be 1 to 7"):
        sample_plan(2, generator(), compositions=8)
    with pytest.raises(ConfigError, match=r"must be 1 to 1"):
        sample_plan(2, generator(), distortions=("jpeg", "jpeg2000"), compositions=2)
    with pytest.raises(ConfigError, match=r"levels 6: \w+ has levels 1 to 5"):
        sample_plan(2, generator(), levels=6)
    with pytest.raises(ConfigError, match=r"at least one level"):
        sample_plan(2, generator(), levels=0)
    with pytest.raises(ConfigError, match=r"at least one name"):
        sample_plan(2, generator(), distortions=())
    with pytest.raises(ConfigError, match=r"named twice: jpeg"):
        sample_plan(2, generator(), distortions=("jpeg", "haze", "jpeg"))


def test_a_plan_replays_to_the_same_pixels(crop_pairs: Tensor) -> None:
    plan = sample_plan(4, generator(5), compositions=(1, 3))
    again = DegradationPlan(**vars(plan))
    assert torch.equal(degrade(crop_pairs, again), degrade(crop_pairs, plan))


def test_a_plan_that_does_not_fit_its_kinds_is_refused() -> None:
    plan = sample_plan(2, generator())
    with pytest.raises(ConfigError, match="seeds do not match the kinds"):
        replace(plan, seeds=(((1, 2),),))
    with pytest.raises(ConfigError, match="unknown distortion 'fog'"):
        replace(plan, kinds=(("fog",), ("haze",)))


# Degrading.


def test_shapes_dtypes_and_the_pristine_level(crop_pairs: Tensor) -> None:
    plan = sample_plan(4, generator(), levels=3)
    before = crop_pairs.clone()
    assert degrade(crop_pairs, plan).shape == (4, 2, 3, 3, 64, 64)
    with_pristine = degrade(crop_pairs, plan, include_pristine=True)
    assert with_pristine.shape == (4, 2, 4, 3, 64, 64)
    assert torch.equal(with_pristine[:, :, 0], crop_pairs)
    assert torch.equal(with_pristine[:, :, 1:], degrade(crop_pairs, plan))
    assert degrade(crop_pairs[:, 0], plan, include_pristine=True).shape == (4, 4, 3, 64, 64)
    assert torch.equal(crop_pairs, before)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert degrade(crop_pairs.to(dtype), plan).dtype == dtype


@pytest.mark.parametrize("name", DISTORTIONS)
def test_degrade_applies_the_kind_with_its_strengths(name: str, crop_pairs: Tensor) -> None:
    plan = sample_plan(2, generator(3), distortions=(name,))
    ladders = degrade(crop_pairs[:2], plan)
    kind = get_distortion(name)
    for photo in range(2):
        for crop in range(2):
            expected = kind.apply(
                crop_pairs[photo, crop].expand(5, -1, -1, -1),
                torch.tensor(kind.strengths),
                torch.tensor(plan.seeds[photo][0]),
            )
            assert (ladders[photo, crop] - expected).abs().max() < 1e-5


def test_photographs_do_not_depend_on_their_neighbours(crop_pairs: Tensor) -> None:
    plan = sample_plan(4, generator(4), compositions=(1, 4))
    together = degrade(crop_pairs, plan)
    rows = [2, 0]
    assert (degrade(crop_pairs[rows], plan.select(rows)) - together[rows]).abs().max() < 1e-5


def test_both_crops_share_the_draw(images: Tensor) -> None:
    same = images[:, None, :, :48, :48].expand(-1, 2, -1, -1, -1)
    for seed in range(5):
        ladders = degrade(same, sample_plan(4, generator(seed)))
        assert (ladders[:, 0] - ladders[:, 1]).abs().max() < 1e-5


def test_kinds_of_a_composition_follow_one_another(crop_pairs: Tensor) -> None:
    plan = sample_plan(1, generator(8), distortions=("white_noise", "jpeg"), compositions=2)
    first, second = (get_distortion(name) for name in plan.kinds[0])
    image = crop_pairs[0, 0].expand(5, -1, -1, -1)
    seeds = [torch.tensor(plan.seeds[0][stage]) for stage in range(2)]
    once = first.apply(image, torch.tensor(first.strengths), seeds[0])
    twice = second.apply(once, torch.tensor(second.strengths), seeds[1])
    assert (degrade(crop_pairs[:1, :1], plan)[0, 0] - twice).abs().max() < 1e-5


def test_autocast_does_not_reach_the_degradations(crop_pairs: Tensor) -> None:
    plan = sample_plan(4, generator(), distortions=("jpeg", "gaussian_blur"))
    expected = degrade(crop_pairs, plan)
    precision = torch.get_float32_matmul_precision()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(degrade(crop_pairs, plan), expected)
    assert torch.get_float32_matmul_precision() == precision


TF32_SETTINGS = {
    "old": "torch.backends.cuda.matmul.allow_tf32 = True",
    "medium": "torch.set_float32_matmul_precision('medium')",
    "new": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
}


@pytest.mark.parametrize("setting", TF32_SETTINGS)
def test_tf32_settings_are_given_back(setting: str) -> None:
    if setting == "new" and not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has no per-backend precision")
    # A process of its own: once used, the two APIs of torch do not mix.
    program = f"""
import torch
from qualiclip_plugin.training.sampling import degrade, sample_plan
def state():
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return torch.backends.cuda.matmul.fp32_precision
images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
plan = sample_plan(2, torch.Generator().manual_seed(0), distortions=["gaussian_blur", "jpeg"])
expected = degrade(images, plan)
{TF32_SETTINGS[setting]}
before = state()
assert before != "highest"
assert torch.equal(degrade(images, plan), expected)
assert state() == before
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_images_that_do_not_fit(images: Tensor) -> None:
    plan = sample_plan(4, generator())
    with pytest.raises(ConfigError, match="the plan describes 4 photographs, got 3"):
        degrade(images[:3], plan)
    with pytest.raises(ConfigError, match="floating-point"):
        degrade((images * 255).to(torch.uint8), plan)
    with pytest.raises(ConfigError, match="expects floating-point images"):
        degrade(images[0], plan)


# Crop pairs.


def coordinates(height: int, width: int) -> Tensor:
    """A picture whose pixels say where they are, (3, H, W)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((y, x, torch.zeros_like(y))).float()


@pytest.mark.parametrize("min_overlap", [0.0, 0.25, 0.8, 1.0])
def test_pairs_overlap_and_reach_everywhere(min_overlap: float) -> None:
    photo, draws, corners = coordinates(90, 140), generator(), []
    for _ in range(400):
        pair = sample_crop_pairs(photo, 48, draws, min_overlap=min_overlap)
        assert pair.shape == (2, 3, 48, 48)
        tops, lefts = pair[:, 0, 0, 0], pair[:, 1, 0, 0]
        assert torch.equal(pair[0, 0, -1, 0] - tops[0], torch.tensor(47.0))
        overlap = (1 - (tops[0] - tops[1]).abs() / 48).clamp_min(0) * (
            1 - (lefts[0] - lefts[1]).abs() / 48
        ).clamp_min(0)
        assert float(overlap) >= min_overlap - 1e-6
        corners += list(zip(tops.tolist(), lefts.tolist(), strict=True))
    tops_seen, lefts_seen = {int(y) for y, _ in corners}, {int(x) for _, x in corners}
    assert {0, 42} <= tops_seen <= set(range(43))
    assert {min(lefts_seen), max(lefts_seen)} == {0, 92}


def test_pairs_that_need_not_overlap_may_only_touch() -> None:
    photo, draws = coordinates(40, 50), generator()
    pairs = torch.stack([sample_crop_pairs(photo, 16, draws, min_overlap=0) for _ in range(1000)])
    distance = (pairs[:, 0, :2, 0, 0] - pairs[:, 1, :2, 0, 0]).abs()
    assert distance.amax(0).tolist() == [16, 16]
    assert (distance == 16).all(1).any()


def test_scale_widens_the_view() -> None:
    ramp = coordinates(200, 300) / 300
    pair = sample_crop_pairs(ramp, 50, generator(), scale=(0.5, 0.5))
    assert pair.shape == (2, 3, 50, 50)
    assert (pair[:, 0, 11:40] - pair[:, 0, 10:39] - 2 / 300).abs().max() < 1e-4


def test_scaled_crops_keep_dtype_and_are_antialiased() -> None:
    checks = ((torch.arange(200)[:, None] + torch.arange(200)) % 2).expand(3, 200, 200)
    bytes_pair = sample_crop_pairs((checks * 255).to(torch.uint8), 50, generator(), scale=(0.25, 0.25))
    assert bytes_pair.dtype == torch.uint8
    assert (bytes_pair[..., 2:-2, 2:-2].float() - 127.5).abs().max() < 3
    float_pair = sample_crop_pairs(checks.float(), 50, generator(), scale=(0.3, 0.9))
    assert float_pair.dtype == torch.float32
    assert 0 <= float_pair.min() <= float_pair.max() <= 1


def test_same_generator_same_crops(images: Tensor) -> None:
    first = sample_crop_pairs(images[0], 64, generator(3), scale=(0.5, 1))
    assert torch.equal(first, sample_crop_pairs(images[0], 64, generator(3), scale=(0.5, 1)))
    assert not torch.equal(first, sample_crop_pairs(images[0], 64, generator(4), scale=(0.5, 1)))


def test_small_photographs(images: Tensor) -> None:
    assert sample_crop_pairs(images[0, :, :64, :64], 64, generator(), scale=(0.2, 1)).shape == (2, 3, 64, 64)
    with pytest.raises(ImageError, match=r"a photograph of 100 x 63 pixels is too small for crops of 64 at scale 1"):
        sample_crop_pairs(images[0, :, :63, :100], 64, generator())
    assert sample_crop_pairs(images[0, :, :63, :100], 64, generator(), scale=(1, 1.5)).shape == (2, 3, 64, 64)
    with pytest.raises(ImageError, match=r"\(3, H, W\)"):
        sample_crop_pairs(images[0, :1], 64, generator())
    with pytest.raises(ConfigError, match="min_overlap"):
        sample_crop_pairs(images[0], 64, generator(), min_overlap=1.5)
    with pytest.raises(ConfigError, match="scale"):
        sample_crop_pairs(images[0], 64, generator(), scale=(1, 0.5))
