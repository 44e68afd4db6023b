"""The leaderboard's statistics against SciPy, hand-computed cases, published values and properties."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.optimize import curve_fit

from harness import statistics as hs
from harness.statistics import fitting, registry, resampling
from harness.statistics.registry import STATISTICS
from qualiclip_plugin.utils.errors import QualiCLIPError

CORRELATIONS = {"srcc": hs.srcc, "krcc": hs.krcc, "plcc": hs.plcc}
# Whole numbers keep sums exact, so that a property fails only where the statistic is wrong.
VALUES = st.integers(-50, 50).map(float)


def simulated(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores and opinions on 0..100 with a saturating relation."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=n)
    return scores, 50 + 25 * np.tanh(scores) + generator.normal(scale=8, size=n)


def two_rows(low: int = 4, high: int = 30) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    return st.integers(low, high).flatmap(
        lambda n: st.tuples(arrays(np.float64, n, elements=VALUES), arrays(np.float64, n, elements=VALUES))
    )


def tau_b_by_pairs(x: np.ndarray, y: np.ndarray) -> float:
    pairs = list(combinations(range(len(x)), 2))
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in pairs]
    untied = np.prod([sum(sign[side] != 0 for sign in signs) for side in (0, 1)])
    return float(sum(a * b for a, b in signs) / np.sqrt(untied))


# --- correlations -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_correlations_equal_scipy(tied: bool) -> None:
    x, y = simulated()
    if tied:
        x, y = np.round(x), np.round(y, -1)
    assert hs.srcc(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert hs.plcc(x, y).value == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert hs.krcc(x, y).value == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


def test_srcc_of_the_textbook_example() -> None:
    # IQ and hours of television of ten people: rho = -29/165 (Wikipedia, Spearman's rank correlation).
    iq = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110]
    hours = [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert hs.srcc(iq, hours).value == pytest.approx(-29 / 165, abs=1e-12)


def test_krcc_of_the_example_in_scipys_documentation() -> None:
    assert hs.krcc([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]).value == pytest.approx(-0.47140452079103173, abs=1e-12)


def test_hand_computed_values_with_ties() -> None:
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5.
    assert hs.srcc([1, 2, 2, 3], [1, 2, 3, 4]).value == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    # 5 concordant pairs, one tied in the scores: 5 / sqrt(5 * 6).
    assert hs.krcc([1, 2, 2, 3], [1, 2, 3, 4]).value == pytest.approx(5 / np.sqrt(30))
    assert hs.rmse([1, 2, 3], [1, 2, 6]).value == pytest.approx(np.sqrt(3))


@given(two_rows())
@settings(max_examples=60, deadline=None)
def test_krcc_counts_pairs(rows: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = rows
    if np.ptp(x) and np.ptp(y):
        assert hs.krcc(x, y).value == pytest.approx(tau_b_by_pairs(x, y), abs=1e-12)


@pytest.mark.parametrize("name", CORRELATIONS)
@given(rows=two_rows(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_correlations_are_signed_symmetric_and_ignore_order(
    name: str, rows: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    correlation, (x, y) = CORRELATIONS[name], rows
    value, reason = correlation(x, y)
    if reason:
        assert np.isnan(value)
        assert not np.ptp(x) or not np.ptp(y)
        return
    assert -1 <= value <= 1
    assert correlation(-x, y).value == pytest.approx(-value, abs=1e-12)
    assert correlation(y, x).value == pytest.approx(value, abs=1e-12)
    shuffled = np.array(data.draw(st.permutations(range(len(x)))))
    assert correlation(x[shuffled], y[shuffled]).value == pytest.approx(value, abs=1e-12)
    assert correlation(3 * x + 7, y).value == pytest.approx(value, abs=1e-12)


@given(two_rows())
@settings(max_examples=40, deadline=None)
def test_rank_correlations_ignore_monotonic_maps(rows: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = rows
    if np.ptp(x) and np.ptp(y):
        for correlation in (hs.srcc, hs.krcc):
            assert correlation(x**3, y).value == pytest.approx(correlation(x, y).value, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1e9, 1e300])
def test_correlations_at_any_scale(scale: float) -> None:
    x, y = simulated(50)
    for correlation in CORRELATIONS.values():
        assert correlation(scale * x, y).value == pytest.approx(correlation(x, y).value, abs=1e-9)


def test_direction_is_applied_once_and_never_hidden() -> None:
    x, y = simulated()
    niqe_like = 10 - x
    assert hs.srcc(niqe_like, y).value == pytest.approx(-hs.srcc(x, y).value)
    assert hs.srcc(hs.oriented(niqe_like, lower_better=True), y) == hs.srcc(x - 10, y)
    np.testing.assert_array_equal(hs.oriented([1, 2], lower_better=False), [1.0, 2.0])


# --- undefined and unusable ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORRELATIONS)
def test_undefined_has_a_reason(name: str) -> None:
    correlation = CORRELATIONS[name]
    cases = [
        (correlation([2, 2, 2, 2], [1, 2, 3, 4]), "all scores are 2"),
        (correlation([1, 2, 3, 4], [5, 5, 5, 5]), "all opinions are 5"),
        (correlation([1, 2], [1, 2]), "2 images, 3 needed"),
        (correlation([], []), "0 images"),
    ]
    for estimate, reason in cases:
        assert np.isnan(estimate.value)
        assert not estimate.defined
        assert reason in estimate.reason


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "call",
    [
        hs.srcc,
        hs.krcc,
        hs.plcc,
        hs.rmse,
        partial(hs.fit_logistic, "logistic4"),
        partial(hs.fit_logistic, "logistic5"),
        lambda x, y: hs.interval("srcc", x, hs.rated(y)),
        lambda x, y: hs.interval("srcc", y, hs.rated(x)),
        lambda x, y: hs.williams_test(y, x, y),
        lambda x, y: hs.pitman_test(y, x),
        lambda x, y: hs.significance_matrix({"a": y, "b": x}, hs.rated(y)),
        lambda x, y: hs.krasula(y, y, x),
        lambda x, _: hs.d_test(x, np.arange(len(x)) > 2),
        lambda x, y: hs.l_test(x, y, [0] * len(x), [0] * len(x)),
        hs.gmad_pairs,
    ],
)
def test_nan_and_infinite_values_are_errors_that_name_the_index(
    call: Callable[[np.ndarray, np.ndarray], object], value: float
) -> None:
    x, y = simulated(9)
    x[5] = value
    with pytest.raises(hs.StatisticsError, match=f"{value} at index 5"):
        call(x, y)


def test_errors_are_declared_ones() -> None:
    assert issubclass(hs.StatisticsError, QualiCLIPError)
    with pytest.raises(hs.StatisticsError, match="scores has 3, opinions has 4"):
        hs.srcc([1, 2, 3], [1, 2, 3, 4])
    with pytest.raises(hs.StatisticsError, match="one dimension"):
        hs.srcc(np.ones((3, 1)), [1, 2, 3])
    with pytest.raises(hs.StatisticsError, match="and 1 more"):
        hs.srcc([np.nan, 1, np.nan], [1, 2, 3])


# --- fits ---------------------------------------------------------------------------------------------


def test_fit4_recovers_known_parameters() -> None:
    scores = np.linspace(2, 12, 200)
    opinions = (90 - 10) / (1 + np.exp(-(scores - 7) / 1.5)) + 10
    fit = hs.fit_logistic("logistic4", scores, opinions)
    np.testing.assert_allclose(fit.parameters, [90, 10, 7, 1.5], rtol=1e-6)
    np.testing.assert_allclose(fit.apply(scores), opinions, rtol=1e-8)
    assert fit.converged
    assert fit.rising


def test_fit4_equals_scipy_from_the_field_s_start() -> None:
    x, y = simulated(400, seed=3)

    def published(s: np.ndarray, b1: float, b2: float, b3: float, b4: float) -> np.ndarray:
        return (b1 - b2) / (1 + np.exp(-(s - b3) / np.abs(b4))) + b2

    start = [y.max(), y.min(), x.mean(), x.std() / 4]
    expected, _ = curve_fit(published, x, y, p0=start, maxfev=20_000)
    np.testing.assert_allclose(hs.fit_logistic("logistic4", x, y).apply(x), published(x, *expected), atol=1e-3)


def test_fit5_is_the_published_function_and_never_worse_than_a_line() -> None:
    x, y = simulated(400, seed=4)
    fit = hs.fit_logistic("logistic5", x, y)
    b1, b2, b3, b4, b5 = fit.parameters
    z = (x - x.mean()) / x.std()
    np.testing.assert_allclose(fit.apply(x), b1 * (0.5 - 1 / (1 + np.exp(b2 * (z - b3)))) + b4 * z + b5, atol=1e-9)
    line = np.polyval(np.polyfit(x, y, 1), x)
    assert hs.rmse_fitted(x, y, fit).value < hs.rmse(line, y).value
    assert hs.rmse_fitted(x, y, fit).value <= hs.rmse_fitted(x, y, hs.fit_logistic("logistic4", x, y)).value + 1e-6


@pytest.mark.parametrize("form", ["logistic4", "logistic5"])
def test_fits_converge_on_simulated_scores(form: str) -> None:
    # The property that rules out the usual five-parameter starts, which fail on most of such draws.
    for seed in range(100):
        generator = np.random.default_rng(seed)
        opinions = generator.beta(3, 2, size=150) * 4 + 1
        scores = np.exp(generator.normal(size=1)) * (opinions + generator.normal(size=150)) + 40
        fit = hs.fit_logistic(form, scores, opinions)  # type: ignore[arg-type]
        assert fit.converged, seed
        gain = hs.plcc_fitted(scores, opinions, fit).value - hs.plcc(scores, opinions).value
        assert gain > -1e-6, seed


@pytest.mark.parametrize("form", ["logistic4", "logistic5"])
def test_no_other_start_finds_a_better_curve(form: str) -> None:
    # From the usual start alone, one in twelve such draws ends more than .5 % above the best.
    for seed in range(12):
        generator = np.random.default_rng(seed)
        opinions = generator.normal(size=120)
        z = stats.zscore(0.15 * opinions + generator.normal(size=120))
        curve = fitting.CURVES[form].function  # type: ignore[index]
        fit = hs.fit_logistic(form, z, opinions)  # type: ignore[arg-type]
        own = np.square(fit.apply(z) - opinions).sum()
        size = len(fit.parameters)
        starts = generator.normal(size=(15, size)) * (1.0, 1.0, 1.5, 1.0, 1.0)[:size]
        found = [fitting._least_squares(form, z, opinions, start, 2000)[0] for start in starts]  # type: ignore[arg-type]
        assert own <= 1.005 * min(np.square(curve(z, parameters) - opinions).sum() for parameters in found), seed


@pytest.mark.parametrize("form", ["logistic4", "logistic5"])
def test_fit_does_not_depend_on_the_scale(form: str) -> None:
    x, y = simulated()
    plain = hs.fit_logistic(form, x, y)  # type: ignore[arg-type]
    scaled = hs.fit_logistic(form, 1e-6 * x + 5, y / 25)  # type: ignore[arg-type]
    np.testing.assert_allclose(scaled.apply(1e-6 * x + 5), plain.apply(x) / 25, rtol=1e-4)


@pytest.mark.parametrize("form", ["logistic4", "logistic5"])
def test_a_reversed_scorer_stays_negative_after_the_fit(form: str) -> None:
    x, y = simulated()
    right, reversed_ = (hs.fit_logistic(form, s, y) for s in (x, -x))  # type: ignore[arg-type]
    assert right.rising
    assert not reversed_.rising
    assert hs.plcc(reversed_.apply(-x), y).value > 0.8
    assert hs.plcc_fitted(-x, y, reversed_).value == pytest.approx(-hs.plcc_fitted(x, y, right).value, abs=1e-4)
    assert hs.rmse_fitted(-x, y, reversed_).value == pytest.approx(hs.rmse_fitted(x, y, right).value, rel=1e-3)


def test_undefined_fit_says_why() -> None:
    fit = hs.fit_logistic("logistic4", [1, 1, 1, 1], [1, 2, 3, 4])
    assert fit.reason == "all scores are 1"
    assert np.isnan(fit.apply([1, 2])).all()
    assert hs.plcc_fitted([1, 1, 1, 1], [1, 2, 3, 4], fit).reason == fit.reason
    assert hs.rmse_fitted([1, 1, 1, 1], [1, 2, 3, 4], fit).reason == fit.reason
    assert "3 images, 4 needed" in hs.fit_logistic("logistic4", [1, 2, 3], [1, 2, 3]).reason
    assert "4 images, 5 needed" in hs.fit_logistic("logistic5", [1, 2, 3, 4], [1, 2, 3, 4]).reason


# --- intervals ----------------------------------------------------------------------------------------


def taken_one_by_one(key: str, x: np.ndarray, images: hs.Images, counts: np.ndarray) -> np.ndarray:
    rows = [np.flatnonzero(count) for count in counts]
    return np.array([hs.measure(key, x[row], images.part(row)).value for row in rows])  # type: ignore[arg-type]


def without_contents(images: hs.Images, number: int = 10) -> np.ndarray:
    """Counts that leave out one or several contents at a time, (B, N)."""
    generator = np.random.default_rng(1)
    kept = generator.random((number, images.clusters.max() + 1)) > 0.25
    return kept[:, images.clusters].astype(float)


@pytest.mark.parametrize("key", ["srcc", "krcc", "plcc_raw"])
@pytest.mark.parametrize("limit", [5_000, 0])
def test_resampled_correlations_equal_gathering(key: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "_MATRIX_LIMIT", limit)
    x, y = simulated(40)
    x, images = np.round(x, 1), hs.rated(y)
    counts = without_contents(images, 30)
    counts[0] = np.eye(40)[3]
    expected = taken_one_by_one(key, x, images, counts)
    assert np.isnan(expected[0])
    np.testing.assert_allclose(STATISTICS[key].resampled(x, images)(counts), expected, atol=1e-12)


@pytest.mark.parametrize("form", ["logistic4", "logistic5"])
def test_resampled_fits_equal_fitting_each_part(form: str) -> None:
    x, y = simulated(300, seed=2)
    images = hs.rated(y, form=form)  # type: ignore[arg-type]
    counts = without_contents(images)
    found = STATISTICS["rmse"].resampled(x, images)(counts)
    for column, key in enumerate(("plcc_fit", "rmse")):
        np.testing.assert_allclose(found[:, column], taken_one_by_one(key, x, images, counts), rtol=2e-3)


def known_ladders(contents: int = 6) -> tuple[np.ndarray, hs.Images]:
    """Scores of three levels of two distortion types and the pristine photographs, with qualities."""
    rows = [
        (c, k, level)
        for c in range(contents)
        for k in ("", "blur", "noise")
        for level in (1, 2, 3)
        if k or level == 1
    ]
    content, kind, level = (np.array(column) for column in zip(*rows, strict=True))
    level = np.where(kind == "", 0, level).astype(float)
    images = hs.Images(np.full(len(rows), np.nan), content.astype(str), kind, level, -level[None], (2.0,))
    return -level + np.random.default_rng(0).normal(size=len(rows)), images


@pytest.mark.parametrize("key", ["l_test", "p_test"])
def test_resampled_tests_of_severity_equal_gathering(key: str) -> None:
    scores, images = known_ladders()
    counts = without_contents(images)
    images_used, scores_used = images, scores
    if key == "l_test":
        images_used, scores_used = images.part(images.in_ladder), scores[images.in_ladder]
        counts = counts[:, images.in_ladder]
    found = STATISTICS[key].resampled(scores_used, images_used)(counts)
    np.testing.assert_allclose(found, taken_one_by_one(key, scores_used, images_used, counts), atol=1e-12)


def test_resampled_d_test_judges_a_content_by_the_threshold_of_the_others() -> None:
    scores, images = known_ladders()
    pristine = images.levels == 0
    right = []
    for content in range(6):
        own = images.clusters == content
        threshold = max(
            np.unique(scores[~own]),
            key=lambda t: np.mean(scores[~own & pristine] > t) + np.mean(scores[~own & ~pristine] <= t),
        )
        right.append(
            (np.mean(scores[own & pristine] > threshold) + np.mean(scores[own & ~pristine] <= threshold)) / 2
        )
    whole = STATISTICS["d_test"].resampled(scores, images)(np.ones((1, len(scores))))
    assert whole[0] == pytest.approx(np.mean(right))
    interval = hs.interval("d_test", scores, images)
    assert interval.low < whole[0] <= hs.measure("d_test", scores, images).value < interval.high


def test_interval_of_the_l_test_is_nearly_the_t_interval_of_content_means() -> None:
    scores, images = known_ladders()
    used = images.in_ladder
    ladders = hs.ladder_correlations(scores[used], images.levels[used], images.contents[used], images.kinds[used])
    means = [ladders.values[ladders.contents == content].mean() for content in np.unique(ladders.contents)]
    found = hs.interval("l_test", scores, images)
    assert found.contents == 6
    # On Fisher's z, by the delta method: its slope is 1 / (1 - L^2).
    centre = np.mean(means)
    half = stats.t.ppf(0.975, 5) * stats.sem(means) / (1 - centre**2)
    expected = np.tanh([np.arctanh(centre) - half, np.arctanh(centre) + half])
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.05)


def test_interval_of_plcc_is_near_fisher_s() -> None:
    generator = np.random.default_rng(5)
    x = generator.normal(size=500)
    y = 0.8 * x + 0.6 * generator.normal(size=500)
    fisher = stats.pearsonr(x, y).confidence_interval()
    interval = hs.interval("plcc_raw", x, hs.rated(y))
    assert interval.low == pytest.approx(fisher.low, abs=0.015)
    assert interval.high == pytest.approx(fisher.high, abs=0.015)


def test_clusters_widen_the_interval_and_single_image_clusters_do_not() -> None:
    generator = np.random.default_rng(0)
    contents = np.repeat(np.arange(20), 30)
    shift = generator.normal(size=20)[contents]
    x = shift + 0.3 * generator.normal(size=600)
    y = 0.5 * shift + generator.normal(size=20)[contents] + 0.3 * generator.normal(size=600)
    by_image, by_content = (hs.interval("srcc", x, hs.rated(y, given)) for given in (None, contents))
    assert by_content.high - by_content.low > 2 * (by_image.high - by_image.low)
    alone = hs.interval("srcc", x, hs.rated(y, [f"image {i:03d}" for i in range(600)]))
    assert (alone.low, alone.high) == pytest.approx((by_image.low, by_image.high), abs=0.003)
    # An image of unknown content stands for itself.
    assert hs.rated(y[:3], ["", "a", ""]).clusters.max() == 2


def test_very_many_contents_are_left_out_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = simulated(200)
    each = hs.interval("srcc", x, hs.rated(y))
    monkeypatch.setattr(registry, "MAX_GROUPS", 50)
    grouped = hs.interval("srcc", x, hs.rated(y))
    assert (each.contents, grouped.contents) == (200, 50)
    assert (grouped.low, grouped.high) == pytest.approx((each.low, each.high), abs=0.02)


def test_nothing_is_certain_because_a_few_images_agree() -> None:
    perfect = hs.interval("srcc", [1, 2, 3, 4, 5], hs.rated([1.0, 2, 3, 4, 5]))
    assert np.isnan(perfect.low)
    assert "perfect order: 5 contents are too few" in perfect.reason
    _, images = known_ladders()
    assert "perfect order" in hs.interval("l_test", -images.levels, images).reason
    assert hs.measure("l_test", -images.levels, images).value == 1


def test_undefined_intervals_say_why() -> None:
    x, y = simulated(30)
    assert hs.interval("srcc", np.ones(30), hs.rated(y)).reason == "all scores are 1"
    assert "2 contents, 3 needed" in hs.interval("srcc", x, hs.rated(y, np.arange(30) % 2)).reason
    odd = np.r_[np.zeros(29), 1.0]
    assert hs.interval("srcc", odd, hs.rated(y)).reason == "without one of 30 contents it has no value"
    assert hs.interval("l_test", x, hs.rated(y)).reason == registry.NO_LEVEL
    with pytest.raises(hs.StatisticsError, match="'auc' is none of srcc"):
        hs.interval("auc", x, hs.rated(y))
    with pytest.raises(hs.StatisticsError, match="level"):
        hs.interval("srcc", x, hs.rated(y), level=1.0)


def test_every_statistic_has_all_that_tables_need() -> None:
    scores, images = known_ladders()
    _, y = simulated(len(scores))
    rated = dataclasses.replace(images, opinions=y)
    for key, statistic in STATISTICS.items():
        assert statistic.key == key
        assert statistic.title
        assert statistic.meaning.endswith(".")
        value, interval = hs.measure(key, scores, rated).value, hs.interval(key, scores, rated)
        low, high = statistic.range
        assert low <= interval.low <= value <= interval.high <= high, key


# --- splits and groups --------------------------------------------------------------------------------


def test_split_summary_is_the_median_of_splits() -> None:
    x, y = simulated(90)
    splits = [np.arange(0, 30), np.arange(30, 60), np.arange(60, 90)]
    summary = hs.split_summary(x, y, splits)
    expected = [stats.spearmanr(x[s], y[s]).statistic for s in splits]
    assert summary.median == pytest.approx(np.median(expected))
    assert summary.std == pytest.approx(np.std(expected, ddof=1))
    np.testing.assert_allclose(summary.values, expected)


def test_one_undefined_split_leaves_no_median() -> None:
    x, y = simulated(30)
    summary = hs.split_summary(x, y, [np.arange(20), np.arange(2)])
    assert np.isnan(summary.median)
    assert summary.reason == "split 1: 2 images, 3 needed"
    with pytest.raises(hs.StatisticsError, match=r"split 0: index outside 0\.\.29"):
        hs.split_summary(x, y, [[30]])


def test_content_splits_never_share_a_content() -> None:
    contents = np.array([f"ref{i % 25}" for i in range(200)])
    splits = hs.content_splits(contents, splits=10, seed=3)
    assert len(splits) == 10
    assert len({tuple(split) for split in splits}) > 1
    for split in splits:
        inside = set(contents[split])
        outside = set(np.delete(contents, split))
        assert len(inside) == 5
        assert not inside & outside
    np.testing.assert_array_equal(splits[0], hs.content_splits(contents, seed=3)[0])


# --- ladders ------------------------------------------------------------------------------------------


def test_d_test_by_hand() -> None:
    # T = 3: 2 of 2 pristine above, 3 of 4 distorted at or below.
    scores = [4, 5, 1, 2, 3, 6]
    pristine = [True, True, False, False, False, False]
    assert hs.d_test(scores, pristine).value == pytest.approx((1 + 3 / 4) / 2)
    assert hs.d_test([5, 6, 1, 2], [True, True, False, False]).value == 1
    assert hs.d_test([1, 2, 5, 6], [True, True, False, False]).value == 0.5
    assert hs.d_test([1, 2], [True, True]).reason == "no distorted image"
    assert hs.d_test([1, 2], [False, False]).reason == "no pristine image"
    assert hs.d_test([1, 1], [True, False]).reason == "all scores are 1"


@given(arrays(np.float64, 12, elements=VALUES), arrays(np.bool_, 12))
@settings(max_examples=60, deadline=None)
def test_d_test_is_the_best_of_all_thresholds(scores: np.ndarray, pristine: np.ndarray) -> None:
    estimate = hs.d_test(scores, pristine)
    if estimate.defined:
        thresholds = np.r_[scores.min() - 1, scores]
        by_hand = [(np.mean(scores[pristine] > t) + np.mean(scores[~pristine] <= t)) / 2 for t in thresholds]
        assert estimate.value == pytest.approx(max(by_hand))


def test_l_test_by_hand() -> None:
    levels = [0, 1, 2, 0, 1, 2]
    contents = ["cat"] * 6
    kinds = ["blur"] * 3 + ["noise"] * 3
    # One ladder in order (+1), one with the last two levels swapped: ranks 3 1 2 against 3 2 1, rho .5.
    assert hs.l_test([9, 5, 1, 9, 1, 5], levels, contents, kinds).value == pytest.approx(0.75)
    assert hs.l_test([1, 2, 3, 1, 2, 3], levels, contents, kinds).value == pytest.approx(-1)
    ladders = hs.ladder_correlations([9, 5, 1, 4, 4, 4], levels, contents, kinds)
    assert list(ladders.kinds) == ["blur", "noise"]
    assert ladders.tied == 1
    assert hs.l_test([9, 5, 1, 4, 4, 4], levels, contents, kinds).value == pytest.approx(0.5)
    assert "every ladder" in hs.l_test([4] * 6, levels, contents, kinds).reason
    assert hs.l_test([], [], [], []).reason == "no ladder"
    with pytest.raises(hs.StatisticsError, match="ladder noise on cat"):
        hs.l_test([1, 2, 3, 4], [0, 1, 2, 0], ["cat"] * 4, ["blur"] * 3 + ["noise"])


def test_l_test_keeps_ladders_apart_whatever_the_order_of_rows() -> None:
    generator = np.random.default_rng(0)
    rows = [(c, k, level) for c in ("a", "b") for k in ("blur", "jpeg") for level in range(6)]
    contents, kinds, levels = (np.array(column) for column in zip(*rows, strict=True))
    # Contents differ by far more than levels do: a correlation across contents would not be 1.
    scores = 100.0 * (contents == "a") - levels.astype(float)
    order = generator.permutation(len(rows))
    estimate = hs.l_test(scores[order], levels[order].astype(float), contents[order], kinds[order])
    assert estimate.value == pytest.approx(1)


def test_p_test_by_hand() -> None:
    references = [[1, 5, 9, 9.5], [10, 50, 40, 90]]
    better, worse = hs.discriminable_pairs(references, [2, 5])
    # 1 over 0, 2 over 0, 3 over 0 and 3 over 1; the first metric does not separate 2 and 3, 1 and 2 disagree.
    assert set(zip(better.tolist(), worse.tolist(), strict=True)) == {(1, 0), (2, 0), (3, 0), (3, 1)}
    assert hs.p_test([1, 2, 0, 2], better, worse).value == pytest.approx(2 / 4)
    assert hs.p_test([1, 2], [], []).reason == "no pair"
    with pytest.raises(hs.StatisticsError, match=r"outside 0\.\.1"):
        hs.p_test([1, 2], [0], [2])
    with pytest.raises(hs.StatisticsError, match="positive"):
        hs.discriminable_pairs(references, [2, 0])


# --- Krasula ------------------------------------------------------------------------------------------


def test_krasula_by_hand() -> None:
    # Opinions 1, 1.1, 5, 9 with standard error .5: only the first two are similar.
    opinions, errors = [1, 1.1, 5, 9], [0.5] * 4
    perfect = hs.krasula([1, 1.1, 5, 9], opinions, errors)
    assert (perfect.different, perfect.pairs, perfect.sampled) == (5, 6, False)
    assert perfect.different_similar.value == 1
    assert perfect.better_worse.value == 1
    assert perfect.correct.value == 1
    # Third and fourth swapped: 4 of 5 pairs in order. Differences 4, 8, 3.9, 7.9, -4 and their negatives:
    # 22 of 25 comparisons of a better with a worse, and two ties at 4 and one at -4, are right.
    swapped = hs.krasula([1, 1.1, 9, 5], opinions, errors)
    assert swapped.correct.value == pytest.approx(4 / 5)
    forward = np.array([8, 4, 7.9, 3.9, -4])
    right = np.sum(forward[:, None] > -forward) + 0.5 * np.sum(forward[:, None] == -forward)
    assert swapped.better_worse.value == pytest.approx(right / 25)
    # A scorer of great differences for the similar pair only.
    assert hs.krasula([0, 100, 50, 50.5], opinions, errors).different_similar.value == 0


def test_krasula_significance_threshold_is_the_normal_quantile() -> None:
    edge = stats.norm.ppf(0.95) * np.sqrt(2)
    below, above = (hs.krasula([1, 2, 4], [0, edge * factor, 50], [1, 1, 1]) for factor in (0.999, 1.001))
    assert (below.different, above.different) == (2, 3)


def test_krasula_undefined_and_unusable() -> None:
    result = hs.krasula([1, 2, 3], [1, 5, 9], [0.1] * 3)
    assert result.different_similar.reason == "no pair that is similar"
    assert result.correct.value == 1
    result = hs.krasula([1, 2, 3], [1, 1.1, 1.2], [5] * 3)
    assert result.correct.reason == result.better_worse.reason == "no significantly different pair"
    assert hs.krasula([2, 2, 2], [1, 5, 9], [1] * 3).correct.reason == "all scores are 2"
    with pytest.raises(hs.StatisticsError, match=r"0\.0 at index 1"):
        hs.krasula([1, 2, 3], [1, 2, 3], [1, 0, 1])


def test_krasula_on_a_part_of_the_pairs_is_near_the_whole() -> None:
    x, y = simulated(400)
    whole = hs.krasula(x, y, np.full(400, 5.0))
    part = hs.krasula(x, y, np.full(400, 5.0), max_pairs=20_000)
    assert (part.pairs, part.sampled, whole.sampled) == (20_000, True, False)
    for name in ("different_similar", "better_worse", "correct"):
        assert getattr(part, name).value == pytest.approx(getattr(whole, name).value, abs=0.015)


@given(arrays(np.float64, 8, elements=VALUES), arrays(np.float64, 6, elements=VALUES))
@settings(max_examples=40, deadline=None)
def test_auc_is_the_mann_whitney_share(positives: np.ndarray, negatives: np.ndarray) -> None:
    u = stats.mannwhitneyu(positives, negatives).statistic
    assert hs.auc(positives, negatives).value == pytest.approx(u / 48)


# --- significance -------------------------------------------------------------------------------------


def test_williams_t_of_the_published_example() -> None:
    # N = 103, r12 = .4, r13 = .5, r23 = .1 gives t = -0.89, p < .37 (R package psych, r.test, after Steiger).
    outcome = hs.williams_t(0.4, 0.5, 0.1, 103)
    assert outcome.statistic == pytest.approx(-0.89, abs=0.005)
    assert outcome.p_value == pytest.approx(0.37, abs=0.006)
    assert hs.williams_t(0.5, 0.4, 0.1, 103).statistic == pytest.approx(-outcome.statistic)


@pytest.mark.parametrize(
    ("r12", "r13", "r23", "n", "t"),
    [
        (0.8066, 0.2383, 0.2255, 177, 9.3823),
        (-0.1741, 0.2015, 0.3734, 646, -9.0340),
        (0.5447, 0.8, 0.0729, 70, -2.8114),
    ],
)
def test_williams_t_is_that_of_published_analyses(r12: float, r13: float, r23: float, n: int, t: float) -> None:
    # Printed by R's cocor, "williams1959", in published notebooks; correlations are rounded to four digits there.
    assert hs.williams_t(r12, r13, r23, n).statistic == pytest.approx(t, rel=5e-4)


def test_williams_undefined_and_impossible() -> None:
    x, y = simulated(20)
    assert "agree perfectly" in hs.williams_test(x, x**3, y).reason
    assert "agree perfectly" not in hs.williams_test(x, x**3, y, ranks=False).reason
    assert "3 images, 4 needed" in hs.williams_t(0.1, 0.2, 0.3, 3).reason
    assert hs.williams_test(np.ones(20), x, y).reason == "all scores are 1"
    with pytest.raises(hs.StatisticsError, match="at once"):
        hs.williams_t(0.9, -0.9, 0.9, 50)
    with pytest.raises(hs.StatisticsError, match="no correlation"):
        hs.williams_t(1.1, 0, 0, 50)


@pytest.mark.parametrize("images", [10, 50, 200, 1000])
def test_williams_test_of_a_scorer_turned_round_is_undefined(images: int) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=images)
    y = x + 0.5 * generator.normal(size=images)
    for ranks in (False, True):
        assert hs.williams_test(x, -x, y, ranks=ranks).reason == "one scorer is the other turned round"
    assert hs.williams_t(0.5, -0.5, 0.5, images).reason == "the two scorers leave no error"


def test_pitman_test_by_hand() -> None:
    a, b = np.array([1.0, -1, 2, -2, 0.5]), np.array([2.0, -3, 3, -2, 1])
    r = stats.pearsonr(a + b, b - a).statistic
    outcome = hs.pitman_test(a, b)
    assert outcome.statistic == pytest.approx(r * np.sqrt(3 / (1 - r**2)))
    assert outcome.statistic > 0
    assert outcome.p_value == pytest.approx(stats.pearsonr(a + b, b - a).pvalue)
    assert hs.pitman_test(b, a).p_value == pytest.approx(outcome.p_value)
    assert "same residuals" in hs.pitman_test(a, a).reason
    assert "no error" in hs.pitman_test(a, 0 * a).reason
    assert "3 images, 4 needed" in hs.pitman_test(a[:3], b[:3]).reason


def test_sign_flips_by_hand() -> None:
    # Of 8 patterns only (+ + +) and (- - -) reach 1 + 2 + 3; four reach 2 - 3 - 1 = -2 and beyond.
    p = hs.sign_flip_p(np.array([[1.0, 1], [2, -2], [3, 3]]))
    assert p.tolist() == [2 / 8, 6 / 8]
    assert hs.sign_flip_p(np.zeros((5, 1)))[0] == 1
    assert [hs.least_p(number) for number in (3, 5, 13)] == [1 / 4, 1 / 16, 2 / 8192]
    assert hs.least_p(30, 999) == 1 / 1000


def test_random_sign_flips_are_near_the_exact_ones() -> None:
    differences = np.random.default_rng(1).normal(0.4, size=(14, 1))
    exact = stats.permutation_test((differences[:, 0],), np.sum, permutation_type="samples", n_resamples=2**14)
    assert hs.sign_flip_p(differences, draws=20_000)[0] == pytest.approx(exact.pvalue, abs=0.01)


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(hs.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(hs.holm([0.6, np.nan, 0.5]), [1, np.nan, 1])
    assert hs.holm([]).shape == (0,)
    with pytest.raises(hs.StatisticsError, match="outside"):
        hs.holm([1.5])


@given(arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 1)))
@settings(max_examples=60, deadline=None)
def test_holm_rejects_as_the_step_down_rule_does(p: np.ndarray) -> None:
    rejected = set()
    for rank, index in enumerate(np.argsort(p, kind="stable")):
        if p[index] * (len(p) - rank) > 0.05:
            break
        rejected.add(int(index))
    assert set(np.flatnonzero(hs.holm(p) <= 0.05).tolist()) == rejected


def four_scorers() -> tuple[dict[str, np.ndarray], np.ndarray]:
    x, y = simulated(300)
    noise = np.random.default_rng(1).normal(size=(2, 300))
    return {"good": x, "same": x + 0.05 * noise[0], "bad": x + 3 * noise[1], "dead": np.zeros(300)}, y


@pytest.mark.parametrize("method", hs.METHODS)
def test_significance_matrix(method: str) -> None:
    scores, y = four_scorers()
    matrix = hs.significance_matrix(scores, hs.rated(y), method=method)  # type: ignore[arg-type]
    verdicts = {(a, b): matrix.verdicts[i][j] for i, a in enumerate(scores) for j, b in enumerate(scores)}
    assert verdicts["good", "bad"] == "better"
    assert verdicts["bad", "good"] == "worse"
    assert verdicts["good", "same"] == verdicts["same", "good"] == "undecided"
    assert verdicts["good", "good"] == verdicts["good", "dead"] == ""
    assert "all scores are 0" in matrix.reasons["bad", "dead"]
    for table in (matrix.differences, (matrix.lows + matrix.highs)):
        np.testing.assert_array_equal(table, -table.T)
    np.testing.assert_array_equal(matrix.p_values, matrix.p_values.T)
    if method == "flip":
        assert matrix.lows[0, 2] < matrix.differences[0, 2] < matrix.highs[0, 2]


def test_undecided_scorers_share_letters_and_ranks() -> None:
    scores, y = four_scorers()
    matrix = hs.significance_matrix(scores, hs.rated(y))
    # Nothing is known of the one without a value: it may stand anywhere.
    assert hs.rank_ranges(matrix) == {"good": (1, 3), "same": (1, 3), "bad": (3, 4), "dead": (1, 4)}
    assert hs.compact_letters(matrix, list(scores)) == {"good": "a", "same": "a", "bad": "b", "dead": "ab"}


@given(arrays(np.int8, (6, 6), elements=st.integers(0, 1)))
@settings(max_examples=60, deadline=None)
def test_two_share_a_letter_just_where_nothing_is_decided(decided: np.ndarray) -> None:
    names = tuple("uvwxyz")
    upper = np.triu(decided, 1)
    words = {0: "undecided", 1: "better", -1: "worse"}
    verdicts = tuple(
        tuple(words[int(v)] if i != j else "" for j, v in enumerate(row)) for i, row in enumerate(upper - upper.T)
    )
    nothing = np.zeros((6, 6))
    matrix = hs.SignificanceMatrix(names, "flip", "srcc", nothing, nothing, nothing, nothing, verdicts)  # type: ignore[arg-type]
    letters = hs.compact_letters(matrix, names)
    for (i, a), (j, b) in combinations(enumerate(names), 2):
        assert bool(set(letters[a]) & set(letters[b])) == (not upper[i, j])


def test_tests_for_independent_images_are_refused_where_contents_are_shared() -> None:
    scores, y = four_scorers()
    for method in ("williams", "pitman"):
        matrix = hs.significance_matrix(scores, hs.rated(y, np.arange(300) // 2), method=method)  # type: ignore[arg-type]
        assert "share contents" in matrix.reasons["good", "bad"]
        assert matrix.verdicts[0][2] == ""


def test_five_contents_decide_nothing_and_say_so() -> None:
    scores, y = four_scorers()
    two = {name: scores[name] for name in ("good", "bad")}
    few = hs.significance_matrix(two, hs.rated(y, np.arange(300) % 5))
    assert few.verdicts[0][1] == "undecided"
    assert few.undecidable == "5 contents: no test can decide (the smallest p they can give is 0.062)"
    assert hs.significance_matrix(two, hs.rated(y, np.arange(300) % 6)).undecidable == ""
    # Seven contents could tell two scorers apart; after Holm's adjustment over three pairs they could too, six not.
    three = {name: scores[name] for name in ("good", "bad", "same")}
    assert "times 3 pairs" in hs.significance_matrix(three, hs.rated(y, np.arange(300) % 6)).undecidable
    assert hs.significance_matrix(three, hs.rated(y, np.arange(300) % 7)).undecidable == ""


def test_a_reversed_scorer_gets_no_credit_for_its_fit() -> None:
    x, y = simulated(300)
    weak = x + 3 * np.random.default_rng(1).normal(size=300)
    matrix = hs.significance_matrix({"reversed": -x, "weak": weak}, hs.rated(y), method="pitman")
    assert matrix.verdicts[0][1] == ""
    assert "falls" in matrix.reasons["reversed", "weak"]


def test_many_scorers_can_still_be_told_apart() -> None:
    # 100 draws give p >= .01, and Holm over 55 pairs would never let one pass.
    x, y = simulated(60)
    generator = np.random.default_rng(0)
    scores = {f"s{i:02d}": x + 0.01 * generator.normal(size=60) for i in range(10)} | {
        "no": generator.normal(size=60)
    }
    matrix = hs.significance_matrix(scores, hs.rated(y), draws=100)
    assert set(matrix.verdicts[-1][:-1]) == {"worse"}


def test_significance_matrix_refuses_unknown_names() -> None:
    x, y = simulated(10)
    with pytest.raises(hs.StatisticsError, match="'t' is none of flip"):
        hs.significance_matrix({"a": x}, hs.rated(y), method="t")  # type: ignore[arg-type]
    with pytest.raises(hs.StatisticsError, match="not 'krcc'"):
        hs.significance_matrix({"a": x, "b": x}, hs.rated(y), "krcc", method="williams")
    with pytest.raises(hs.StatisticsError, match="lengths differ"):
        hs.significance_matrix({"a": x[:5], "b": x[:5]}, hs.rated(y))
    with pytest.raises(hs.StatisticsError, match="D-test has no comparison"):
        hs.significance_matrix({"a": x, "b": x}, hs.rated(y), "d_test")


def test_ladders_are_compared_over_contents() -> None:
    _, images = known_ladders(30)
    generator = np.random.default_rng(0)
    number = images.clusters.max() + 1

    def scores(noise: float, seed: int) -> np.ndarray:
        own = np.random.default_rng(seed).normal(size=number)[images.clusters]
        return -images.levels * (1 + 0.2 * own) + noise * generator.normal(size=len(images))

    matrix = hs.significance_matrix({"a": scores(0.4, 1), "b": scores(2, 2), "c": scores(2, 3)}, images, "l_test")
    assert matrix.verdicts[0] == ("", "better", "better")
    assert matrix.verdicts[1][2] == "undecided"
    assert matrix.contents == 30


def load_simulations() -> object:
    path = Path(__file__).parents[3] / "results" / "statistics" / "simulate.py"
    spec = importlib.util.spec_from_file_location("simulate", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulate"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_tests_hold_their_size_and_intervals_their_coverage() -> None:
    """A quarter of the trials behind results/statistics; bounds are four standard errors and what is stated there."""
    for row in load_simulations().all_rows(250):  # type: ignore[attr-defined]
        if not row.trials or "refused" in row.what:
            continue
        slack = 4 * np.sqrt(0.05 * 0.95 / row.trials)
        if row.what.startswith("size"):
            assert row.share <= 0.065 + slack, row
            assert row.contents > 5 or row.share == 0 or "sign flips" not in row.what
        else:
            assert row.share >= 0.93 - slack, row


# --- means over datasets ------------------------------------------------------------------------------


ARRAYS = ("values", "complete", "seen", "sizes")


def example_cells(**changes: object) -> hs.Cells:
    content: dict[str, object] = {
        "values": [[0.9, 0.5, 0.7], [0.8, 0.6, 0.7], [0.7, 0.4, np.nan]],
        "complete": [[True] * 3, [True] * 3, [True, True, False]],
        "seen": [[False] * 3, [True, False, False], [False] * 3],
        "sizes": [100, 300, 600],
        "scorers": ["a", "b", "c"],
        "datasets": ["koniq", "clive", "tid"],
    } | changes
    return hs.Cells(**{name: np.array(value) if name in ARRAYS else value for name, value in content.items()})


def test_means_are_over_the_sets_that_nobody_compared_was_trained_on() -> None:
    found = hs.standings(example_cells())
    # b has seen koniq, so that nobody's mean holds it.
    assert found["a"].sets == ("clive", "tid")
    assert found["a"].mean.value == pytest.approx(0.6)
    assert found["b"].mean.value == pytest.approx(0.65)
    assert found["c"].mean.reason == "no complete value on tid"
    assert found["a"].weighted.value == pytest.approx((300 * 0.5 + 600 * 0.7) / 900)


def test_two_scorers_that_are_equal_everywhere_have_equal_means() -> None:
    values = [[0.9, 0.6, 0.65]] * 2
    equal = {"values": values, "complete": [[True] * 3] * 2, "scorers": ["a", "b"]}
    found = hs.standings(example_cells(**equal, seen=[[True, False, False], [False] * 3]))
    assert found["a"].mean == found["b"].mean
    assert found["a"].wins.value == found["b"].wins.value == 0.5


def test_win_rates_by_hand() -> None:
    found = hs.standings(example_cells())
    # a and b: clive is b's, tid is shared; a and c: koniq and clive are a's; b and c: clive is b's.
    assert found["a"].wins.value == pytest.approx((0.25 + 1) / 2)
    assert found["b"].wins.value == pytest.approx((0.75 + 1) / 2)
    assert found["c"].wins.value == 0


def test_an_incomplete_value_enters_nothing() -> None:
    found = hs.standings(example_cells(complete=[[True, True, False], [True] * 3, [True, True, False]]))
    assert found["a"].mean.reason == "no complete value on tid"
    # With tid, a would draw level there.
    assert found["a"].wins.value == pytest.approx((0 + 1) / 2)


def test_a_scorer_that_saw_everything_leaves_win_rates_of_the_others() -> None:
    found = hs.standings(example_cells(seen=[[True] * 3, [False] * 3, [False] * 3]))
    assert "seen in training by one of the scorers" in found["b"].mean.reason
    assert found["a"].wins.reason == "no set in common with another scorer"
    assert found["b"].wins.value == 1
    with pytest.raises(hs.StatisticsError, match="sizes"):
        example_cells(sizes=[100, 0, 600])
    with pytest.raises(hs.StatisticsError, match="seen: shape"):
        example_cells(seen=[[True] * 3])


# --- pictures to show ---------------------------------------------------------------------------------


def test_gmad_pairs_by_hand() -> None:
    defender = [1, 2, 3, 11, 12, 13]
    attacker = [5, 9, 7, 1, 1, 1]
    (pair,) = hs.gmad_pairs(defender, attacker, levels=2)
    # The upper level ties in the attacker's eyes and shows nothing.
    assert (pair.level, pair.preferred, pair.rejected) == (0, 1, 0)
    assert pair.gap == pytest.approx((5 - 3) / 5)
    assert pair.defender_gap == pytest.approx(1 / 5)
    assert hs.gmad_pairs([1, 2], [1, 2], levels=2) == []


@given(two_rows(low=6))
@settings(max_examples=40, deadline=None)
def test_gmad_pairs_stay_within_a_level(rows: tuple[np.ndarray, np.ndarray]) -> None:
    defender, attacker = rows
    levels = np.array_split(np.argsort(defender, kind="stable"), 3)
    for pair in hs.gmad_pairs(defender, attacker, levels=3):
        assert {pair.preferred, pair.rejected} <= set(levels[pair.level].tolist())
        assert attacker[pair.preferred] - attacker[pair.rejected] == np.ptp(attacker[levels[pair.level]])
        assert 0 < pair.gap <= 1


def test_misjudged_are_the_largest_errors_of_the_fit() -> None:
    x, y = simulated(100)
    y[[17, 60]] += [80, -60]
    fit = hs.fit_logistic("logistic4", x, y)
    assert list(hs.misjudged(x, y, fit, count=2)) == [17, 60]
    assert len(hs.misjudged(x, y, hs.fit_logistic("logistic4", np.ones(100), y))) == 0


def test_an_image_without_a_content_is_one_by_itself() -> None:
    generator = np.random.default_rng(0)
    contents = np.array(generator.choice(["", "", "b", "a", "é"], 250))
    found = hs.rated(np.arange(250.0), contents).clusters
    names = [content or f"\0{i}" for i, content in enumerate(contents)]
    assert found.tolist() == np.unique(names, return_inverse=True)[1].tolist()
    assert found.dtype == np.intp
