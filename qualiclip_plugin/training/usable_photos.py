"""Which photographs can be used, which are left out and why, and which one is at which place.

A photograph that cannot be used, because it cannot be decoded or is smaller than a crop, is named in the skip list
together with the reason, and another one takes its place. Which photograph stands at which place of which step
depends on the seed and the step only, so a run can be stopped, continued, or spread over processes without a change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from qualiclip_plugin.training.seeds import generator
from qualiclip_plugin.utils.errors import DatasetError, ImageError
from qualiclip_plugin.utils.images import read_image


@dataclass
class SkipList:
    """Photographs that were left out, by name, with the reason.

    Attributes:
        reasons: Name -> reason, in the order they were met.
    """

    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, reason: str) -> None:
        """Note a photograph; naming it again changes nothing."""
        self.reasons.setdefault(name, reason)

    def __len__(self) -> int:
        return len(self.reasons)


class PhotoSource(Protocol):
    """Photographs by index; a row's name is what the user would look for."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def read(self, index: int) -> Tensor: ...


def decode(image: dict[str, Any] | None) -> Tensor:
    """Decode the ``{"path", "bytes"}`` record of a Hugging Face image to RGB, uint8, (3, H, W).

    Raises:
        ImageError: It cannot be decoded.
    """
    if image is None or (image.get("bytes") is None and image.get("path") is None):
        raise ImageError("empty image")
    return read_image(image["bytes"] if image.get("bytes") is not None else image["path"])


def image_name(image: dict[str, Any] | None, index: int) -> str:
    """The image's path where there is one, else its row number."""
    path = image.get("path") if image else None
    return str(path) if path else f"row {index}"


def check_size(photo: Tensor, smallest: int) -> Tensor:
    """Return a photograph, (3, H, W), that is at least ``smallest`` pixels high and wide.

    Raises:
        ImageError: It is smaller.
    """
    height, width = photo.shape[-2:]
    if min(height, width) < smallest:
        raise ImageError(f"{width}x{height} pixels, smaller than the crop of {smallest}x{smallest}")
    return photo


def check_all(
    photos: PhotoSource, smallest: int, skipped: SkipList, pool: Executor, notice: Callable[[int], None]
) -> list[int]:
    """Decode every photograph once.

    Args:
        photos: The photographs.
        smallest: Least height and width.
        skipped: Receives those that cannot be used.
        pool: Threads that decode.
        notice: Called with the number done after each.

    Returns:
        Indices of the usable photographs, in order.
    """

    def reason(index: int) -> str | None:
        try:
            check_size(photos.read(index), smallest)
        except ImageError as error:
            return str(error)
        return None

    usable = []
    for index, why in enumerate(pool.map(reason, range(len(photos)))):
        if why is None:
            usable.append(index)
        else:
            skipped.add(photos.name(index), why)
        notice(index + 1)
    return usable


def hold_out(
    photos: PhotoSource, indices: Sequence[int], count: int, seed: int, smallest: int, skipped: SkipList
) -> tuple[list[int], dict[int, Tensor]]:
    """Part photographs into those that are trained on and ``count`` that are not, drawn by the seed.

    Args:
        photos: The photographs.
        indices: Those that may be used.
        count: Number to hold out.
        seed: Seed of the draw.
        smallest: Least height and width.
        skipped: Receives those that are drawn and cannot be used; another one is held out in their place.

    Returns:
        Indices that are trained on, and the photographs that are held out by index, both in order.

    Raises:
        DatasetError: Fewer than ``count`` + 1 usable photographs.
    """
    order = torch.randperm(len(indices), generator=generator(seed, "held out")).tolist()
    held: dict[int, Tensor] = {}
    while len(held) < count and order:
        index = indices[order.pop(0)]
        try:
            held[index] = check_size(photos.read(index), smallest)
        except ImageError as error:
            skipped.add(photos.name(index), str(error))
    if not order:
        raise DatasetError(
            f"{len(held)} usable photographs are too few: {count} are held out for validation (validation_photos) "
            "and at least one must remain"
        )
    return sorted(indices[i] for i in order), {index: held[index] for index in sorted(held)}


class PhotoOrder:
    """Which photograph is at which place: a new permutation in each epoch, a function of the seed alone.

    Args:
        indices: Photographs that are trained on.
        seed: Seed of the permutations.
    """

    def __init__(self, indices: Sequence[int], seed: int) -> None:
        self.indices = list(indices)
        self.seed = seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __getitem__(self, draw: int) -> int:
        """The photograph of the ``draw``-th place since the start of the run."""
        epoch, place = divmod(draw, len(self.indices))
        if epoch != self._epoch:
            shuffled = torch.randperm(len(self.indices), generator=generator(self.seed, "epoch", epoch))
            self._epoch, self._order = epoch, shuffled
        return self.indices[int(self._order[place])]


def read_or_replace(
    photos: PhotoSource, first: int, candidates: Sequence[int], smallest: int, skipped: SkipList, key: tuple[Any, ...]
) -> Tensor:
    """Read a photograph; where it cannot be used, name it and read another one.

    Args:
        photos: The photographs.
        first: Index of the one that is wanted.
        candidates: Indices that replacements are drawn from, by a generator of ``key``.
        smallest: Least height and width.
        skipped: Receives those that cannot be used.
        key: Parts of the replacement's seed.

    Raises:
        DatasetError: A hundred photographs in a row cannot be used.
    """
    draws = generator(*key, "replacement")
    index = first
    for _ in range(100):
        try:
            return check_size(photos.read(index), smallest)
        except ImageError as error:
            skipped.add(photos.name(index), str(error))
        index = candidates[int(torch.randint(len(candidates), (), generator=draws))]
    raise DatasetError("100 photographs in a row cannot be used; see skipped.csv")
