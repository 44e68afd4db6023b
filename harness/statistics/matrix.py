"""All scorers of a dataset against each other: who is better, who is worse, and what is undecided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from math import ceil
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from harness.statistics.checks import Floats, StatisticsError, finite_vector, finite_vectors
from harness.statistics.fitting import Form, fit_logistic
from harness.statistics.intervals import resampled_statistic, too_few_clusters
from harness.statistics.resampling import bootstrap_draws
from harness.statistics.significance import (
    Outcome,
    compare_draws,
    direction,
    estimate_statistic,
    f_test,
    holm,
    no_outcome,
    paired_mean,
    williams_test,
)

Method = Literal["bootstrap", "williams", "f"]
Verdict = Literal["better", "worse", "undecided", ""]


@dataclass(frozen=True)
class SignificanceMatrix:
    """All scorers of a dataset against each other; entry [i, j] is about scorer i against scorer j.

    Attributes:
        names: The scorers, (S,).
        method: Which test was made.
        differences: Statistic of i minus that of j, positive where i is ahead, (S, S); NaN on the diagonal.
        p_values: Two-sided, adjusted by Holm over the S (S - 1) / 2 pairs, (S, S); NaN where undefined.
        verdicts: "better", "worse", "undecided", or "" on the diagonal and where there is no result.
        reasons: Why a pair of names has no result.
    """

    names: tuple[str, ...]
    method: Method
    differences: Floats
    p_values: Floats
    verdicts: tuple[tuple[Verdict, ...], ...]
    reasons: Mapping[tuple[str, str], str] = field(default_factory=dict)


def significance_matrix(
    scores: Mapping[str, ArrayLike],
    opinions: ArrayLike,
    *,
    method: Method = "bootstrap",
    statistic: str = "srcc",
    clusters: ArrayLike | None = None,
    alpha: float = 0.05,
    draws: int = 2000,
    seed: int = 0,
    form: Form = "logistic4",
) -> SignificanceMatrix:
    """Test every two scorers on the same images.

    Args:
        scores: Name to scores, all higher is better, (N,) each, in one order of the images.
        opinions: Opinions, higher is better, (N,).
        method: "bootstrap" compares ``statistic`` on the same resamples, "williams" SRCC by Williams' t
            (raw PLCC where ``statistic`` is "plcc"), "f" the residual variance after the fit.
        statistic: What the bootstrap compares, one of :data:`harness.statistics.STATISTICS`.
        clusters: Reference content of each image, (N,), for the bootstrap.
        alpha: Level that the adjusted p must not exceed.
        draws: Least number of resamples. As p is at least 2 / (draws + 1), it is raised to 4 / alpha for
            each pair, without which many scorers could never be told apart after the adjustment.
        seed: Same seed, same matrix.
        form: Curve of the fits.

    Returns:
        The matrix; a scorer without a value leaves its pairs empty with a reason.

    Raises:
        StatisticsError: NaN, different lengths, or an unknown method or statistic.
    """
    y = finite_vector("opinions", opinions)
    columns = {name: finite_vectors(**{name: values, "opinions": y})[0] for name, values in scores.items()}
    pairs = list(combinations(columns, 2))
    if method == "bootstrap":
        draws = _enough_draws(draws, len(columns), alpha)
        outcomes = _bootstrap_pairs(columns, y, pairs, statistic, clusters, draws, seed, form)
    elif method == "williams":
        outcomes = _williams_pairs(columns, y, pairs, statistic)
    elif method == "f":
        outcomes = _f_pairs(columns, y, pairs, form)
    else:
        raise StatisticsError(f"method: {method!r} is none of bootstrap, williams, f")
    return _matrix(tuple(columns), method, dict(zip(pairs, outcomes, strict=True)), alpha)


def mean_significance_matrix(
    values: Mapping[str, ArrayLike],
    *,
    clusters: ArrayLike | None = None,
    alpha: float = 0.05,
    draws: int = 2000,
    seed: int = 0,
) -> SignificanceMatrix:
    """Test every two scorers by their means over the same items: the L-test over the same ladders.

    Args:
        values: Name to one value per item, higher is better, (M,) each, in one order of the items.
        clusters: Content of each item, (M,).
        alpha: Level that the adjusted p must not exceed.
        draws: Least number of resamples, raised as in :func:`significance_matrix`.
        seed: Same seed, same matrix.

    Returns:
        The matrix, method "bootstrap".

    Raises:
        StatisticsError: NaN, infinite values or different lengths.
    """
    draws = _enough_draws(draws, len(values), alpha)
    tests = {}
    for first, second in combinations(values, 2):
        compared = paired_mean(values[first], values[second], clusters=clusters, draws=draws, seed=seed)
        tests[first, second] = Outcome(compared.difference, compared.p_value, compared.reason)
    return _matrix(tuple(values), "bootstrap", tests, alpha)


def _bootstrap_pairs(
    columns: Mapping[str, Floats],
    y: Floats,
    pairs: list[tuple[str, str]],
    statistic: str,
    clusters: ArrayLike | None,
    draws: int,
    seed: int,
    form: Form,
) -> list[Outcome]:
    # Each scorer is resampled once; the shared seed gives all of them the same resamples.
    values = {name: estimate_statistic(statistic, scores, y, form) for name, scores in columns.items()}
    resampled = {
        name: bootstrap_draws(
            resampled_statistic(statistic, columns[name], y, form),
            len(y),
            clusters=clusters,
            draws=draws,
            seed=seed,
        )
        for name, value in values.items()
        if value.defined
    }
    sign = direction(statistic)
    outcomes = []
    for pair in pairs:
        lacking = [f"{name}: {values[name].reason}" for name in pair if not values[name].defined]
        lacking = lacking or [reason for reason in [too_few_clusters(clusters, len(y))] if reason]
        if lacking:
            outcomes.append(no_outcome("; ".join(lacking)))
            continue
        first, second = pair
        gap = sign * (values[first].value - values[second].value)
        compared = compare_draws(gap, sign * (resampled[first] - resampled[second]))
        outcomes.append(Outcome(compared.difference, compared.p_value, compared.reason))
    return outcomes


def _williams_pairs(
    columns: Mapping[str, Floats], y: Floats, pairs: list[tuple[str, str]], statistic: str
) -> list[Outcome]:
    if statistic not in ("srcc", "plcc"):
        raise StatisticsError(f"statistic: Williams' test compares srcc or plcc, not {statistic!r}")
    ranks = statistic == "srcc"
    outcomes = []
    for first, second in pairs:
        result = williams_test(columns[first], columns[second], y, ranks=ranks)
        gap = (
            estimate_statistic(statistic, columns[first], y).value
            - estimate_statistic(statistic, columns[second], y).value
        )
        outcomes.append(result._replace(statistic=gap))
    return outcomes


def _f_pairs(columns: Mapping[str, Floats], y: Floats, pairs: list[tuple[str, str]], form: Form) -> list[Outcome]:
    fits = {name: fit_logistic(form, scores, y) for name, scores in columns.items()}
    residuals = {name: fit.apply(columns[name]) - y for name, fit in fits.items() if not fit.reason}
    parameters = {"logistic4": 4, "logistic5": 5}[form]
    outcomes = []
    for first, second in pairs:
        lacking = [f"{name}: {fits[name].reason}" for name in (first, second) if fits[name].reason]
        # A falling curve explains variance with the wrong sign: less error is then no merit.
        lacking += [f"{n}: the fitted curve falls" for n in (first, second) if not fits[n].rising]
        if lacking:
            outcomes.append(no_outcome("; ".join(lacking)))
            continue
        a, b = residuals[first], residuals[second]
        result = f_test(a, b, parameters=parameters)
        gap = float(np.sqrt(np.mean(np.square(b))) - np.sqrt(np.mean(np.square(a))))
        outcomes.append(result._replace(statistic=gap))
    return outcomes


def _enough_draws(draws: int, scorers: int, alpha: float) -> int:
    pairs = scorers * (scorers - 1) // 2
    return max(draws, ceil(4 * pairs / alpha))


def _matrix(
    names: tuple[str, ...], method: Method, tests: Mapping[tuple[str, str], Outcome], alpha: float
) -> SignificanceMatrix:
    adjusted = holm([test.p_value for test in tests.values()])
    index = {name: i for i, name in enumerate(names)}
    differences = np.full((len(names), len(names)), np.nan)
    p_values = np.full_like(differences, np.nan)
    for (first, second), test, p in zip(tests, tests.values(), adjusted, strict=True):
        i, j = index[first], index[second]
        differences[i, j], differences[j, i] = test.statistic, -test.statistic
        p_values[i, j] = p_values[j, i] = p
    verdicts = tuple(
        tuple(_verdict(d, p, alpha) for d, p in zip(row, ps, strict=True))
        for row, ps in zip(differences, p_values, strict=True)
    )
    reasons = {pair: test.reason for pair, test in tests.items() if test.reason}
    return SignificanceMatrix(names, method, differences, p_values, verdicts, reasons)


def _verdict(difference: float, p_value: float, alpha: float) -> Verdict:
    if np.isnan(p_value):
        return ""
    if p_value > alpha or difference == 0:
        return "undecided"
    return "better" if difference > 0 else "worse"
