"""A pool of scoring workers on a Ray cluster: the one thing that scores and leaderboards at scale have in common.

Ray Data places the workers, hands out the work, starts a new worker in place of one that died, and gives it the work.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from qualiclip_plugin.utils.errors import ConfigError, QualiCLIPError

if TYPE_CHECKING:
    import pyarrow as pa

REFUSAL = "declared error"
MOST_DEATHS = 2
"""How many workers a single image may kill before it is left out."""
MOST_BLOCKS = 10_000
"""Pieces of work that Ray Data keeps account of one by one; with more, several items make a piece."""


@dataclass(frozen=True)
class Pool:
    """Workers that are all alike.

    Attributes:
        device: ``cpu`` or ``cuda``.
        threads: Torch threads of each, and cores it takes where it has no GPU.
        sharing: How many share a GPU.
    """

    workers: int
    device: str
    threads: int
    sharing: int = 1


@contextmanager
def cluster() -> Iterator[None]:
    """Connect to the cluster of ``$RAY_ADDRESS`` or of this machine, or start one here while the block runs.

    Raises:
        ConfigError: Ray is missing, or the cluster cannot be reached.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError('--engine ray needs further packages: pip install "qualiclip-plugin[ray]"') from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"the Ray cluster cannot be reached: {error}") from error
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def make_pool(device: str = "auto", workers: int = 0, threads: int = 1) -> Pool:
    """The pool for the cluster that is connected.

    Args:
        device: ``auto`` (GPUs where the cluster has any), ``cpu`` or ``cuda``.
        workers: How many; 0: one a GPU, else as many as the cores allow. With more workers than GPUs several share
            one: a single process does not decode images as fast as a GPU scores them.
        threads: See :class:`Pool`.

    Raises:
        ConfigError: Another device, or more workers than the cluster can hold.
    """
    import ray

    resources = ray.cluster_resources()
    gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device {device!r}: on a Ray cluster it is auto, cpu or cuda")
    chosen = device if device != "auto" else "cuda" if gpus else "cpu"
    most = cores // threads
    if chosen == "cuda":
        most = max(gpus, most) if gpus else 0
    number = workers or (gpus if chosen == "cuda" else most)
    if not 0 < number <= most:
        raise ConfigError(
            f"the Ray cluster has {cores} cores and {gpus} GPUs: "
            f"no room for {workers or 'any'} workers on {chosen} with {threads} threads each"
        )
    return Pool(number, chosen, threads, math.ceil(number / gpus) if chosen == "cuda" else 1)


def map_on(
    pool: Pool, items: Sequence[Mapping[str, Any]], worker: type, arguments: Mapping[str, Any]
) -> Iterator[pa.Table]:
    """Give every item to a worker; yield what comes back, in the order in which it is finished.

    Args:
        worker: Class whose instances turn a table of one item into a table.
        arguments: Of its constructor, which may raise a declared error as well.

    Raises:
        ConfigError: A worker raised a declared error. Any other error of a worker is raised as Ray's.
    """
    import ray.data

    rows = ray.data.from_items(list(items), override_num_blocks=min(len(items), MOST_BLOCKS))
    rows.context.enable_progress_bars = False
    done = rows.map_batches(
        _Declaring,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=pool.workers),
        fn_constructor_args=(worker, dict(arguments)),
        **({"num_gpus": 1 / pool.sharing} if pool.device == "cuda" else {"num_cpus": pool.threads}),
    )
    for table in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        if REFUSAL in table.column_names:
            raise ConfigError(next(filter(None, table[REFUSAL].to_pylist())))
        yield table


class _Declaring:
    """Builds a worker when its first item comes, and returns declared errors: of those raised, Ray keeps the text."""

    def __init__(self, worker: type, arguments: Mapping[str, Any]) -> None:
        self.build = partial(worker, **arguments)
        self.worker: Any = None

    def __call__(self, item: pa.Table) -> pa.Table:
        import pyarrow as pa

        try:
            self.worker = self.worker or self.build()
            return self.worker(item)
        except QualiCLIPError as error:
            return pa.table({REFUSAL: [str(error)]})


class Casualties:
    """Remembers which image of a shard a worker had in hand when it died; one for all workers."""

    def __init__(self) -> None:
        self.begun: Counter[int] = Counter()
        self.in_hand: dict[int, int] = {}
        self.deaths: Counter[tuple[int, int]] = Counter()

    def begin(self, shard: int) -> tuple[bool, set[int]]:
        """Whether the shard was begun before, and the positions of images that ended ``MOST_DEATHS`` workers."""
        if shard in self.in_hand:
            self.deaths[shard, self.in_hand.pop(shard)] += 1
        self.begun[shard] += 1
        fatal = {position for (of, position), deaths in self.deaths.items() if of == shard and deaths >= MOST_DEATHS}
        return self.begun[shard] > 1, fatal

    def take(self, shard: int, position: int | None) -> None:
        """From now on a worker has this image in hand, or none."""
        if position is None:
            self.in_hand.pop(shard, None)
        else:
            self.in_hand[shard] = position
