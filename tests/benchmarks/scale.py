"""What scoring many files costs on this machine: decoding, the network, one process, and pools on a Ray cluster.

::

    python -m tests.benchmarks scale --images 600 --pools 1,2
    python -m tests.benchmarks scale --images 20000 --device cuda --pools 1     # on a machine with a GPU

Rates are images a second on the clock. The rate of a pool is that of its last three quarters, without the start.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qualiclip_plugin.utils.atomic import atomic_write
from qualiclip_plugin.utils.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from qualiclip_plugin.scoring.ray_engine import ScoreRequest

SAMPLE = 60
"""Files of the parts that are measured in this process."""
SIZE = (1024, 768)
QUALITY = 90
SHARD = 10
"""Images in a shard of the pools: small, so that the end of a run shows."""
ROWS = 5000


@dataclass(frozen=True)
class Pool:
    """What a pool of workers did.

    Attributes:
        workers: How many.
        start: Seconds until the first shard.
        rate: Images a second over the last three quarters.
    """

    workers: int
    start: float
    rate: float


@dataclass(frozen=True)
class Report:
    """Rates in images a second.

    Attributes:
        machine: Processor, cores, device, load, versions and date.
        weights: What was scored with.
        images: Number of files.
        bytes_per_image: Mean size of a file.
        decode: One core decodes.
        network: The model alone, on images in memory, with one torch thread or the GPU.
        process: ``score_files`` in one process, on the CPU on one core: read, decode, score.
        write: Rows a second that one process writes into shards of ``ROWS``.
        pools: Ray engine, by number of workers.
    """

    machine: dict[str, Any]
    weights: str
    images: int
    bytes_per_image: float
    decode: float
    network: float
    process: float
    write: float
    pools: tuple[Pool, ...]


def photographs(folder: Path, number: int, size: tuple[int, int] | None = None) -> list[Path]:
    """Write JPEG files of ``size`` (``SIZE``): photographs of the scikit-image wheel, each a crop of its own.

    The folder is new or empty.
    """
    from PIL import Image
    from skimage import data

    folder.mkdir(exist_ok=True)
    sources = [
        Image.fromarray(getattr(data, name)()[..., :3]) for name in ("astronaut", "chelsea", "coffee", "rocket")
    ]
    for index in range(number):
        picture = sources[index % len(sources)]
        left, top = index % 29, index % 31
        crop = picture.crop((left, top, picture.width - 31 + left, picture.height - 31 + top))
        crop.resize(size or SIZE, Image.Resampling.BICUBIC).save(folder / f"{index:06d}.jpg", quality=QUALITY)
    return sorted(folder.iterdir())


def measure(files: Sequence[Path], weights: str, device: str, pools: Iterable[int]) -> Report:
    """Measure every part in turn; see :class:`Report`.

    Raises:
        ConfigError: Ray is missing, a pool does not fit the cluster.
    """
    import torch

    from qualiclip_plugin.scoring.local import score_files
    from qualiclip_plugin.scoring.ray_engine import ScoreRequest
    from qualiclip_plugin.scoring.ray_pool import cluster
    from qualiclip_plugin.weights.loading import load_model

    sample, request = files[:SAMPLE], ScoreRequest(weights, images_per_shard=SHARD)
    with cluster():
        measured = tuple(_pool(files, request, device, workers) for workers in pools)
    with _one_core(device):
        model = load_model(weights, device=device)
        list(score_files(sample[:8], model))  # kernels are chosen and memory is taken
        return Report(
            machine=machine(device),
            weights=weights,
            images=len(files),
            bytes_per_image=sum(path.stat().st_size for path in files) / len(files),
            decode=_rate(len(sample), lambda: _decode(sample)),
            network=_network_rate(sample, model, torch.device(device)),
            process=_rate(len(sample), lambda: list(score_files(sample, model))),
            write=_write_rate(),
            pools=measured,
        )


def machine(device: str, *libraries: str) -> dict[str, Any]:
    """Where and when, for the record, with the versions of further libraries."""
    import torch

    from qualiclip_plugin.utils.environment import processor_name, versions

    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "load": [round(value, 2) for value in os.getloadavg()],
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": versions(*libraries),
    }


@contextmanager
def _one_core(device: str) -> Iterator[None]:
    """On the CPU: one torch thread, and this process with all its decoding threads on one core."""
    import torch

    threads = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if device == "cpu" and hasattr(os, "sched_getaffinity") else None
    torch.set_num_threads(1)
    if cores:
        os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if cores:
            os.sched_setaffinity(0, cores)


def _rate(images: int, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return images / (time.perf_counter() - started)


def _decode(files: Iterable[Path]) -> None:
    from qualiclip_plugin.utils.images import read_image

    for path in files:
        read_image(path)


def _network_rate(files: Sequence[Path], model: nn.Module, device: Any) -> float:
    import torch

    from qualiclip_plugin.scoring.local import GPU_BATCH_SIZE
    from qualiclip_plugin.utils.images import read_image, to_float

    size = 1 if device.type == "cpu" else GPU_BATCH_SIZE
    pixels = torch.stack([read_image(path) for path in files]).split(size)

    @torch.inference_mode()
    def score() -> None:
        for batch in pixels:
            model(to_float(batch.to(device))).cpu()

    return _rate(len(files), score)


def _write_rate(shards: int = 10) -> float:
    from qualiclip_plugin.scoring.local import ScoredImage
    from qualiclip_plugin.scoring.table import to_frame, write_scores

    frame = to_frame(ScoredImage(f"s3://bucket/photos/{n:012d}.jpg", n / ROWS, {}, *SIZE) for n in range(ROWS))
    with tempfile.TemporaryDirectory() as folder:

        def write() -> None:
            for shard in range(shards):
                write_scores(frame, Path(folder, f"{shard}.parquet"))

        return _rate(shards * ROWS, write)


def _pool(files: Sequence[Path], request: ScoreRequest, device: str, workers: int) -> Pool:
    from qualiclip_plugin.scoring.ray_engine import score_on_ray

    shards: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        score_on_ray(
            [str(files[0].parent)],
            folder,
            request,
            device=device,
            workers=workers,
            advance=lambda images, total: shards.append((time.perf_counter(), images)),
        )
    return Pool(workers, shards[0][0] - started, later_rate(shards))


def later_rate(shards: Sequence[tuple[float, int]]) -> float:
    """Images a second over the last three quarters of shards, each with when it was finished and its images."""
    counted = shards[len(shards) // 4 :]
    return sum(images for _, images in counted[1:]) / (counted[-1][0] - counted[0][0])


def cost_of_a_million(rate: float, price: float) -> float:
    """Price of a million images at ``rate`` images a second on what costs ``price`` an hour."""
    return 1e6 / rate / 3600 * price


def to_markdown(report: Report, price: float) -> str:
    """The table for people; ``price`` is that of an hour of one worker (a core, or a GPU with its host)."""
    place = "one core" if report.machine["device"] == "cpu" else "one GPU"
    rows = [
        ("decoding, one core", report.decode),
        (f"network alone, {place}", report.network),
        (f"one process, files to scores, {place}", report.process),
        ("writing shards, one process", report.write),
        *((f"Ray, {pool.workers} worker{'s' * (pool.workers > 1)}", pool.rate) for pool in report.pools),
    ]
    workers = dict(zip((name for name, _ in rows[4:]), (pool.workers for pool in report.pools), strict=True))
    lines = ["| part | images a second | share of one process | a million images |", "|---|---|---|---|"]
    for name, rate in rows:
        cost = cost_of_a_million(rate, price * workers.get(name, 1))
        lines.append(f"| {name} | {rate:.1f} | {rate / report.process:.2f} | {1e6 / rate / 3600:.1f} h, {cost:.2f} |")
    lines += [
        "",
        f"{report.images} JPEG files of {report.bytes_per_image / 1000:.0f} kB, weights {report.weights}; "
        f"{report.machine['processor']}, {report.machine['cores']} cores, {report.machine['device']}, "
        f"load {report.machine['load'][0]}, {report.machine['date']}. An hour of a worker costs {price}.",
        f"Seconds until the first shard: {', '.join(f'{pool.start:.0f}' for pool in report.pools)}.",
    ]
    return "\n".join(lines)


def _pool_sizes(text: str) -> list[int]:
    sizes = text.replace(" ", "").split(",")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise ConfigError(f"--pools is {text!r}: numbers of workers, separated by commas, are needed")
    return [int(size) for size in sizes]


def scale_command(
    images: Annotated[int, typer.Option(min=SAMPLE, help="JPEG files to make and score.")] = 600,
    weights: Annotated[str, typer.Option(help="A name from 'qualiclip weights list', or a file.")] = "lite",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    pools: Annotated[str, typer.Option(help="Numbers of Ray workers, separated by commas.")] = "1,2",
    price: Annotated[float, typer.Option(min=0, help="Of an hour of one worker, in any currency.")] = 0.04,
    output: Annotated[Path | None, typer.Option(help="Also write the numbers to a JSON file.")] = None,
) -> None:
    """Measure how many images a second this machine scores, part by part and with growing pools of workers."""
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"device {device!r}: cpu or cuda is measured")
    sizes = _pool_sizes(pools)
    with tempfile.TemporaryDirectory() as folder:
        report = measure(photographs(Path(folder), images), weights, device, sizes)
    if output is not None:
        with atomic_write(output, "w") as file:
            file.write(json.dumps(asdict(report), indent=1) + "\n")
    typer.echo(to_markdown(report, price))
