"""Intervals: against published and exact values, and by how often they hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from jax_power_smc.evaluation import intervals
from jax_power_smc.evaluation.intervals import (
    accuracy_interval,
    difference_interval,
    mean_and_interval,
    wilson,
)

Z = stats.norm.ppf(0.975)

# --- Wilson -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, the score method.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_has_the_published_values(right, count, low, high):
    assert wilson(right / count, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_wilson_at_its_limits(count):
    low, high = wilson(0.0, count)
    assert (low, high) == pytest.approx((0.0, Z**2 / (count + Z**2)), abs=1e-12)
    assert low >= 0.0
    low, high = wilson(1.0, count)
    assert (low, high) == pytest.approx((count / (count + Z**2), 1.0), abs=1e-12)
    assert high <= 1.0


@pytest.mark.parametrize("accuracy", [0.02, 0.3, 0.5, 0.875])
def test_wilson_ends_are_where_the_score_test_turns(accuracy):
    low, high = wilson(accuracy, 40)
    assert low < accuracy < high
    for end in (low, high):
        assert abs(accuracy - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / 40))
    other_low, other_high = wilson(1 - accuracy, 40)
    assert (1 - other_high, 1 - other_low) == pytest.approx((low, high))


def test_wilson_narrows_with_more_problems():
    widths = [high - low for low, high in (wilson(0.6, n) for n in (10, 100, 1000, 100_000))]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(2 * Z * math.sqrt(0.24 / 100_000), rel=1e-3)


# --- Bootstrap over problems and seeds --------------------------------------------------------


def column(*scores):
    """Scores of one seed."""
    return np.array(scores, np.float64)[:, None]


def test_a_constant_difference_has_no_width():
    # The scores themselves vary; only what is paired is constant.
    theirs = column(0.0, 0.75, 0.25, 0.5, 0.0)
    assert mean_and_interval((theirs + 0.25) - theirs) == pytest.approx((0.25, 0.25, 0.25))
    assert mean_and_interval(theirs - theirs) == (0.0, 0.0, 0.0)


def test_one_problem_with_one_seed_is_always_drawn():
    assert mean_and_interval(column(1.0)) == (1.0, 1.0, 1.0)


def test_the_ends_are_quantiles_of_a_binomial():
    # With scores 0 and 1 a resampled sum is binomial.
    got, low, high = mean_and_interval(column(*[1.0] * 80, *[0.0] * 120))
    assert got == pytest.approx(0.4)
    exact = stats.binom.ppf([0.025, 0.975], 200, 0.4) / 200
    assert (low, high) == pytest.approx(tuple(exact), abs=1.01 / 200)


@pytest.mark.parametrize(("between", "within"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.3, 2.0)])
def test_the_width_is_that_of_two_levels(between, within):
    # The variance of a resampled mean, exactly: problems drawn from the list of their own means,
    # and within each drawn problem seeds from the list of its scores.
    rng = np.random.default_rng(3)
    problems, seeds = 60, 5
    scores = between * rng.normal(size=(problems, 1)) + within * rng.normal(size=(problems, seeds))
    variance = scores.mean(axis=1).var() / problems
    variance += scores.var(axis=1).mean() / (problems * seeds)
    mean, low, high = mean_and_interval(scores)
    assert mean == pytest.approx(scores.mean())
    assert (high - low) / (2 * Z) == pytest.approx(math.sqrt(variance), rel=0.06)


def test_more_seeds_of_the_same_problems_do_not_pretend_to_be_more_problems():
    one = np.random.default_rng(4).integers(2, size=(50, 1)).astype(float)
    narrow, wide = (mean_and_interval(np.repeat(one, n, axis=1)) for n in (8, 1))
    assert narrow[2] - narrow[1] == pytest.approx(wide[2] - wide[1], rel=0.1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    repetitions, count, truth = 300, 50, 0.1
    covered = 0
    for _ in range(repetitions):
        difference = rng.choice([-1.0, 0.0, 1.0], size=(count, 1), p=[0.2, 0.5, 0.3])
        _, low, high = mean_and_interval(difference)
        covered += low <= truth <= high
    # 0.95 less the small-sample shortfall of percentiles, within four standard errors.
    assert 0.88 < covered / repetitions < 0.985


def test_exchanging_the_methods_changes_the_sign():
    rng = np.random.default_rng(2)
    ours, theirs = rng.random((30, 2)), rng.random((30, 2))
    difference, low, high = mean_and_interval(ours - theirs)
    assert difference == pytest.approx(np.mean(ours - theirs)) and low < difference < high
    assert mean_and_interval(theirs - ours) == pytest.approx((-difference, -high, -low), abs=1e-6)


def test_blocks_of_resamples_are_no_different(monkeypatch):
    rng = np.random.default_rng(5)
    scores = rng.random((30, 3))
    monkeypatch.setattr(intervals, "NUM_RESAMPLES", 20_000)
    ends = []
    for block in (2**22, 900, 1):
        monkeypatch.setattr(intervals, "_BLOCK", block)
        intervals._resamples.cache_clear()
        weights = intervals._resamples(30, 3)
        assert weights.shape == (20_000, 90)
        np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-5)
        ends.append(mean_and_interval(scores)[1:])
    intervals._resamples.cache_clear()
    np.testing.assert_allclose(ends, np.broadcast_to(ends[0], (3, 2)), atol=4e-3)


@pytest.mark.parametrize("shape", [(3,), (0, 2), (2, 0), (2, 2, 2), ()])
def test_what_are_no_scores_is_refused(shape):
    with pytest.raises(ValueError, match=r"must be \[problems, seeds\]"):
        mean_and_interval(np.zeros(shape))


# --- Differences ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_where_nothing_varies_a_difference_is_not_certain(value):
    mean, low, high = difference_interval(np.full((20, 3), value))
    width = wilson(0.0, 20)[1]
    assert mean == value
    assert (low, high) == pytest.approx((max(-1, value - width), min(1, value + width)))


def test_a_difference_that_varies_has_the_interval_of_its_mean():
    scores = np.random.default_rng(6).integers(-1, 2, size=(40, 2)).astype(float)
    assert difference_interval(scores) == mean_and_interval(scores)


# --- Accuracies -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_where_nothing_varies_an_accuracy_is_not_certain(value):
    mean, low, high = accuracy_interval(np.full((20, 3), value))
    assert mean == value and (low, high) == wilson(value, 20) and low < high


def test_weights_that_add_up_to_almost_one_are_no_certainty():
    almost = 1 - 1e-7 * np.random.default_rng(7).random((20, 2))
    mean, low, high = accuracy_interval(almost)
    ends = wilson(1.0, 20)
    assert (low, high) == pytest.approx(ends, abs=1e-6) and low < mean <= high


def test_an_accuracy_has_the_interval_of_its_mean():
    scores = np.random.default_rng(6).integers(2, size=(40, 2)).astype(float)
    assert accuracy_interval(scores) == mean_and_interval(scores)


def test_the_ends_stay_within_zero_and_one_and_hold_the_mean():
    # float32 sums of many equal scores may pass the mean by a rounding.
    mean, low, high = accuracy_interval(np.full((33, 3), 1 / 3))
    assert 0.0 <= low <= mean <= high <= 1.0
