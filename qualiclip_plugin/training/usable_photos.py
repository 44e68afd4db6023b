"""Which photographs can be used; others cannot be decoded, or are smaller than a crop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Protocol

import torch
from torch import Tensor

from qualiclip_plugin.training.seeds import generator
from qualiclip_plugin.utils.errors import DatasetError, ImageError
from qualiclip_plugin.utils.images import read_image


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
    photos: PhotoSource, smallest: int, skipped: dict[str, str], pool: Executor, notice: Callable[[int], None]
) -> list[int]:
    """Decode every photograph once.

    Args:
        smallest: Least height and width.
        skipped: Receives those that cannot be used, by name, with the reason.
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
            skipped.setdefault(photos.name(index), why)
        notice(index + 1)
    return usable


def hold_out(
    photos: PhotoSource, indices: Sequence[int], count: int, seed: int, smallest: int, skipped: dict[str, str]
) -> tuple[list[int], dict[int, Tensor]]:
    """Part photographs into those that are trained on and ``count`` that are not, drawn by the seed.

    Args:
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
            skipped.setdefault(photos.name(index), str(error))
    if not order:
        raise DatasetError(
            f"{len(held)} usable photographs are too few: {count} are held out for validation (validation_photos) "
            "and at least one must remain"
        )
    return sorted(indices[i] for i in order), {index: held[index] for index in sorted(held)}
