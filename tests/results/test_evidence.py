"""The interval for log Z and the certificate, by hand and against enumeration."""

import math

import numpy as np
import pytest

from jax_power_smc.results.evidence import evidence_interval, kl_figure
from jax_power_smc.results.pooling import pool
from tests.results.runs import (
    COPIES,
    INF,
    KEY,
    RUNS,
    failed,
    first,
    listed,
    log_z,
    runs_of,
    saying_nothing,
    target_probabilities,
    terminals,
    with_evidence,
)

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.slow]


# --- The interval ---


def test_interval_by_hand(few):
    z_hat = 1e-9 * np.array([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0], [1e-30, 2e-30, 6e-30]])
    few = [saying_nothing(r) for r in few]
    runs = [with_evidence(r, np.log(z)) for r, z in zip(few, z_hat.T, strict=True)]
    found = evidence_interval(runs, level=0.9)
    np.testing.assert_allclose(found.mean, np.log(z_hat).mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found.sd, np.log(z_hat).std(axis=1, ddof=1), atol=1e-5)
    np.testing.assert_allclose(found.log_evidence, np.log(z_hat.mean(axis=1)), rtol=1e-6)
    # sd 2.6458, mean 3, t 2.9200.
    half = 2.645751 / 3 / math.sqrt(3) * 2.919986
    np.testing.assert_allclose(found.log_evidence - found.low, [half, 0, half], atol=1e-5)
    # The logs 0, 0.6931 and 1.7918 have mean 0.8283 and sd 0.9035; log 3 = 1.0986.
    lognormal = 0.828302 + 0.903493**2 / 2 - 1.098612
    lognormal += 2.919986 * math.sqrt(0.903493**2 / 3 + 0.903493**4 / 4)
    assert lognormal > half
    upper = found.high - found.log_evidence
    np.testing.assert_allclose(upper, [lognormal, 0, lognormal], atol=2e-5)
    assert (found.level, found.num_runs) == (0.9, 3)


def test_the_upper_end_is_at_least_that_of_the_delta_method():
    # Even values are skewed to the left in their logs: there the delta method is the wider.
    logs = np.log(np.random.default_rng(0).uniform(0.09, 0.11, size=(3, 300)))
    some = [saying_nothing(first(r, 300)) for r in runs_of("smc")[:3]]
    runs = [with_evidence(r, z) for r, z in zip(some, logs, strict=True)]
    found = evidence_interval(runs)
    upper, lower = found.high - found.log_evidence, found.log_evidence - found.low
    assert np.all(upper >= lower - 1e-12) and np.mean(upper < lower + 1e-12) > 0.01


def test_interval_of_failed_runs(few):
    few = [saying_nothing(failed(r, [1])) for r in few]
    runs = [with_evidence(r, np.array([-5.0, -INF, -5.0])) for r in few]
    runs[1] = with_evidence(few[1], [-INF, -INF, -5.0])
    found = evidence_interval(runs)
    np.testing.assert_array_equal(found.mean, [-INF, -INF, -5.0])
    np.testing.assert_array_equal(found.sd, [INF, INF, 0.0])
    np.testing.assert_allclose(found.log_evidence, [math.log(2 / 3) - 5, -INF, -5.0], atol=1e-12)
    np.testing.assert_allclose(found.low[1:], [-INF, -5.0], atol=1e-12)
    np.testing.assert_allclose(found.high[1:], [-INF, -5.0], atol=1e-12)
    assert found.low[0] < found.log_evidence[0] < found.high[0] < INF


def coverage(found, truth):
    return np.mean((found.low <= truth) & (found.high >= truth))


@pytest.mark.parametrize("num_runs", [8, RUNS])
def test_interval_covers_log_z(num_runs):
    found = evidence_interval(runs_of("swor")[:num_runs])
    assert 0.93 < coverage(found, log_z()) < 0.965
    assert np.mean(found.sd) > 0.2


def test_interval_covers_less_with_a_large_sd():
    # As its docstring says: an sd near 1, and an evidence more skewed than a lognormal one.
    found = evidence_interval(runs_of("smc")[:10])
    assert 0.8 < np.mean(found.sd) < 1.1
    assert 0.78 < coverage(found, log_z()) < 0.9
    missed = (found.low > log_z()) | (found.high < log_z())
    assert np.mean(found.high[missed] < log_z()) > 0.9


def test_interval_covers_a_lognormal_evidence_of_any_sd():
    sd = np.repeat([0.3, 1.0, 2.0, 4.0], COPIES // 4)
    truth = -60.0
    logs = truth + np.random.default_rng(0).normal(-(sd**2) / 2, sd, size=(10, COPIES))
    some = [saying_nothing(r) for r in runs_of("smc")[:10]]
    runs = [with_evidence(r, z) for r, z in zip(some, logs, strict=True)]
    found = evidence_interval(runs)
    covered = (found.low <= truth) & (found.high >= truth)
    each = [np.mean(covered[sd == s]) for s in (0.3, 1.0, 2.0, 4.0)]
    assert min(each) > 0.86 and max(each) < 0.97
    # The delta method alone claims to know log Z and does not.
    upper = 2 * found.log_evidence - found.low
    assert np.mean(upper[sd == 4] >= truth) < 0.4


def test_the_mean_is_low_and_the_log_of_the_mean_less_so(copies):
    found = evidence_interval(copies)
    one, many = log_z() - found.mean.mean(), log_z() - found.log_evidence.mean()
    assert one > 0.02 and -0.003 < many < 3 * one / RUNS


def test_the_ends_stay_where_log_z_is_known_to_lie(few):
    # Five runs that differ by many nats: what a lognormal Z_hat would make of them is +24.
    five = [*few, *few[:2]]
    logs = [-2.0, -14.0, -1.0, -9.0, -5.0]
    runs = [with_evidence(r, [z] * 3) for r, z in zip(five, logs, strict=True)]
    found = evidence_interval(runs)
    np.testing.assert_array_equal(found.high, 0.0)
    # Runs that have found more than all there is, and a mass less than that of their sequences.
    above = evidence_interval([with_evidence(r, [3.0] * 3) for r in few])
    np.testing.assert_array_equal(above.low, 0.0)
    np.testing.assert_array_equal(above.high, 0.0)
    below = evidence_interval([with_evidence(r, [-90.0] * 3) for r in few])
    for prompt in range(3):
        seen = {
            tuple(y)
            for run in few
            for y, log_weight in zip(run.sequences()[prompt], run.log_weights[prompt], strict=True)
            if log_weight > -INF
        }
        weigh = [
            g for y, g in zip(listed().sequences, listed().log_gamma, strict=True) if y in seen
        ]
        assert 0 < len(seen) == len(weigh)
        bound = np.logaddexp.reduce(weigh)
        assert below.low[prompt] == below.high[prompt] == pytest.approx(bound, abs=1e-5)


def test_a_sequence_of_weight_zero_bounds_nothing(few):
    runs = [with_evidence(failed(r, [1]), [-90.0, -90.0, -90.0]) for r in few]
    low = evidence_interval(runs).low
    assert low[1] == pytest.approx(-90.0) and low[0] > -20 and low[2] > -20


def test_few_runs_of_a_real_sampler_keep_the_bounds():
    found = evidence_interval(runs_of("smc")[:2], level=0.999)
    assert np.all(found.high <= 0) and np.all(found.low <= 0)
    assert np.mean(found.high == 0) > 0


@pytest.mark.parametrize("level", [0.0, 1.0, 95, math.nan, "high", True, None])
def test_interval_refuses_a_level(few, level):
    with pytest.raises(ValueError, match="level is"):
        evidence_interval(few, level=level)


# --- The certificate ---


def test_the_kl_of_the_draw_is_below_the_figure(copies):
    weights = [np.exp(np.asarray(r.log_weights, np.float64)) for r in copies]
    pi = target_probabilities()
    q = sum(
        np.bincount(terminals(r).ravel(), w.ravel(), len(pi))
        for r, w in zip(copies, weights, strict=True)
    )
    q = q / q.sum()
    kl = float(np.sum(q * np.log(np.where(q > 0, q, 1) / pi)))
    figure = kl_figure(log_z(), copies, exact=True)
    mean = figure.value.mean()
    error = figure.value.std(ddof=1) / math.sqrt(COPIES)
    assert 0.005 < kl < mean - 4 * error
    # The standard error is that of one prompt's figure.
    z = (figure.value - mean) / figure.standard_error
    assert 0.9 < z.std() < 1.2
    assert figure.kind == "bound"


def test_the_figure_of_a_reference_run_is_an_estimate(copies):
    reference = np.asarray(pool(copies[2:], KEY).log_evidence)
    figure = kl_figure(reference, copies[:2], exact=False)
    assert figure.kind == "estimate"
    np.testing.assert_allclose(
        figure.value, reference - evidence_interval(copies[:2]).mean, rtol=1e-5, atol=1e-6
    )
    exact = kl_figure(log_z(), copies[:2], exact=True)
    np.testing.assert_array_equal(figure.standard_error, exact.standard_error)
    # The reference is low on average, and with it the figure.
    assert figure.value.mean() < exact.value.mean()


def test_figure_by_hand(few):
    runs = [with_evidence(r, [z, -1.0, z]) for r, z in zip(few, [-1.0, -2.0, -6.0], strict=True)]
    runs[0] = with_evidence(few[0], [-1.0, -1.0, -INF])
    figure = kl_figure([-2.0, -1.0, 0.0], runs, exact=True)
    np.testing.assert_allclose(figure.value, [1.0, 0.0, INF])
    np.testing.assert_allclose(figure.standard_error, [math.sqrt(7 / 3), 0.0, INF], rtol=1e-6)
    one = kl_figure(-2.0, runs[1:2], exact=False)
    np.testing.assert_allclose(one.value, [0.0, -1.0, 0.0])
    assert np.isnan(one.standard_error).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [(math.nan, "finite"), (-INF, "finite"), ([0.0, 1.0], r"shape \(2,\)"), ([[0.0] * 3], "shape")],
    ids=str,
)
def test_figure_refuses(few, value, message):
    with pytest.raises(ValueError, match=message):
        kl_figure(value, few, exact=True)
