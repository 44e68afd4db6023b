"""Pictures of a report: as the scorers read them, encoded again, so that no metadata of the file leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness.data.open import ImageSet, open_dataset, open_datasets
from harness.data.rows import Stream, image_bytes
from harness.data.spec import DatasetSpec
from qualiclip_plugin.gallery.thumbnails import DrawMap, jpeg
from qualiclip_plugin.utils.atomic import inside
from qualiclip_plugin.utils.errors import ImageError, QualiCLIPError
from qualiclip_plugin.utils.images import read_image
from qualiclip_plugin.utils.process_settings import usable_cores

SIZES = {"small": (224, 82), "large": (1024, 95)}
"""Longest side in pixels and JPEG quality, for hovering and for looking closely."""


class Gallery:
    """Writes each picture that a page asks for once.

    Args:
        sources: Opened datasets by name; pictures of others are not there.
        draw_map: From pixels to a picture of their quality map, for every large picture; ``None``: no maps.
    """

    def __init__(self, folder: Path, sources: Mapping[str, ImageSet], draw_map: DrawMap | None = None) -> None:
        self.folder = folder
        self.draw_map = draw_map
        self._rows = {
            (name, image_hash): (images, index)
            for name, images in sources.items()
            if not isinstance(images.rows, Stream)
            for index, image_hash in enumerate(images.table["image_hash"])
        }

    def address(self, dataset: str, image_hash: str, size: str) -> str:
        """Relative address of a picture, written if need be; empty if it cannot be obtained."""
        if (dataset, image_hash) not in self._rows:
            return ""
        address = f"pictures/{size}/{image_hash[:20]}.jpg"
        target = inside(self.folder, address)
        if not target.exists() and not self._write(target, *self._rows[dataset, image_hash], size):
            return ""
        return address

    def addresses(self, dataset: str, image_hashes: Sequence[str], size: str) -> list[str]:
        """:meth:`address` of many pictures, which are written in threads."""
        unique = list(dict.fromkeys(image_hashes))
        with ThreadPoolExecutor(usable_cores(), thread_name_prefix="picture") as pool:
            found = dict(zip(unique, pool.map(lambda each: self.address(dataset, each, size), unique), strict=True))
        return [found[image_hash] for image_hash in image_hashes]

    def _write(self, target: Path, images: ImageSet, index: int, size: str) -> bool:
        try:
            rows: Any = images.rows
            pixels = read_image(image_bytes(rows[index]["image"]), exif=images.spec.exif, icc=images.spec.icc)
        except (QualiCLIPError, OSError):
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(jpeg(pixels.permute(1, 2, 0).numpy(), *SIZES[size]))
        if self.draw_map is not None and size == "large":
            place = inside(self.folder, _map_address(target.name))
            place.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(ImageError):  # an image that is too small for a score has no map either
                place.write_bytes(jpeg(self.draw_map(pixels), *SIZES["large"]))
        return True

    def map_of(self, address: str) -> str:
        """Relative address of the map of a large picture; empty if there is none."""
        mapped = _map_address(address.rpartition("/")[2])
        return mapped if address.startswith("pictures/large/") and (self.folder / mapped).exists() else ""


def _map_address(name: str) -> str:
    return f"pictures/maps/{name}"


def open_sources(
    datasets: Iterable[str], specs: Mapping[str, DatasetSpec], wanted: Iterable[str]
) -> tuple[dict[str, ImageSet], dict[str, str]]:
    """Open the datasets that pictures can be taken from.

    Only what the caller names and what is generated here is opened: a report never starts a download by itself.

    Args:
        datasets: As for ``iqa-harness run``: names, folders or ``NAME=FOLDER``.

    Returns:
        Opened datasets by name, and why the other wanted ones have no pictures.

    Raises:
        QualiCLIPError: A dataset that was named cannot be opened, or two have the same name.
    """
    sources = {images.spec.name: images for images in open_datasets(datasets, specs, allow_partial=True)}
    lacking = {}
    for name in wanted:
        if name in sources:
            if isinstance(sources[name].rows, Stream):
                lacking[name] = "its images are read as a stream and not kept"
            continue
        if name in specs and specs[name].generated:
            try:
                sources[name] = open_dataset(name, specs, allow_partial=True)
            except QualiCLIPError as error:
                lacking[name] = str(error)
        else:
            lacking[name] = f"pictures are shown when the report is made with --dataset {name}=FOLDER"
    return sources, lacking
