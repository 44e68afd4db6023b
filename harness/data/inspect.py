"""``iqa-harness data check``: what is in a dataset before anything is scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.data.decode import Decoded, decoded, in_background
from harness.data.open import ImageSet
from qualiclip_plugin.utils.decode_ahead import AHEAD
from qualiclip_plugin.utils.shown import printable

if TYPE_CHECKING:
    import pandas as pd

NEAR = 4
"""Bits of 64 by which the difference hashes of two near-duplicates may differ."""

_SIDE = 8
_BLOCK = 500
_BITS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        declared: Number that the specification declares; 0 if it does not.
        duplicates: Groups of file names with identical content.
        unreadable: File name to the reason.
        sizes: (height, width) to the number of images.
        near: Near-duplicates between splits: two file names and the number of differing bits.
        histogram: Counts and edges of the opinions; none if there are none.
        unlisted: Images in the folder that no row of its metadata names.
    """

    name: str
    images: int
    declared: int
    missing: tuple[str, ...]
    duplicates: list[list[str]]
    unreadable: dict[str, str]
    sizes: Counter[tuple[int, int]]
    splits: Counter[str]
    near: list[tuple[str, str, int]]
    histogram: tuple[NDArray[np.intp], NDArray[np.float64]] | None
    unlisted: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing needs a second look."""
        lacking = self.missing or self.unlisted or self.declared not in (0, self.images)
        return not (self.duplicates or self.unreadable or self.near or lacking)


def inspect(images: ImageSet, workers: int = 0) -> Inspection:
    """Decode every image of a dataset and look for what would spoil a comparison.

    Args:
        images: The opened dataset; an invalid label was refused on opening.
    """
    table = images.table
    names = table["file_name"].tolist()
    unreadable, sizes = dict[str, str](), Counter[tuple[int, int]]()
    hashes = np.zeros(len(table), dtype=np.uint64)
    readable = np.zeros(len(table), dtype=bool)
    for item in in_background(decoded(images, range(len(table)), workers, processes=workers > 0), AHEAD):
        if item.pixels is None:
            unreadable[names[item.index]] = item.error
            continue
        height, width = item.pixels.shape[1:]
        sizes[int(height), int(width)] += 1
        hashes[item.index], readable[item.index] = difference_hash(item), True
    return Inspection(
        name=images.spec.key,
        images=len(table),
        declared=images.spec.images,
        missing=images.missing,
        unlisted=images.unlisted,
        duplicates=[list(group) for _, group in table.groupby("image_hash")["file_name"] if len(group) > 1],
        unreadable=unreadable,
        sizes=sizes,
        splits=Counter(split for split in table["split"] if split),
        near=near_duplicates(names, hashes, readable, table["split"]),
        histogram=_histogram(table),
    )


def difference_hash(item: Decoded) -> int:
    """64 bits: whether each of 8 x 8 cells is brighter than its right neighbour (Krawetz's dHash)."""
    from PIL import Image

    if item.pixels is None:
        raise ValueError("an unreadable image has no hash")
    grey = Image.fromarray(item.pixels.transpose(1, 2, 0)).convert("L")
    cells = np.asarray(grey.resize((_SIDE + 1, _SIDE), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), "big")


def near_duplicates(
    names: Sequence[str], hashes: NDArray[np.uint64], readable: NDArray[np.bool_], splits: pd.Series
) -> list[tuple[str, str, int]]:
    """Pairs of images in different splits that look the same: a scorer trained on one has seen the other."""
    found = []
    members = {name: np.flatnonzero((splits == name).to_numpy() & readable) for name in sorted(set(splits) - {""})}
    for first, second in combinations(members.values(), 2):
        for part in _blocks(first):
            different = hashes[part][:, None] ^ hashes[second][None, :]
            bits = _BITS[different[..., None].view(np.uint8)].sum(axis=-1)
            for i, j in np.argwhere(bits <= NEAR):
                found.append((names[part[i]], names[second[j]], int(bits[i, j])))
    return found


def report(found: Inspection) -> str:
    """The inspection as text."""
    declared = f", {found.declared} declared" if found.declared else ""
    lines = [f"{printable(found.name)}: {found.images} images{declared}"]
    lines += _some("missing", found.missing)
    lines += _some("without a row in the metadata", found.unlisted)
    lines += _some("identical content", [", ".join(group) for group in found.duplicates])
    lines += _some("unreadable", [f"{name}: {reason}" for name, reason in found.unreadable.items()])
    lines += _some("near-duplicates between splits", [f"{a}, {b} ({bits} bits)" for a, b, bits in found.near])
    if found.splits:
        lines.append(
            "splits: " + ", ".join(f"{printable(name)} {count}" for name, count in sorted(found.splits.items()))
        )
    common = found.sizes.most_common(5)
    rest = len(found.sizes) - len(common)
    shown = ", ".join(f"{width}x{height} ({count})" for (height, width), count in common)
    lines.append(f"sizes: {shown}" + (f" and {rest} others" if rest > 0 else ""))
    if found.histogram is not None:
        lines += ["opinions:", *_bars(*found.histogram)]
    return "\n".join(lines)


def _histogram(table: pd.DataFrame) -> tuple[NDArray[np.intp], NDArray[np.float64]] | None:
    opinions = table["opinion"].to_numpy(dtype=np.float64)
    return np.histogram(opinions, bins=10) if np.isfinite(opinions).all() else None


def _bars(counts: NDArray[np.intp], edges: NDArray[np.float64]) -> Iterator[str]:
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        yield f"  {low:9.3f} to {high:9.3f} {count:6d} {'#' * round(40 * count / max(1, counts.max()))}"


def _some(title: str, items: Sequence[str], most: int = 10) -> list[str]:
    if not items:
        return [f"{title}: none"]
    more = [f"  and {len(items) - most} more"] if len(items) > most else []
    return [f"{title}: {len(items)}", *(f"  {printable(item)}" for item in items[:most]), *more]


def _blocks(indices: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    for start in range(0, len(indices), _BLOCK):
        yield indices[start : start + _BLOCK]
