"""Milliseconds an image of CLIP's RN50 on a GPU, in a minute: a plain loop of calls with pixels on the device.

    python -m results.cuda.measure

Prints a Markdown table, and how many JPEG files one process scores in a second. Here pyiqa's class and this project's
models run one after another, fp32 without TensorFloat-32. ``python -m tests.benchmarks score --device cuda``
takes longer and says more: ratios of rounds, memory, operations.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor, nn

from qualiclip_plugin.models.precision import exact_fp32
from qualiclip_plugin.scoring.local import score_files
from qualiclip_plugin.utils.environment import versions
from qualiclip_plugin.utils.images import read_image, to_float
from qualiclip_plugin.utils.process_settings import usable_cores
from qualiclip_plugin.weights.loading import load_model
from tests.benchmarks.bench_decoding import rate
from tests.benchmarks.meters import seconds
from tests.benchmarks.reference import pyiqa_class
from tests.benchmarks.rivals import official_weights
from tests.benchmarks.scale import photographs

SMALL, LARGE = (512, 384), (3840, 2160)
BATCHES = (1, 8, 16, 32, 64)
WAYS = (("eager", "fp32"), ("eager", "fp16"), ("cuda", "fp16"))
WARM, SECONDS, LOOPS = 4, 0.1, 3
FILES, WORKERS = 512, 16


def milliseconds(score: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Of one image: the median of some loops of about ``SECONDS``."""

    def loop(calls: int) -> float:
        return seconds(lambda: [score(images) for _ in range(calls)], "cuda") / calls

    loop(WARM)
    calls = max(3, min(200, int(SECONDS / loop(1))))
    return 1000 * statistics.median(loop(calls) for _ in range(LOOPS)) / len(images)


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name, exact_fp32():
        folder = Path(name)
        weights, kind = official_weights(folder)
        batches = {f"{batch} of 512x384": pictures(folder, SMALL, batch) for batch in BATCHES}
        batches["1 of 3840x2160"] = pictures(folder, LARGE, 1)
        reference = pyiqa_class(weights).cuda()
        ways = {"pyiqa fp32": lambda images: reference(to_float(images))}
        for runtime, precision in WAYS:
            ways[f"{runtime} {precision}"] = load_model(weights, device="cuda", runtime=runtime, precision=precision)
        rows = [
            {"": way, **{case: milliseconds(score, images) for case, images in batches.items()}}
            for way, score in ways.items()
        ]
        files = photographs(folder / "files", FILES, SMALL)
        rates = [files_a_second(files, ways["cuda fp16"], batch) for batch in (1, 32)]
        workers = usable_cores()
        rates.append(rate(files * 16, workers, processes=True, model=ways["cuda fp16"], batch_size=32)[0])
    libraries = ", ".join(f"{library} {version}" for library, version in versions("pyiqa").items())
    print(f"{torch.cuda.get_device_name()}, {libraries}, {time.strftime('%Y-%m-%d')}, weights: {kind}\n")
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3g"))
    print(f"\nfiles a second, {WORKERS} threads: {rates[0]:.0f} one by one, {rates[1]:.0f} in batches of 32")
    print(f"{workers} processes: {rates[2]:.0f} in batches of 32")


def files_a_second(files: Sequence[Path], model: nn.Module, batch: int) -> float:
    """From JPEG files to scores, the second time."""
    _, second = (
        seconds(lambda: list(score_files(files, model, batch_size=batch, workers=WORKERS)), "cuda") for _ in range(2)
    )
    return len(files) / second


def pictures(folder: Path, size: tuple[int, int], batch: int) -> Tensor:
    """Bytes on the device, (batch, 3, H, W); some photographs again and again."""
    files = photographs(folder / f"{size[0]}x{batch}", min(batch, 8), size)
    images = [read_image(path) for path in files]
    return torch.stack([images[index % len(images)] for index in range(batch)]).cuda()


if __name__ == "__main__":
    main()
