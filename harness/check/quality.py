"""One image held to a bound, in a test: what the pytest fixture ``assert_quality`` gives."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.scorers.kinds import Scorer


@cache
def _scorer(metric: str) -> Scorer:
    # Loaded once per test session: starting a metric takes longer than scoring a picture.
    from harness.scorers.start import create_scorer

    return create_scorer(metric, device="cpu")


def check_quality(
    image: str | os.PathLike[str] | bytes,
    metric: str = "qualiclip-lite",
    *,
    min: float | None = None,
    max: float | None = None,
) -> float:
    """Assert that an image's score lies within bounds.

    Args:
        image: A file's path or content.
        metric: Any scorer name of ``iqa-harness run``.
        min: Lowest accepted score, for metrics where higher is better.
        max: Highest accepted score, for metrics where lower is better.

    Returns:
        The score.

    Raises:
        AssertionError: The score is out of bounds.
        ValueError: No bound, or one on the side where the metric is good.
        QualiCLIPError: The image cannot be read or the metric cannot start.

    Examples:
        >>> from harness.check.quality import check_quality
        >>> check_quality("photo.png", min=0.5) > 0.5
        True
        >>> check_quality("photo.png", max=0.5)
        Traceback (most recent call last):
        ValueError: qualiclip-lite: higher is better, so give min= alone
    """
    from qualiclip_plugin.utils.images import read_image, to_float

    scorer = _scorer(metric)
    bound, wrong = (max, min) if scorer.lower_better else (min, max)
    if bound is None or wrong is not None:
        side = "max" if scorer.lower_better else "min"
        raise ValueError(f"{metric}: {'lower' if scorer.lower_better else 'higher'} is better, so give {side}= alone")
    score = float(scorer.score(to_float(read_image(image))[None]).flatten()[0])
    good = score <= bound if scorer.lower_better else score >= bound  # and so not where it is no number
    name = "the image" if isinstance(image, bytes) else os.fspath(image)
    if not good:
        asked = "at most" if scorer.lower_better else "at least"
        raise AssertionError(f"{name}: {metric} is {score:.4f}, {asked} {bound:g} is asked for")
    return score
