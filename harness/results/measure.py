"""From stored scores and labels to the figures of one cell of the leaderboard, each a number or a reason."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness import statistics as st
from harness.data.labels import FULL_REFERENCE
from harness.statistics import Estimate, Interval
from harness.statistics.fitting import Form
from harness.statistics.registry import NO_OPINION

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

FIGURES_VERSION = 2
"""Of the code that turns scores into figures. Raise it in the commit that moves or adds a figure: cells of the
version before are then made again from their stored scores."""

FIGURES = tuple(st.STATISTICS)

P_MARGINS = {"psnr": 6.0, "ssim": 0.1, "gmsd": 0.03}
"""How much every full-reference quality must differ before a pair counts as discriminable: dB and plain numbers.
They are chosen so that the better image is clearly better to the eye."""

NO_SCORE = "no image has a score"


@dataclass(frozen=True)
class Settings:
    """How figures are computed; part of every cell.

    Attributes:
        form: Curve of the fit: ``logistic4`` or ``logistic5``.
        ratio_splits: Number of test splits, disjoint by content, where a dataset asks for them.
        test_share: Share of the contents in each of them.
    """

    form: Form = "logistic4"
    intervals: bool = True
    level: float = 0.95
    seed: int = 0
    ratio_splits: int = 10
    test_share: float = 0.2


@dataclass(frozen=True)
class Directions:
    """Which of the two are lower-is-better."""

    scorer_lower_better: bool
    opinion_lower_better: bool


def join_scores(labels: pd.DataFrame, scores: pd.DataFrame, unordered: Collection[str] = ()) -> pd.DataFrame:
    """Labels with the columns of the stored scores; an image without any has ``error`` "not scored".

    Args:
        scores: Stored ones, by ``image_hash``.
        unordered: Distortion types whose level is no severity; they come without a level, so that they take no part
            in tests of severity.
    """
    rows = labels.merge(scores, on="image_hash", how="left", validate="many_to_one")
    rows["error"] = rows["error"].fillna("not scored")
    rows["level"] = rows["level"].mask(rows["distortion"].isin(unordered))
    return rows


def cell_figures(
    rows: pd.DataFrame, directions: Directions, settings: Settings = Settings(), *, ratio: bool = False
) -> dict[str, Any]:
    """All figures of a scorer on a dataset.

    Args:
        rows: From :func:`join_scores`.
        ratio: Add median and spread over random test splits, disjoint by content.

    Returns:
        ``subsets`` (with intervals), ``distortions`` and ``levels``: name to :func:`group_figures`; where
        asked for ``ratio_splits``. Images that failed are counted and take no part.
    """
    plain = dataclasses.replace(settings, intervals=False)

    def part(chosen: pd.DataFrame) -> dict[str, Any]:
        return group_figures(chosen, directions, plain)

    def of_level(chosen: pd.DataFrame) -> pd.DataFrame:
        # People's opinions are compared within the level; the D-test sets it against the pristine images.
        return chosen if rows["opinion"].notna().all() else _with_pristine(rows, chosen)

    distorted = rows[(rows["level"] > 0).fillna(False).astype(bool)]
    subsets = {"all": rows} | {str(name): chosen for name, chosen in _groups(rows, "split")}
    figures: dict[str, Any] = {
        "subsets": {name: group_figures(chosen, directions, settings) for name, chosen in subsets.items()},
        "distortions": {str(name): part(_with_pristine(rows, some)) for name, some in _groups(rows, "distortion")},
        "levels": {str(name): part(of_level(some)) for name, some in _groups(distorted, "level")},
    }
    if ratio:
        figures["ratio_splits"] = ratio_figures(rows, directions, settings)
    return figures


def group_figures(rows: pd.DataFrame, directions: Directions, settings: Settings) -> dict[str, Any]:
    """The figures over some rows: ``n`` scored images, ``n_failed`` others, ``figures``, ``ceiling`` and ``fit``.

    ``ceiling`` is what the opinions themselves reach in the tests of severity, where there are both.
    """
    good, scores, opinions = _oriented(rows, directions)
    if good.empty:
        nothing = as_json(st.undefined(NO_SCORE))
        return {
            "n": 0,
            "n_failed": len(rows),
            "figures": dict.fromkeys(FIGURES, nothing),
            "fit": {},
            "krasula": {"reason": NO_SCORE},
        }
    images = images_of(good, directions, settings.form)
    estimates = {key: st.measure(key, scores, images) for key in FIGURES}
    defined = [key for key, estimate in estimates.items() if estimate.defined]
    intervals = {}
    if settings.intervals:
        intervals = st.intervals(defined, scores, images, level=settings.level)
    figures = {key: as_json(estimate, intervals.get(key)) for key, estimate in estimates.items()}
    if figures["p_test"]["value"] is not None:
        known = np.asarray(np.isfinite(images.qualities).all(axis=0), dtype=bool)
        figures["p_test"]["pairs"] = len(images.part(known).pairs[0])
    fit = st.fit_logistic(settings.form, scores, opinions) if opinions is not None else None
    return {
        "n": len(good),
        "n_failed": len(rows) - len(good),
        "figures": figures,
        "ceiling": {} if opinions is None else _ceiling(opinions, images),
        "fit": {} if fit is None else _finite(dataclasses.asdict(fit)),
        "krasula": _krasula(good, scores, opinions),
    }


def _ceiling(opinions: Floats, images: st.Images) -> dict[str, Any]:
    found = {key: st.measure(key, opinions, images) for key in ("d_test", "l_test")}
    return {key: estimate.value for key, estimate in found.items() if estimate.defined}


def images_of(rows: pd.DataFrame, directions: Directions, form: Form = "logistic4") -> st.Images:
    """What the statistics need to know of the images of some rows, in their order."""
    names = [name for name in P_MARGINS if f"{FULL_REFERENCE}{name}" in rows.columns]
    return st.Images(
        st.oriented(rows["opinion"].to_numpy(dtype=np.float64), lower_better=directions.opinion_lower_better),
        rows["reference"].to_numpy(dtype=str),
        rows["distortion"].to_numpy(dtype=str),
        rows["level"].to_numpy(dtype=np.float64, na_value=np.nan),
        rows[[f"{FULL_REFERENCE}{name}" for name in names]].to_numpy(dtype=np.float64).T,
        tuple(P_MARGINS[name] for name in names),
        form,
    )


def ratio_figures(rows: pd.DataFrame, directions: Directions, settings: Settings) -> dict[str, Any]:
    """Median and standard deviation of SRCC and raw PLCC over random test splits, disjoint by content."""
    good, scores, opinions = _oriented(rows, directions)
    if opinions is None:
        return {"reason": NO_OPINION}
    try:
        splits = st.content_splits(
            images_of(good, directions).clusters,
            splits=settings.ratio_splits,
            test_share=settings.test_share,
            seed=settings.seed,
        )
    except st.StatisticsError as error:
        return {"reason": str(error)}
    summaries = {
        name: st.split_summary(scores, opinions, splits, function)
        for name, function in (("srcc", st.srcc), ("plcc_raw", st.plcc))
    }
    return {
        name: _finite({"median": s.median, "std": s.std, "splits": len(splits), "reason": s.reason})
        for name, s in summaries.items()
    }


def _oriented(rows: pd.DataFrame, directions: Directions) -> tuple[pd.DataFrame, Floats, Floats | None]:
    good = rows[rows["error"] == ""]
    scores = st.oriented(good["score"].to_numpy(), lower_better=directions.scorer_lower_better)
    opinions = st.oriented(good["opinion"].to_numpy(), lower_better=directions.opinion_lower_better)
    return good, scores, opinions if len(opinions) and np.isfinite(opinions).all() else None


def _krasula(good: pd.DataFrame, scores: Floats, opinions: Floats | None) -> dict[str, Any]:
    if opinions is None:
        return {"reason": NO_OPINION}
    errors = (good["std"] / np.sqrt(good["votes"])).to_numpy(dtype=np.float64)
    if not (np.isfinite(errors) & (errors > 0)).all():
        return {"reason": "needs std > 0 and the number of votes of every image"}
    found = st.krasula(scores, opinions, errors)
    aucs = ("different_similar", "better_worse", "correct")
    counts = {"different": found.different, "pairs": found.pairs, "sampled": found.sampled}
    return {**{name: as_json(getattr(found, name)) for name in aucs}, **counts}


def as_json(estimate: Estimate, interval: Interval | None = None) -> dict[str, Any]:
    """``value`` with ``low`` and ``high`` where there is an interval; or null with the ``reason``."""
    if not estimate.defined:
        return {"value": None, "reason": estimate.reason}
    result: dict[str, Any] = {"value": float(estimate.value)}
    if interval is not None and interval.reason:
        result["no_interval"] = interval.reason
    elif interval is not None:
        result |= {"low": interval.low, "high": interval.high}
    return result


def _groups(rows: pd.DataFrame, column: str) -> list[tuple[Any, pd.DataFrame]]:
    named = rows[rows[column].notna() & (rows[column] != "")]
    return list(named.groupby(column, sort=True))


def _with_pristine(rows: pd.DataFrame, part: pd.DataFrame) -> pd.DataFrame:
    # The D-test of one distortion or level needs the photographs it was made from.
    import pandas as pd

    pristine = rows[(rows["level"] == 0).fillna(False).astype(bool) & ~rows.index.isin(part.index)]
    # One that names a distortion is that one's alone.
    kinds = ["", *part["distortion"].unique()]
    own = pristine[pristine["reference"].isin(part["reference"]) & pristine["distortion"].isin(kinds)]
    return pd.concat([own, part])


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """NaN has no place in JSON."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
