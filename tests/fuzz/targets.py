"""What reads files from elsewhere, and what it must keep to: declared errors, a time, an amount of memory."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qualiclip_plugin.utils.errors import QualiCLIPError
from qualiclip_plugin.utils.images import read_image
from tests.fuzz import dataset_files, result_files, weight_files
from tests.support import image_seeds

CORPUS = Path(__file__).parents[1] / "corpus"
MAX_PIXELS = 2**20


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        read: Reads bytes as a file; gets an empty folder to work in. Anything but ``QualiCLIPError`` is a crash.
        seeds: Valid files by name.
        document: A valid JSON or YAML document, where changing values finds more than changing bytes.
        written: Turns such a document into bytes.
        seconds: Most computing time for one file.
        megabytes: Most memory that reading may add to what the process has.
    """

    read: Callable[[bytes, Path], None]
    seeds: Callable[[], dict[str, bytes]]
    document: Callable[[], Any] | None = None
    written: Callable[[Any], bytes] = lambda document: json.dumps(document).encode()
    seconds: float = 2.0
    megabytes: int = 200


def read_declared(target: Target, data: bytes, folder: Path) -> QualiCLIPError | None:
    """Read one file; a declared error is returned, anything else is raised."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's and torch's own remarks on damaged files
            target.read(data, folder)
    except QualiCLIPError as error:
        return error
    return None


def _image(data: bytes, folder: Path) -> None:
    pixels = read_image(data, max_pixels=MAX_PIXELS)
    if not 0 < pixels[0].numel() <= MAX_PIXELS:
        raise AssertionError(f"an image of shape {tuple(pixels.shape)} passed the limit")


def _result(kind: str, *, document: bool = False) -> Target:
    seeds = result_files.result_seeds(kind)
    return Target(result_files.read_result(kind), seeds, (lambda: json.loads(seeds()[kind])) if document else None)


TARGETS: dict[str, Target] = {
    "images": Target(_image, image_seeds.seeds),
    "metadata": Target(
        dataset_files.read_metadata,
        dataset_files.metadata_seeds,
        dataset_files.metadata,
        dataset_files.metadata_document,
    ),
    "specs": Target(
        dataset_files.read_specification,
        dataset_files.specification_seeds,
        dataset_files.specification,
    ),
    "archives": Target(
        dataset_files.unpack_archive,
        dataset_files.archive_seeds,
    ),
    "manifests": Target(
        dataset_files.read_manifest, dataset_files.manifest_seeds, lambda: json.loads(dataset_files.MANIFEST_SEED)
    ),
    "cells": _result("cell", document=True),
    "parts": _result("part"),
    "labels": _result("labels"),
    "identities": _result("identity", document=True),
    "baselines": Target(
        result_files.read_baseline,
        result_files.baseline_seeds,
        lambda: json.loads(result_files.baseline_seeds()["baseline"]),
    ),
    "weights": Target(
        weight_files.read_model,
        weight_files.weights_seeds,
        weight_files.header,
        weight_files.weights_document,
    ),
    "runs": Target(
        weight_files.read_run_folder,
        weight_files.run_seeds,
        lambda: json.loads(weight_files.run_seeds()["record"]),
    ),
}
"""Every reader of files from elsewhere."""
