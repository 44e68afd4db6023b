"""From images to one row each, score or reason: in this process, batch by batch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from harness.data.decode import Decoded, Kept, batches, decoded, in_background
from harness.data.open import ImageSet
from harness.run.progress import Reporter
from harness.scorers.commands import ScorerStoppedError
from harness.scorers.kinds import Scorer
from qualiclip_plugin.utils.decode_ahead import how_to_decode
from qualiclip_plugin.utils.errors import MachineError, out_of_memory, out_of_room

LARGEST_SCORE = 3.4e38
"""What single precision holds; the square of a larger one, which the figures need, may be no number any more."""


@dataclass(frozen=True)
class Options:
    """How to run; none of it changes a score.

    Attributes:
        batch_pixels: Most pixels in one batch; 0: by device.
        batch_size: Most images in one batch; 0: only by ``batch_pixels``.
        workers: How many decode ahead; 0: a thread beside the scorer; -1: by device and number of images.
        processes: They may be processes, not threads. A program that allows them keeps its own work behind
            ``if __name__ == "__main__":``.
        retry_failed: Score images again that failed before.
        engine: ``local``: this process; ``ray``: the workers of a Ray cluster (see ``cluster_rows``).
        write_every: Scores that a kill may cost, in seconds of work.
        kept: Decoded images that several scorers of a run share.
    """

    batch_pixels: int = 0
    batch_size: int = 0
    workers: int = -1
    processes: bool = False
    retry_failed: bool = False
    engine: str = "local"
    write_every: float = 20.0
    kept: Kept | None = None


def scored_rows(
    scorer: Scorer, images: ImageSet, missing: Sequence[int], options: Options, reporter: Reporter
) -> Iterator[dict[str, Any]]:
    """Decode and score the images at the positions ``missing``.

    Yields:
        The rows of :func:`score_batch`, with the ``device``.
    """
    limit = BatchLimit(options, scorer)
    workers, processes = _decoders(options, scorer.device, len(missing))
    items = decoded(images, missing, workers, processes=processes, kept=options.kept)
    # The next batch is decoded and put together while this one is scored.
    for batch in in_background(batches(items, limit.fits), 1):
        for row in score_batch(scorer, batch, limit, reporter):
            yield {**row, "device": scorer.device}
        reporter.advance(len(batch))


def _decoders(options: Options, device: str, images: int) -> tuple[int, bool]:
    """How many decode ahead, and whether in processes."""
    if options.workers >= 0:
        return options.workers, options.processes and options.workers > 0
    if "CUDA" not in device:
        # The scorer needs every core; the thread that makes batches decodes fast enough beside it.
        return 0, False
    workers, processes = how_to_decode("cuda", images)
    return workers, processes and options.processes


class BatchLimit:
    """How many images of a size go together; shrinks when memory runs out."""

    def __init__(self, options: Options, scorer: Scorer) -> None:
        on_gpu = "CUDA" in scorer.device
        self.pixels = options.batch_pixels or scorer.batch_pixels or (16_000_000 if on_gpu else 1_000_000)
        self.images = (options.batch_size or 256) if scorer.batches else 1

    def fits(self, count: int, height: int, width: int) -> bool:
        """Whether ``count`` images of this size are one batch."""
        return count == 1 or (count <= self.images and count * height * width <= self.pixels)

    def shrink(self, count: int, height: int, width: int) -> None:
        """From now on at most half of ``count`` images of this size."""
        self.pixels = min(self.pixels, max(1, count // 2) * height * width)


def score_batch(
    scorer: Scorer, batch: Sequence[Decoded], limit: BatchLimit, reporter: Reporter
) -> Iterator[dict[str, Any]]:
    """Score images of one size; where that fails, in smaller parts, until the image at fault is found.

    Yields:
        One row per image: ``index``, ``score``, ``error``, ``seconds``, ``height``, ``width``, ``finished``.

    Raises:
        ScorerStoppedError: It took too long; smaller parts would take as long again and again.
        MachineError: A disk or the table of open files is full, which is no failure of these images.
    """
    if batch[0].pixels is None:
        yield from (_row(item, math.nan, item.error, 0.0) for item in batch)
        return
    started = time.perf_counter()
    scores: list[float] = []
    failure, halve = "", False
    try:
        scores = run(scorer, batch)
    except ScorerStoppedError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and out_of_room(error):
            raise MachineError(
                f"{scorer.name}: {error.strerror}, perhaps in the temporary folder; what was scored is kept, make "
                "room and run again"
            ) from error
        failure, halve = f"{type(error).__name__}: {error}".strip()[:500], out_of_memory(error)
    # From here on no traceback holds the tensors of the failed attempt.
    if failure and len(batch) > 1:
        if halve:
            height, width = batch[0].pixels.shape[1:]
            limit.shrink(len(batch), height, width)
            reporter.note(f"{scorer.name}: out of memory with {len(batch)} images of {width}x{height}; halved")
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]):
            yield from score_batch(scorer, part, limit, reporter)
        return
    if failure:
        yield _row(batch[0], math.nan, failure, 0.0)
        return
    seconds = (time.perf_counter() - started) / len(batch)
    for item, score in zip(batch, scores, strict=True):
        reason = "" if abs(score) <= LARGEST_SCORE else f"the score is {score:g}"  # and so where it is no number
        yield _row(item, score if not reason else math.nan, reason, seconds)


def run(scorer: Scorer, batch: Sequence[Decoded]) -> list[float]:
    """Scores of decoded images of one size.

    Raises:
        ValueError: The scorer does not give one number per image.
    """
    import torch

    from qualiclip_plugin.utils.images import to_float

    images = to_float(torch.stack([torch.from_numpy(item.pixels) for item in batch]))
    scores = torch.as_tensor(scorer.score(images), dtype=torch.float64).detach().cpu().flatten()
    if len(scores) != len(batch):
        raise ValueError(f"{len(scores)} scores for {len(batch)} images")
    return [float(score) for score in scores]


def _row(item: Decoded, score: float, error: str, seconds: float) -> dict[str, Any]:
    return {
        "index": item.index,
        "score": score,
        "error": error,
        "seconds": seconds,
        "height": 0 if item.pixels is None else item.pixels.shape[1],
        "width": 0 if item.pixels is None else item.pixels.shape[2],
        "finished": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
    }
