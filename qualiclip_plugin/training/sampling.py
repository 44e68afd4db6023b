"""Which degradations each photograph gets, and giving them: crop pairs, plans, degraded ladders."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qualiclip_plugin.distortions import Distortion, get_distortion, get_table
from qualiclip_plugin.models.precision import exact_products
from qualiclip_plugin.utils.errors import ConfigError, ImageError

_SEEDS = 1 << 62


@dataclass(frozen=True)
class DegradationPlan:
    """Everything random about the degradation of N photographs; plain data to log and replay.

    Photograph n goes through ``kinds[n]`` one after another. Ladder step l gives its d-th kind the level
    ``levels[n][d][l]``, the strength ``strengths[n][d][l]`` and the noise of seed ``seeds[n][d][l]``.

    Attributes:
        table: Name of the distortion table that the kinds belong to.
        kinds: Names per photograph, N times 1..7.
        levels: Levels, 1 = mildest; N times D times L.
        strengths: Physical strengths, as ``levels``.
        seeds: Seeds of the random fields, as ``levels``; equal over a ladder whose steps share the draw.
    """

    table: str
    kinds: tuple[tuple[str, ...], ...]
    levels: tuple[tuple[tuple[int, ...], ...], ...]
    strengths: tuple[tuple[tuple[float, ...], ...], ...]
    seeds: tuple[tuple[tuple[int, ...], ...], ...]

    def __post_init__(self) -> None:
        table = get_table(self.table)
        for kinds in self.kinds:
            for name in kinds:
                if name not in table:
                    get_distortion(name, self.table)
        for field in ("levels", "strengths", "seeds"):
            rows: Any = getattr(self, field)
            shape = [[len(ladder) for ladder in photo] for photo in rows]
            if shape != [[self.steps] * len(kinds) for kinds in self.kinds]:
                raise ConfigError(f"degradation plan: {field} do not match the kinds")

    def __len__(self) -> int:
        return len(self.kinds)

    @property
    def steps(self) -> int:
        """Number L of degraded versions of each crop."""
        return len(self.levels[0][0]) if self.levels and self.levels[0] else 0

    def select(self, rows: Sequence[int]) -> DegradationPlan:
        """The plan of some of the photographs, in the order given."""
        fields = ("kinds", "levels", "strengths", "seeds")
        return DegradationPlan(self.table, *(tuple(getattr(self, f)[row] for row in rows) for f in fields))


def sample_plan(
    n: int,
    generator: torch.Generator,
    *,
    distortions: Sequence[str] | None = None,
    compositions: int | tuple[int, int] = 1,
    levels: int | Sequence[int] = 5,
    table: str = "default",
    by_group: bool = True,
    share_noise: bool = True,
) -> DegradationPlan:
    """Draw the degradations of ``n`` photographs.

    Args:
        generator: CPU generator; the only source of randomness.
        distortions: Names to draw from; all of the table by default.
        compositions: Number D of kinds per photograph, 1..7, each of another group and in random order; a pair
            (low, high) draws the number uniformly.
        levels: The ladder: a number L means the levels 1..L, a sequence names them. All kinds of a photograph
            climb together.
        by_group: Draw a group first, then one of its types, then a side of it (ARNIQA's way: groups are equally
            likely). False: all names are equally likely.
        share_noise: All steps of a ladder share their random draw, so that only the strength moves. False draws
            again for each step, as ARNIQA does.

    Raises:
        ConfigError: Unknown table, kind or level, or more kinds per photograph than groups to draw from.
    """
    names = list(get_table(table)) if distortions is None else list(distortions)
    kinds = [get_distortion(name, table) for name in names]
    ladder = tuple(range(1, levels + 1)) if isinstance(levels, int) else tuple(levels)
    low, high = (compositions, compositions) if isinstance(compositions, int) else compositions
    groups = len({kind.group for kind in kinds})
    if not names:
        raise ConfigError("a degradation plan needs at least one name of a distortion")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"distortions named twice: {', '.join(twice)}")
    if not ladder:
        raise ConfigError("a degradation plan needs at least one level")
    shortest = min(kinds, key=lambda kind: len(kind.strengths))
    if not 1 <= min(ladder) <= max(ladder) <= len(shortest.strengths):
        raise ConfigError(f"levels {levels}: {shortest.name} has levels 1 to {len(shortest.strengths)}")
    if not 1 <= low <= high <= groups:
        raise ConfigError(f"{compositions} distortions per photograph: must be 1 to {groups}, one from each group")

    chosen = []
    for _ in range(n):
        count = low + _draw(high - low + 1, generator)
        chosen.append(_draw_kinds(kinds, count, by_group, generator))
    return DegradationPlan(
        table=table,
        kinds=tuple(tuple(kind.name for kind in photo) for photo in chosen),
        levels=tuple(tuple(ladder for _ in photo) for photo in chosen),
        strengths=tuple(
            tuple(tuple(float(kind.strength(level)) for level in ladder) for kind in photo) for photo in chosen
        ),
        seeds=tuple(tuple(_draw_seeds(len(ladder), share_noise, generator) for _ in photo) for photo in chosen),
    )


def _draw(high: int, generator: torch.Generator) -> int:
    return int(torch.randint(high, (), generator=generator))


def _draw_seeds(steps: int, share: bool, generator: torch.Generator) -> tuple[int, ...]:
    if share:
        return (_draw(_SEEDS, generator),) * steps
    return tuple(_draw(_SEEDS, generator) for _ in range(steps))


def _draw_kinds(
    kinds: Sequence[Distortion], count: int, by_group: bool, generator: torch.Generator
) -> list[Distortion]:
    """``count`` kinds of different groups in random order."""
    left, chosen = list(kinds), []
    for _ in range(count):
        pool = left
        if by_group:
            for key in ("group", "type"):
                values = sorted({getattr(kind, key) for kind in pool})
                value = values[_draw(len(values), generator)]
                pool = [kind for kind in pool if getattr(kind, key) == value]
        kind = pool[_draw(len(pool), generator)]
        chosen.append(kind)
        left = [other for other in left if other.group != kind.group]
    return chosen


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Keep a caller's autocast and TF32 settings away from the degradations: JPEG rounds, ladders are ordered."""
    with exact_products(), torch.autocast(device.type, enabled=False):
        yield


@torch.no_grad()
def degrade(images: Tensor, plan: DegradationPlan, *, include_pristine: bool = False) -> Tensor:
    """Give each photograph its ladder of degradations.

    All K crops of a photograph get the same kinds, strengths and random draw. Each kind runs once over all its
    crops and steps.

    Args:
        images: RGB in [0, 1], floating point, (N, K, 3, H, W) or (N, 3, H, W).
        plan: Of N photographs, L steps.
        include_pristine: Put the untouched image in front as level 0.

    Returns:
        In [0, 1], dtype and device of ``images``, (N, K, L, 3, H, W) or (N, L, 3, H, W); L + 1 with the pristine.

    Raises:
        ConfigError: The shape, dtype or number of the images does not fit.
    """
    if images.ndim not in (4, 5) or images.shape[-3] != 3 or not images.is_floating_point():
        raise ConfigError(
            f"degrade expects floating-point images (N, [K,] 3, H, W), got {tuple(images.shape)} {images.dtype}"
        )
    if len(images) != len(plan):
        raise ConfigError(f"the plan describes {len(plan)} photographs, got {len(images)}")
    crops = images if images.ndim == 5 else images[:, None]
    pristine = crops.float() if crops.dtype in (torch.float16, torch.bfloat16) else crops
    N, K = crops.shape[:2]
    first = int(include_pristine)
    result = pristine.new_empty(N, K, plan.steps + first, *crops.shape[2:])
    if include_pristine:
        result[:, :, 0] = pristine
    with _full_precision(images.device):
        for stage in range(max(map(len, plan.kinds), default=0)):
            for name, rows in _rows_by_kind(plan, stage).items():
                index = torch.tensor(rows).to(images.device, non_blocking=True)
                source = pristine[index][:, :, None] if stage == 0 else result[index][:, :, first:]
                ladder = source.expand(-1, -1, plan.steps, -1, -1, -1)
                strength, noise = (
                    torch.tensor([field[row][stage] for row in rows], dtype=dtype)[:, None]
                    .expand(-1, K, -1)
                    .flatten()
                    for field, dtype in ((plan.strengths, torch.float32), (plan.seeds, torch.int64))
                )
                done = get_distortion(name, plan.table).apply(ladder.flatten(0, 2), strength, noise)
                result[index, :, first:] = done.view(len(rows), K, plan.steps, *crops.shape[2:])
    result = result.to(images.dtype)
    return result if images.ndim == 5 else result[:, 0]


def _rows_by_kind(plan: DegradationPlan, stage: int) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, kinds in enumerate(plan.kinds):
        if stage < len(kinds):
            rows[kinds[stage]].append(row)
    return rows


def sample_crop_pairs(
    photo: Tensor,
    size: int,
    generator: torch.Generator,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    min_overlap: float = 0.25,
) -> Tensor:
    """Cut two overlapping squares out of a photograph, both at one random scale.

    Args:
        photo: RGB, uint8 or floating point in [0, 1], (3, H, W).
        size: Side of the crops in pixels.
        generator: CPU generator.
        scale: Range of the factor by which the photograph is resized (antialiased) before the cut; below 1 a crop
            shows more of the scene. Factors at which the crop does not fit are not drawn.
        min_overlap: Least share of a crop's area that both show, in [0, 1].

    Returns:
        Of the photograph's dtype, (2, 3, size, size).

    Raises:
        ImageError: The photograph is smaller than the crop at the largest scale, or no RGB image.
        ConfigError: The scale or the overlap is out of range.
    """
    if photo.ndim != 3 or photo.shape[0] != 3:
        raise ImageError(f"a photograph is (3, H, W), got {tuple(photo.shape)}")
    if not 0 < scale[0] <= scale[1]:
        raise ConfigError(f"scale must be a range of positive factors, got {scale}")
    if not 0 <= min_overlap <= 1:
        raise ConfigError(f"min_overlap must be in [0, 1], got {min_overlap}")
    H, W = photo.shape[1:]
    low, high = max(scale[0], size / min(H, W)), scale[1]
    if low > high:
        raise ImageError(f"a photograph of {W} x {H} pixels is too small for crops of {size} at scale {high:g}")
    draw = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    side = min(max(1, round(size / (low + draw[0] * (high - low)))), H, W)
    top, left = int(draw[1] * (H - side + 1)), int(draw[2] * (W - side + 1))
    # The overlap is (1 - |dy| / side) (1 - |dx| / side): what the rows leave bounds the columns' distance.
    other_top = _nearby(draw[3], top, int((1 - min_overlap) * side), H - side)
    rows = 1 - abs(other_top - top) / side
    # Rows that only touch are drawn where no overlap is asked for, which binds no column.
    reach = int((1 - min_overlap / rows) * side) if rows else side
    other_left = _nearby(draw[4], left, reach, W - side)
    corners = ((top, left), (other_top, other_left))
    crops = torch.stack([photo[:, y : y + side, x : x + side] for y, x in corners])
    if side == size:
        return crops
    resized = F.interpolate(crops, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized if photo.dtype == torch.uint8 else resized.clamp_(0, 1)


def _nearby(draw: float, start: int, reach: int, last: int) -> int:
    """A whole number within ``reach`` of ``start`` and in 0..last."""
    low, high = max(0, start - reach), min(last, start + reach)
    return low + int(draw * (high - low + 1))
