"""All scorers of a dataset against each other: who is better, who is worse, and what is undecided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import ceil
from string import ascii_lowercase
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from harness.statistics.fitting import LogisticFit, fit_logistic
from harness.statistics.intervals import pseudo_values, t_half_width, without_each
from harness.statistics.registry import Images, find, measure, used
from harness.statistics.significance import (
    Outcome,
    holm,
    least_p,
    no_outcome,
    pitman_test,
    sign_flip_p,
    williams_test,
)
from qualiclip_plugin.utils.statistics import Floats, StatisticsError

Method = Literal["flip", "williams", "pitman"]
Verdict = Literal["better", "worse", "undecided", ""]
Pair = tuple[str, str]
METHODS: tuple[Method, ...] = ("flip", "williams", "pitman")

SHARED_CONTENT = "images share contents, and this test takes them for independent"


@dataclass(frozen=True)
class SignificanceMatrix:
    """All scorers of a dataset against each other; entry [i, j] is about scorer i against scorer j.

    Attributes:
        names: The scorers, (S,).
        differences: Statistic of i minus that of j, positive if i is ahead, (S, S); NaN on the diagonal.
        lows: Lower end of the interval of each difference, (S, S); NaN if there is none.
        p_values: Two-sided, adjusted by Holm over the S (S - 1) / 2 pairs, (S, S); NaN if undefined.
        verdicts: "better", "worse", "undecided", or "" on the diagonal and where there is no result.
        contents: Contents that the test is made on; independent images count as contents.
        undecidable: Why no pair can be decided, whatever the scores; empty if that is possible.
    """

    names: tuple[str, ...]
    method: Method
    statistic: str
    differences: Floats
    lows: Floats
    highs: Floats
    p_values: Floats
    verdicts: tuple[tuple[Verdict, ...], ...]
    reasons: Mapping[Pair, str] = field(default_factory=dict)
    contents: int = 0
    undecidable: str = ""


class Result(NamedTuple):
    """What a test says of one scorer against another, as in :class:`SignificanceMatrix`."""

    difference: float
    low: float
    high: float
    p: float
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class _Tests:
    outcomes: dict[Pair, Outcome]
    ends: dict[Pair, tuple[float, float]] = field(default_factory=dict)
    contents: int = 0


def significance_matrix(
    scores: Mapping[str, ArrayLike],
    images: Images,
    statistic: str = "srcc",
    *,
    method: Method = "flip",
    alpha: float = 0.05,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    fits: Mapping[str, LogisticFit] | None = None,
) -> SignificanceMatrix:
    """Test every two scorers on the same images.

    Args:
        scores: Name to scores, all higher is better, (N,) each, in the order of the images.
        statistic: Key of what sign flips compare. Williams' t compares "srcc" or "plcc_raw", Pitman's test the
            variance that the fit leaves; both are made on independent images only.
        method: "flip", "williams" or "pitman".
        alpha: Level that the adjusted p must not exceed.
        draws: Least number of random sign patterns, raised to 4 / alpha for each pair, without which many scorers
            could never be told apart after the adjustment.
        level: Coverage of the intervals of differences, each for itself.
        fits: Name to the fit of just these scores, where it is known.

    Returns:
        The matrix; a scorer without a value leaves its pairs empty with a reason.

    Raises:
        StatisticsError: NaN, different lengths, or an unknown method or statistic.
    """
    columns = {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()}
    pairs = list(combinations(columns, 2))
    draws = max(draws, ceil(4 * len(pairs) / alpha))
    if method == "flip":
        tests = _by_flips(columns, images, pairs, statistic, draws, seed, level)
    elif method in METHODS and not images.independent:
        tests = _Tests({pair: no_outcome(SHARED_CONTENT) for pair in pairs})
    elif method == "williams":
        tests = _Tests(_by_williams(columns, images, pairs, statistic), contents=len(images))
    elif method == "pitman":
        statistic = "rmse"
        tests = _Tests(_by_pitman(columns, images, pairs, fits or {}), contents=len(images))
    else:
        raise StatisticsError(f"method: {method!r} is none of {', '.join(METHODS)}")
    smallest = least_p(tests.contents, draws) if method == "flip" and tests.contents else 0.0
    return _matrix(tuple(columns), method, statistic, tests, alpha, smallest)


def _by_flips(
    columns: Mapping[str, Floats],
    images: Images,
    pairs: list[Pair],
    key: str,
    draws: int,
    seed: int,
    level: float,
) -> _Tests:
    statistic = find(key)
    if statistic.flattered:
        raise StatisticsError(
            f"statistic: {statistic.title} has no comparison, the best threshold flatters each scorer"
        )
    made = {name: without_each(statistic, values, images) for name, values in columns.items()}
    reasons = {name: reason for name, (_, _, reason) in made.items()}
    values = {name: statistic.sign * found[:, statistic.column] for name, (found, _, why) in made.items() if not why}
    reasons |= {name: "without one content it has no value" for name, own in values.items() if np.isnan(own).any()}
    outcomes = {pair: no_outcome(_lacking(pair, reasons)) for pair in pairs}
    known = [pair for pair in pairs if not outcomes[pair].reason]
    if not known:
        return _Tests(outcomes)
    gaps = np.column_stack([values[first] - values[second] for first, second in known])
    pseudo = pseudo_values(gaps[0], gaps[1:])
    p_values = sign_flip_p(pseudo, draws=draws, seed=seed)
    ends = {}
    for at, pair in enumerate(known):
        outcomes[pair] = Outcome(float(gaps[0, at]), float(p_values[at]))
        half = t_half_width(pseudo[:, at], level)
        ends[pair] = float(gaps[0, at]) - half, float(gaps[0, at]) + half
    return _Tests(outcomes, ends, len(pseudo))


def _by_williams(columns: Mapping[str, Floats], images: Images, pairs: list[Pair], key: str) -> dict[Pair, Outcome]:
    if key not in ("srcc", "plcc_raw"):
        raise StatisticsError(f"statistic: Williams' test compares srcc or plcc_raw, not {key!r}")
    outcomes = {}
    for first, second in pairs:
        own = [measure(key, columns[name], images) for name in (first, second)]
        result = no_outcome("; ".join(one.reason for one in own if one.reason))
        if not result.reason:
            result = williams_test(columns[first], columns[second], images.opinions, ranks=key == "srcc")
        outcomes[first, second] = result._replace(statistic=own[0].value - own[1].value)
    return outcomes


def _by_pitman(
    columns: Mapping[str, Floats], images: Images, pairs: list[Pair], fits: Mapping[str, LogisticFit]
) -> dict[Pair, Outcome]:
    statistic = find("rmse")
    reasons, residuals = {}, {}
    for name, values in columns.items():
        part = used(statistic, values, images)
        if isinstance(part, str):
            reasons[name] = part
            continue
        fit = fits.get(name) or fit_logistic(images.form, part[0], part[1].opinions)
        # A falling curve explains variance with the wrong sign: less error is then no merit.
        reasons[name] = fit.reason or ("" if fit.rising else "the fitted curve falls")
        residuals[name] = fit.apply(part[0]) - part[1].opinions
    outcomes = {}
    for first, second in pairs:
        result = no_outcome(_lacking((first, second), reasons))
        if not result.reason:
            a, b = residuals[first], residuals[second]
            result = pitman_test(a, b)
            gap = np.sqrt(np.mean(np.square(b))) - np.sqrt(np.mean(np.square(a)))
            result = result._replace(statistic=float(gap))
        outcomes[first, second] = result
    return outcomes


def _lacking(pair: Pair, reasons: Mapping[str, str]) -> str:
    found = {name: reasons[name] for name in pair if reasons[name]}
    if len(set(found.values())) == 1 and len(found) == 2:
        return next(iter(found.values()))
    return "; ".join(f"{name}: {reason}" for name, reason in found.items())


def _matrix(
    names: tuple[str, ...], method: Method, statistic: str, tests: _Tests, alpha: float, smallest: float
) -> SignificanceMatrix:
    outcomes = tests.outcomes
    adjusted = holm([outcome.p_value for outcome in outcomes.values()])
    results = {}
    for (pair, (difference, _, reason)), p in zip(outcomes.items(), adjusted.tolist(), strict=True):
        ends = tests.ends.get(pair, (np.nan, np.nan))
        results[pair] = Result(difference, *ends, p, _verdict(difference, p, alpha), reason)
    decidable = sum(not outcome.reason for outcome in outcomes.values())
    undecidable = _undecidable(tests.contents, decidable, smallest, alpha)
    return filled(names, method, statistic, results, tests.contents, undecidable)


def filled(
    names: tuple[str, ...],
    method: Method,
    statistic: str,
    results: Mapping[Pair, Result],
    contents: int,
    undecidable: str,
) -> SignificanceMatrix:
    """The matrix of results that are known for every two scorers in one order; the other order mirrors them."""
    differences, lows, highs, p_values = numbers = np.full((4, len(names), len(names)), np.nan)
    verdicts: list[list[Verdict]] = [[""] * len(names) for _ in names]
    mirrored: dict[Verdict, Verdict] = {"better": "worse", "worse": "better"}
    for (first, second), (difference, low, high, p, verdict, _) in results.items():
        i, j = names.index(first), names.index(second)
        numbers[:, i, j], numbers[:, j, i] = (difference, low, high, p), (-difference, -high, -low, p)
        verdicts[i][j], verdicts[j][i] = verdict, mirrored.get(verdict, verdict)
    reasons = {pair: result.reason for pair, result in results.items() if result.reason}
    rows = tuple(tuple(row) for row in verdicts)
    return SignificanceMatrix(
        names, method, statistic, differences, lows, highs, p_values, rows, reasons, contents, undecidable
    )


def _undecidable(contents: int, pairs: int, smallest: float, alpha: float) -> str:
    if not pairs or smallest * pairs <= alpha:
        return ""
    for_pairs = f", times {pairs} pairs" if pairs > 1 else ""
    return f"{contents} contents: no test can decide (the smallest p they can give is {smallest:.2g}{for_pairs})"


def _verdict(difference: float, p_value: float, alpha: float) -> Verdict:
    if np.isnan(p_value):
        return ""
    if p_value > alpha or difference == 0:
        return "undecided"
    return "better" if difference > 0 else "worse"


def rank_ranges(matrix: SignificanceMatrix) -> dict[str, tuple[int, int]]:
    """The ranks that each scorer may have, best 1, as far as the tests decide.

    At most all others that are not decided to be worse stand before it, at least those that are decided to be
    better. Tests adjusted for all pairs make these ranges hold together (Mogstad et al., Review of Economic
    Studies 2024).

    Returns:
        Name to lowest and highest rank.
    """
    number = len(matrix.names)
    return {
        name: (1 + row.count("worse"), number - row.count("better"))
        for name, row in zip(matrix.names, matrix.verdicts, strict=True)
    }


def compact_letters(matrix: SignificanceMatrix, order: Sequence[str]) -> dict[str, str]:
    """Letters so that two scorers share one just where no test tells them apart (Piepho, JCGS 2004).

    Args:
        matrix: Of any test; a pair without a result counts as undecided.
        order: The names, best first; the first has the letter a.

    Returns:
        Name to its letters.
    """
    groups = [frozenset(order)]
    for first, second in combinations(order, 2):
        i, j = matrix.names.index(first), matrix.names.index(second)
        if matrix.verdicts[i][j] not in ("better", "worse"):
            continue
        both = {first, second}
        split = [part for group in groups for part in ([group - {one} for one in both] if both <= group else [group])]
        groups = [group for group in dict.fromkeys(split) if not any(group < other for other in split)]
    groups.sort(key=lambda group: sorted(order.index(name) for name in group))
    letters = [*ascii_lowercase, *(f"({place})" for place in range(len(ascii_lowercase) + 1, len(groups) + 1))]
    return {name: "".join(letters[at] for at, group in enumerate(groups) if name in group) for name in order}
