"""Small datasets and cheap scorers for the tests of the harness."""

from __future__ import annotations

import csv
import io
import os
import signal
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from harness.scorers.kinds import Scorer


def picture(seed: int, size: tuple[int, int] = (40, 48)) -> np.ndarray:
    """A seeded picture of one grey level per seed with some texture, uint8 (H, W, 3)."""
    texture = np.random.default_rng(seed).integers(0, 20, (*size, 3))
    return (texture + 10 * (seed % 20)).astype(np.uint8)


def write_images(folder: Path, number: int, size: Callable[[int], tuple[int, int]] = lambda i: (40, 48)) -> list[str]:
    """Write pictures ``0.png`` ... and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        Image.fromarray(picture(index, size(index))).save(folder / f"{index}.png")
    return [f"{index}.png" for index in range(number)]


def write_metadata(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``metadata.csv`` with the keys of the first row as columns."""
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def opinion_folder(folder: Path, number: int = 8, **options: Any) -> Path:
    """A folder whose opinions rise with brightness, with one swap so that no correlation is 1."""
    names = write_images(folder, number, **options)
    opinions = [float(index) for index in range(number)]
    opinions[0], opinions[1] = opinions[1], opinions[0]
    write_metadata(folder, [{"file_name": n, "mos": o, "std": 1.0} for n, o in zip(names, opinions, strict=True)])
    return folder


def brightness(images: torch.Tensor) -> torch.Tensor:
    """Mean of each image; higher is better."""
    return images.mean(dim=(1, 2, 3))


brightness.lower_better = False  # type: ignore[attr-defined]


def undefined(images: torch.Tensor) -> torch.Tensor:
    """No number for any image."""
    return torch.full((len(images),), float("nan"))


undefined.lower_better = False  # type: ignore[attr-defined]


def slow_brightness(images: torch.Tensor) -> torch.Tensor:
    """Brightness that takes some time, logs every image that it scores, and kills its process where it is told to."""
    time.sleep(0.02)
    if log := os.environ.get("HARNESS_TEST_LOG"):
        with open(log, "a", encoding="utf-8") as file:
            file.write("x" * len(images))
            written = file.tell()
        if written >= int(os.environ.get("HARNESS_TEST_KILL_AT", sys.maxsize)):
            os.kill(os.getpid(), signal.SIGKILL)
    return brightness(images)


slow_brightness.lower_better = False  # type: ignore[attr-defined]


def fake_scorer(score: Callable[[torch.Tensor], Any] = brightness, name: str = "fake", **options: Any) -> Scorer:
    """A started scorer."""
    return Scorer(
        name=name,
        lower_better=options.pop("lower_better", False),
        score=score,
        identity={"metric": name, "version": options.pop("version", 1)},
        **options,
    )


def png(seed: int) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    Image.fromarray(picture(seed)).save(buffer, "png")
    return buffer.getvalue()


def tgz(files: Mapping[str, bytes], *extra: tarfile.TarInfo) -> bytes:
    """A compressed tar of files and of further entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info)
    return buffer.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip of files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()
