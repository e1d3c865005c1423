"""Intervals: against published and exact values, and by how often they hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from jax_power_smc.evaluation.intervals import paired_bootstrap, wilson

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


# --- Paired bootstrap -------------------------------------------------------------------------


def test_a_constant_difference_has_no_width():
    # The scores themselves vary; only what is paired is constant.
    theirs = np.array([0.0, 0.75, 0.25, 0.5, 0.0])
    assert paired_bootstrap(theirs + 0.25, theirs) == pytest.approx((0.25, 0.25, 0.25))
    assert paired_bootstrap(theirs, theirs) == (0.0, 0.0, 0.0)


def test_one_problem_is_always_drawn():
    assert paired_bootstrap(np.array([1.0]), np.array([0.0])) == (1.0, 1.0, 1.0)


def test_the_ends_are_quantiles_of_a_binomial():
    # With differences 0 and 1 a resampled sum is binomial.
    difference = np.repeat([1.0, 0.0], [80, 120])
    got, low, high = paired_bootstrap(difference, np.zeros(200))
    assert got == pytest.approx(0.4)
    exact = stats.binom.ppf([0.025, 0.975], 200, 0.4) / 200
    assert (low, high) == pytest.approx(tuple(exact), abs=1.01 / 200)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    repetitions, count, truth = 300, 50, 0.1
    covered = 0
    for seed in range(repetitions):
        difference = rng.choice([-1.0, 0.0, 1.0], size=count, p=[0.2, 0.5, 0.3])
        _, low, high = paired_bootstrap(difference, np.zeros(count), num_resamples=400, seed=seed)
        covered += low <= truth <= high
    # 0.95 less the small-sample shortfall of percentiles, within four standard errors.
    assert 0.88 < covered / repetitions < 0.985


def test_exchanging_the_methods_changes_the_sign():
    rng = np.random.default_rng(2)
    ours, theirs = rng.random(30), rng.random(30)
    difference, low, high = paired_bootstrap(ours, theirs)
    assert difference == pytest.approx(np.mean(ours - theirs)) and low < difference < high
    assert paired_bootstrap(theirs, ours) == pytest.approx((-difference, -high, -low))


def test_the_seed_alone_decides():
    rng = np.random.default_rng(3)
    ours, theirs = rng.random(30), rng.random(30)
    once = paired_bootstrap(ours, theirs, num_resamples=50, seed=4)
    assert paired_bootstrap(ours, theirs, num_resamples=50, seed=4) == once
    other = paired_bootstrap(ours, theirs, num_resamples=50, seed=5)
    assert other[0] == once[0] and other[1:] != once[1:]


@pytest.mark.parametrize(
    ("ours", "theirs"), [((3,), (4,)), ((3,), (3, 1)), ((2, 2), (2, 2)), ((0,), (0,)), ((), ())]
)
def test_what_cannot_be_paired_is_refused(ours, theirs):
    with pytest.raises(ValueError) as refusal:
        paired_bootstrap(np.zeros(ours), np.zeros(theirs))
    for text in (f"shapes {ours} and {theirs}", "two vectors over the same problems"):
        assert text in str(refusal.value)
