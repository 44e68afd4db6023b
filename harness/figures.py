"""From stored scores and labels to the figures of one cell of the leaderboard, each a number or a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from harness import statistics as st
from harness.statistics import Estimate

if TYPE_CHECKING:
    import pandas as pd

OPINION_FIGURES = ("srcc", "krcc", "plcc_raw", "plcc_fit", "rmse")
LADDER_FIGURES = ("d_test", "l_test")
FIGURES = (*OPINION_FIGURES, *LADDER_FIGURES)
LOWER_IS_BETTER = frozenset({"rmse"})
MIN_STEPS = 3

NO_OPINION = "no human scores"
NO_LADDER = "no distortion levels"


def join_scores(labels: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Labels with the columns of the stored scores; an image without any has ``error`` "not scored"."""
    rows = labels.merge(scores, on="image_hash", how="left", validate="many_to_one")
    rows["error"] = rows["error"].fillna("not scored")
    return rows


def cell_figures(rows: pd.DataFrame, *, lower_better: bool, opinion_lower_better: bool) -> dict[str, Any]:
    """All figures of a scorer on a dataset.

    Args:
        rows: From :func:`join_scores`.
        lower_better: Direction of the scorer.
        opinion_lower_better: Direction of the opinions.

    Returns:
        ``subsets``, ``distortions`` and ``levels``: name to :func:`group_figures`. Images that failed are
        counted and take no part.
    """

    def figures(part: pd.DataFrame) -> dict[str, Any]:
        return group_figures(part, lower_better=lower_better, opinion_lower_better=opinion_lower_better)

    return {
        "subsets": {"all": figures(rows)} | _each(rows, "split", figures),
        "distortions": _each(rows, "distortion", lambda part: figures(_with_pristine(rows, part))),
        "levels": _each(rows[rows["level"] > 0], "level", figures),
    }


def group_figures(rows: pd.DataFrame, *, lower_better: bool, opinion_lower_better: bool) -> dict[str, Any]:
    """The figures over some rows: ``n`` scored images, ``n_failed`` others, ``figures`` and the ``fit``."""
    good = rows[rows["error"] == ""]
    scores = st.oriented(good["score"].to_numpy(), lower_better=lower_better)
    opinions = st.oriented(good["opinion"].to_numpy(), lower_better=opinion_lower_better)
    estimates: dict[str, Estimate]
    if np.isfinite(opinions).all() and len(opinions):
        fit = st.fit_logistic4(scores, opinions)
        estimates = {
            "srcc": st.srcc(scores, opinions),
            "krcc": st.krcc(scores, opinions),
            "plcc_raw": st.plcc(scores, opinions),
            "plcc_fit": st.plcc_fitted(scores, opinions, fit),
            "rmse": st.rmse_fitted(scores, opinions, fit),
        }
        fitted = {"form": fit.form, "parameters": list(fit.parameters), "converged": fit.converged}
    else:
        estimates = dict.fromkeys(OPINION_FIGURES, st.undefined(NO_OPINION))
        fitted = {}
    estimates |= {"d_test": _d_test(good, scores), "l_test": _l_test(good, scores)}
    return {
        "n": len(good),
        "n_failed": len(rows) - len(good),
        "figures": {name: as_json(estimate) for name, estimate in estimates.items()},
        "fit": fitted,
    }


def as_json(estimate: Estimate) -> dict[str, Any]:
    """``{"value": number}``, or ``{"value": null, "reason": ...}``."""
    if estimate.defined:
        return {"value": float(estimate.value)}
    return {"value": None, "reason": estimate.reason}


def _d_test(good: pd.DataFrame, scores: np.ndarray) -> Estimate:
    if good["level"].isna().any() or not len(good):
        return st.undefined(NO_LADDER)
    return st.d_test(scores, (good["level"] == 0).to_numpy(dtype=bool))


def _l_test(good: pd.DataFrame, scores: np.ndarray) -> Estimate:
    distorted = ((good["level"] > 0).fillna(False) & (good["distortion"] != "")).to_numpy(dtype=bool)
    ladder = good[["reference", "distortion"]].apply(tuple, axis=1)
    steps = good[distorted].groupby(["reference", "distortion"])["level"].nunique()
    whole = distorted & ladder.isin(steps.index[steps >= MIN_STEPS]).to_numpy(dtype=bool)
    if not whole.any():
        return st.undefined(NO_LADDER)
    part = good[whole]
    return st.l_test(
        scores[whole],
        part["level"].to_numpy(dtype=float),
        part["reference"].to_numpy(dtype=str),
        part["distortion"].to_numpy(dtype=str),
    )


def _each(rows: pd.DataFrame, column: str, figures: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    named = rows[(rows[column].notna()) & (rows[column] != "")]
    return {str(name): figures(part) for name, part in named.groupby(column, sort=True)}


def _with_pristine(rows: pd.DataFrame, part: pd.DataFrame) -> pd.DataFrame:
    # The D-test of one distortion needs the photographs it was made from.
    import pandas as pd

    own = rows[(rows["level"] == 0).fillna(False) & (rows["distortion"] == "")]
    return pd.concat([own[own["reference"].isin(part["reference"])], part])
