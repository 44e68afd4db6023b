"""``iqa-harness run --engine ray``: rows decoded and scored by the workers of a Ray cluster.

Only the scoring moves: the dataset is opened, and scores are stored, by the process that runs the harness. Workers
get its started scorer and read the images where it found them, which must be where every worker sees them. A worker
has one GPU, or one core and one torch thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.data.open import ImageSet
from harness.run.progress import Reporter, Silent
from harness.run.score import Options, scored_rows
from harness.scorers.identity import READING_VERSION, SCORES_VERSION, device_name, recorded_versions
from harness.scorers.kinds import Scorer
from harness.scorers.names import ScorerError
from qualiclip_plugin.scoring.ray_pool import make_pool, map_on

if TYPE_CHECKING:
    import pyarrow as pa

IMAGES_AT_ONCE = 32
"""What a worker is given at a time, and may lose when it dies."""


def cluster_rows(
    scorer: Scorer, images: ImageSet, missing: Sequence[int], options: Options, reporter: Reporter
) -> Iterator[dict[str, Any]]:
    """Decode and score the images at the positions ``missing`` on the cluster that is connected.

    Yields:
        Rows as :func:`harness.run.score.scored_rows` does, in the order in which they are finished.

    Raises:
        ScorerError: The scorer cannot be sent to workers.
        ConfigError: A worker has other libraries or code.
    """
    from ray import cloudpickle

    pool = make_pool("cuda" if "CUDA" in scorer.device else "cpu")
    items = [{"positions": missing[at : at + IMAGES_AT_ONCE]} for at in range(0, len(missing), IMAGES_AT_ONCE)]
    try:
        packed = cloudpickle.dumps(scorer)
    except Exception as error:  # whatever a metric holds, a file or a lock, raises its own
        raise ScorerError(f"{scorer.name} cannot be sent to the workers of a cluster: {error}") from error
    arguments = {"scorer": packed, "images": images, "options": options, "code": _code(), "threads": pool.threads}
    for table in map_on(pool, items, RowWorker, arguments):
        yield from table.to_pylist()
        reporter.advance(len(table))


def _code() -> dict[str, Any]:
    """What two processes need to have in common for one scorer to be the same in both."""
    return {"scores_version": SCORES_VERSION, "reading_version": READING_VERSION, **recorded_versions()}


class RowWorker:
    """Scores images by their positions; one process of the pool.

    Raises:
        ScorerError: This machine has other libraries or code than the one that runs the harness.
    """

    def __init__(self, scorer: bytes, images: ImageSet, options: Options, code: dict[str, Any], threads: int) -> None:
        import pickle

        import torch

        if different := {name for name, value in _code().items() if value != code[name]}:
            raise ScorerError(f"a worker differs from the process that runs the harness in: {', '.join(different)}")
        torch.set_num_threads(threads)
        started: Scorer = pickle.loads(scorer)  # noqa: S301 (made by the process that started this one)
        kind = "cuda" if "CUDA" in started.device else "cpu"
        self.scorer = replace(started, device=device_name(kind)) if " " in started.device else started
        self.images, self.options = images, replace(options, workers=0)

    def __call__(self, item: pa.Table) -> pa.Table:
        """Score the positions of one item; one row each."""
        import pyarrow as pa

        (positions,) = item["positions"].to_pylist()
        return pa.Table.from_pylist(list(scored_rows(self.scorer, self.images, positions, self.options, Silent())))
