"""``qualiclip score --engine ray``: images of any number and place, scored by a pool of workers into Parquet shards.

Ray Data hands portions of the sources to workers; each decodes and scores its portion as ``score_files`` does in one
process; rows come back here, where a shard is written when it is whole. So the workers need to reach the images, and
only this process needs to reach the output folder. On the CPU every image has the same score bit for bit as in one
process with as many torch threads, the same batch size and the same kind of processor.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qualiclip_plugin.runtimes import AUTO, RUNTIMES, check_runtime, served_tower
from qualiclip_plugin.scoring.local import ScoredImage, StoredImage, score_files
from qualiclip_plugin.scoring.ray_pool import MOST_DEATHS, Casualties, Pool, cluster, make_pool, map_on
from qualiclip_plugin.scoring.shards import open_shards
from qualiclip_plugin.scoring.sources import Listing, from_record, list_sources
from qualiclip_plugin.utils.atomic import sha256_file
from qualiclip_plugin.utils.environment import git_revision, versions
from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.utils.images import MAX_PIXELS, WHITE
from qualiclip_plugin.utils.shown import portable

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from ray.actor import ActorHandle

    from qualiclip_plugin.models.qualiclip import QualiCLIP

SHARD = "shard"
SCORING_LIBRARIES = ("qualiclip-plugin", "torch", "open_clip_torch", "timm", "numpy", "Pillow")
"""Whose versions may change a score."""


@dataclass(frozen=True)
class ScoreRequest:
    """What may change a row, and how the work is cut.

    Attributes:
        weights: Name or path; a path must be the same file for every worker.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        scale: ``pyiqa`` or ``authors``.
        attributes: Score the single prompt pairs too.
        batch_size: As for ``score_files``.
        column: Column of the images in Parquet files; ``None`` finds it.
        images_per_shard: Most rows in a file of scores.
        runtime: ``eager``, ``openvino``, ``cuda`` or ``auto``.
        tile_pixels: As for ``weights.load_model``.
        exif, icc, background, max_pixels: As for ``images.read_image``.
    """

    weights: str = "lite"
    _: KW_ONLY
    precision: str = "fp32"
    scale: str = "pyiqa"
    attributes: bool = False
    batch_size: int = 0
    column: str | None = None
    images_per_shard: int = 500
    runtime: str = "eager"
    tile_pixels: int = 0
    exif: bool = True
    icc: bool = True
    background: tuple[int, int, int] = WHITE
    max_pixels: int = MAX_PIXELS

    def load(self, device: str = "cpu") -> QualiCLIP:
        """The model that is asked for; see ``weights.load_model`` for the errors."""
        from qualiclip_plugin.weights.loading import load_model

        options = {name: getattr(self, name) for name in ("precision", "runtime", "tile_pixels", "scale")}
        return load_model(self.weights, device=device, **options)

    def score(
        self, images: Iterable[str | Path | StoredImage], model: QualiCLIP, decoders: int, processes: bool = False
    ) -> Iterator[ScoredImage]:
        """One row an image, see :func:`score_files`; ``decoders`` threads or processes read and decode ahead."""
        names = ("attributes", "batch_size", "exif", "icc", "background", "max_pixels")
        options = {name: getattr(self, name) for name in names}
        return score_files(images, model, workers=decoders, processes=processes, **options)


def score_on_ray(
    sources: Sequence[str],
    output: str | os.PathLike[str],
    request: ScoreRequest,
    *,
    device: str = "auto",
    workers: int = 0,
    threads: int = 1,
    decoders: int = 2,
    retry_failed: bool = False,
    advance: Callable[[int, int], object] = lambda images, total: None,
) -> dict[str, Any]:
    """Score what is missing in an output folder and return its summary (see ``shards``).

    Args:
        sources: See :func:`sources.list_sources`.
        output: Folder; one that holds the same run continues, one that holds another is refused.
        device: ``auto`` (GPUs where the cluster has any), ``cpu`` or ``cuda``.
        workers: How many; 0: one a GPU, else one for every ``threads`` cores. More than GPUs share them.
        decoders: Threads of a worker that read and decode ahead.
        retry_failed: Score shards with failures again.
        advance: Told after every shard how many images it has, and how many were to be scored.

    Raises:
        ConfigError: A source or option is invalid, the output holds another run, Ray is missing.
        WeightsError: The weights cannot be obtained.
    """
    # What a worker would refuse is refused here, before a folder is begun that another run could not use.
    on_cpu = check_request(request)
    listing = list_sources(sources, request.images_per_shard, request.column)
    with cluster():
        pool = make_pool(device, workers, threads)
        request = on_cpu if pool.device == "cpu" or request.runtime != AUTO else replace(request, runtime="eager")
        if (needed := RUNTIMES[request.runtime].device or pool.device) != pool.device:
            raise ConfigError(f"the runtime {request.runtime!r} computes on {needed}; the workers have {pool.device}")
        identity = identify(request, pool)
        manifest = {"source": listing.digest, "images_per_shard": request.images_per_shard, **identity}
        folder = open_shards(output, tuple(map(len, listing.portions)), manifest)
        failures = folder.failures()
        redone = {shard for shard, failed in failures.items() if failed} if retry_failed else set()
        missing = [shard for shard in range(len(folder.sizes)) if shard not in failures or shard in redone]
        total = sum(folder.sizes[shard] for shard in missing)
        started = time.monotonic()
        for shard, frame in _scored(listing, missing, request, pool, decoders, identity):
            folder.write(shard, frame)
            failures[shard] = int(frame["error"].notna().sum())
            advance(len(frame), total)
    facts = {"workers": pool.workers, "images_in_last_run": total, "seconds_of_last_run": time.monotonic() - started}
    return {**folder.summarise(failures, **facts), "scores": folder.scores}


def check_request(request: ScoreRequest) -> ScoreRequest:
    """Raise the errors that a worker would raise for a model, also if this machine lacks the workers' GPUs.

    Returns:
        The request with what its runtime stands for on CPUs.
    """
    if check_runtime(request.runtime) == AUTO or RUNTIMES[request.runtime].device != "cuda":
        return replace(request, runtime=request.load().runtime)
    served_tower(replace(request, runtime="eager").load(), request.runtime)
    return request


def identify(request: ScoreRequest, pool: Pool) -> dict[str, Any]:
    """Everything that may change a score: the model's files, options and code, and the libraries.

    Raises:
        WeightsError: The weights cannot be obtained.
    """
    from qualiclip_plugin.weights.loading import get_card, load_cards, resolve

    names: list[str] = [request.weights]
    if request.weights in load_cards() and (base := get_card(request.weights).base):
        names.append(base)
    libraries = (*SCORING_LIBRARIES, *RUNTIMES[request.runtime].packages)
    options = {key: value for key, value in asdict(request).items() if key not in ("column", "images_per_shard")}
    return {
        **options,
        "background": list(request.background),
        "weights": Path(request.weights).name,
        "weights_sha256": [sha256_file(resolve(name)) for name in names],
        "device": pool.device,
        "threads": pool.threads,
        "code": git_revision(),
        "versions": {name: version for name, version in versions(*libraries).items() if name in libraries},
    }


def _scored(
    listing: Listing,
    missing: Sequence[int],
    request: ScoreRequest,
    pool: Pool,
    decoders: int,
    identity: dict[str, Any],
) -> Iterator[tuple[int, pd.DataFrame]]:
    """Shards as they are finished, each with its rows."""
    import pandas as pd
    import ray

    # JSON, because a path may hold bytes that are no UTF-8.
    items = [{SHARD: shard, "portion": json.dumps(asdict(listing.portions[shard]))} for shard in missing]
    arguments = {"request": request, "pool": pool, "decoders": decoders, "identity": identity, "folder": os.getcwd()}
    arguments["casualties"] = ray.remote(num_cpus=0)(Casualties).remote()
    parts: dict[int, list[pd.DataFrame]] = {}
    for table in map_on(pool, items, ShardWorker, arguments) if items else ():
        for shard, rows in table.to_pandas().groupby(SHARD, sort=True):
            parts.setdefault(shard, []).append(rows.drop(columns=SHARD))
            if sum(map(len, parts[shard])) == len(listing.portions[shard]):
                yield shard, pd.concat(parts.pop(shard), ignore_index=True)


class ShardWorker:
    """Holds a model and scores portions; one process of the pool.

    Raises:
        ConfigError: This machine has other weights, code or libraries than the one that started the run.
        WeightsError: The weights cannot be obtained here.
    """

    def __init__(
        self,
        request: ScoreRequest,
        pool: Pool,
        decoders: int,
        identity: dict[str, Any],
        folder: str,
        casualties: ActorHandle,
    ) -> None:
        import torch

        if os.path.isdir(folder):  # relative paths mean the same as for the one who asked
            os.chdir(folder)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        torch.set_num_threads(pool.threads)
        self.request, self.decoders, self.casualties = request, decoders, casualties
        if different := {key for key, value in identify(request, pool).items() if value != identity[key]}:
            raise ConfigError(f"a worker differs from the process that started the run in: {', '.join(different)}")
        self.model = request.load(pool.device)

    def __call__(self, item: pa.Table) -> pa.Table:
        """Score the portion of one item; its rows carry the number of their shard."""
        import pyarrow as pa
        import ray

        from qualiclip_plugin.scoring.table import to_frame

        (record,) = item.to_pylist()
        shard, images = record[SHARD], from_record(json.loads(record["portion"])).images()
        again, fatal = ray.get(self.casualties.begin.remote(shard))
        rows = self._one_by_one(shard, images, fatal) if again else self._score(images)
        frame = to_frame(rows, self.model.attributes if self.request.attributes else ())
        return pa.Table.from_pandas(frame.assign(**{SHARD: shard}), preserve_index=False)

    def _score(self, images: Iterable[str | StoredImage]) -> Iterator[ScoredImage]:
        return self.request.score(images, self.model, self.decoders)

    def _one_by_one(
        self, shard: int, images: Iterable[str | StoredImage], fatal: Container[int]
    ) -> Iterator[ScoredImage]:
        """Score a shard that ended a worker before, so that the image at fault is found and left out."""
        import ray

        for position, image in enumerate(images):
            if position in fatal:
                name = image.name if isinstance(image, StoredImage) else portable(image)
                yield ScoredImage(name, error=f"{name}: ended {MOST_DEATHS} workers that had nothing else in hand")
                continue
            ray.get(self.casualties.take.remote(shard, position))
            yield from self._score([image])
            ray.get(self.casualties.take.remote(shard, None))
