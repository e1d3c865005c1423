"""Theorem 1 and its corollary, on random distributions and against plain sums."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.samplers.proposal import power_proposal
from jax_power_smc.theory.weight_variance import (
    log_power_sum,
    proposal_moments,
    renyi_entropy,
    weight_costs,
    weight_moments,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

GRID = np.concatenate([np.linspace(0.05, 0.95, 19), [1.0, 1.3, 2.0, 5.0, 50.0]])


def random_log_p(seed, vocab=9, scale=2.0, impossible=()):
    logits = np.random.default_rng(seed).normal(scale=scale, size=vocab)
    logits[list(impossible)] = -np.inf
    return logits - np.log(np.exp(logits).sum())


def tempered(log_p, temperature):
    """q ∝ p^(1/temperature), by numpy."""
    power = np.exp(log_p) ** (1 / temperature)
    return power / power.sum()


def moments_by_sums(log_p, q, alpha):
    """E_q[w] and Var_q(w) over the tokens that q can draw, as they are defined."""
    p, q = np.exp(log_p)[q > 0], q[q > 0]
    w = p**alpha / q
    mean = (q * w).sum()
    return mean, (q * (w - mean) ** 2).sum()


# --- Theorem 1 ---


@pytest.mark.parametrize("alpha", [1.0, 1.5, 4.0, 8.0])
@pytest.mark.parametrize("temperature", [0.1, 0.25, 0.7, 1.0, 3.0])
def test_moments_are_the_plain_sums(x64, alpha, temperature):
    log_p = random_log_p(0, impossible=(2, 5))
    mean, variance = moments_by_sums(log_p, tempered(log_p, temperature), alpha)
    got = weight_moments(jnp.asarray(log_p), alpha, temperature)
    np.testing.assert_allclose(got.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(got.variance, variance, rtol=1e-9, atol=1e-25)
    np.testing.assert_allclose(got.relative_variance, variance / mean**2, rtol=1e-9, atol=1e-25)
    general = proposal_moments(
        jnp.asarray(log_p), jnp.asarray(tempered_log(log_p, temperature)), alpha
    )
    np.testing.assert_allclose(general.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(general.variance, variance, rtol=1e-9, atol=1e-25)


def tempered_log(log_p, temperature):
    with np.errstate(divide="ignore"):
        return np.log(tempered(log_p, temperature))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alpha", [1.5, 4.0])
def test_mean_is_the_power_sum_at_every_temperature(x64, seed, alpha):
    log_p = random_log_p(seed, impossible=(1,))
    log_sum = np.log((np.exp(log_p) ** alpha).sum())
    for temperature in GRID:
        by_sums, _ = moments_by_sums(log_p, tempered(log_p, temperature), alpha)
        assert math.log(by_sums) == pytest.approx(log_sum, rel=1e-10)
        got = weight_moments(jnp.asarray(log_p), alpha, temperature)
        assert float(got.log_mean) == pytest.approx(log_sum, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.25, 0.5, 1.0, 2.0])
def test_mean_is_that_of_the_proposal_that_the_sampler_draws_from(x64, temperature):
    log_p = random_log_p(1, vocab=40, impossible=(3, 17))
    allowed = np.ones(40, bool)
    allowed[[0, 8]] = False
    proposal = power_proposal(
        Logits(jnp.asarray(log_p)[None]),
        jnp.asarray(allowed)[None],
        jnp.asarray(1 / temperature),
        7,
    )
    mass = np.asarray(proposal.mass).ravel()[:40]
    restricted = np.where(allowed, log_p, -np.inf)
    mean, variance = moments_by_sums(restricted, mass / mass.sum(), 4.0)
    got = weight_moments(jnp.asarray(restricted), 4.0, temperature)
    np.testing.assert_allclose(got.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(got.variance, variance, rtol=1e-8, atol=1e-25)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("alpha", [1.0, 1.3, 3.0, 4.0, 7.7])
def test_variance_is_zero_at_one_over_alpha_and_least_there(x64, seed, alpha):
    log_p = jnp.asarray(random_log_p(seed))
    best = weight_moments(log_p, alpha, 1 / alpha)
    assert float(best.relative_variance) < 1e-28
    others = GRID[np.abs(GRID * alpha - 1) > 1e-3]
    spread = jax.vmap(lambda t: weight_moments(log_p, alpha, t).relative_variance)(
        jnp.asarray(others)
    )
    assert len(others) > 20 and float(jnp.min(spread)) > 1e-12
    # It falls towards 1/alpha from both sides.
    order = np.argsort(others)
    below = np.asarray(spread)[order][np.sort(others) < 1 / alpha]
    above = np.asarray(spread)[order][np.sort(others) > 1 / alpha]
    assert np.all(np.diff(below) < 0) and np.all(np.diff(above) > 0)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0, 4.0, 10.0])
def test_variance_is_exactly_zero_where_the_exponents_are_equal(alpha):
    # 1/(1/alpha) is alpha in float32 for each of these.
    log_p = jnp.asarray(random_log_p(3, vocab=5000, scale=3.0), jnp.float32)
    moments = weight_moments(log_p, alpha, 1 / alpha)
    assert float(moments.log_relative_variance) == -np.inf
    assert float(moments.relative_variance) == 0.0 == float(moments.variance)


@pytest.mark.parametrize("seed", range(20))
def test_variance_at_one_over_alpha_is_below_rounding_in_float32(seed):
    alpha = 1 + 9 * np.random.default_rng(seed).random()
    log_p = jnp.asarray(random_log_p(seed, vocab=20_000, scale=2.5), jnp.float32)
    moments = weight_moments(log_p, alpha, 1 / alpha)
    assert float(moments.relative_variance) < 1e-12


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("alpha", [1.0, 2.0, 4.0])
def test_no_other_proposal_has_less_variance(x64, seed, alpha):
    rng = np.random.default_rng(seed)
    log_p = random_log_p(seed, impossible=(4,))
    best = tempered(log_p, 1 / alpha)
    exact = proposal_moments(jnp.asarray(log_p), jnp.log(jnp.asarray(best)), alpha)
    assert float(exact.relative_variance) < 1e-28
    # Far ones, and small changes of the best one; token 4 may be proposed in vain.
    others = np.concatenate(
        [
            rng.dirichlet(np.ones(9), size=50),
            (best + 1e-4) * np.exp(rng.normal(scale=0.01, size=(50, 9))),
        ]
    )
    others /= others.sum(axis=1, keepdims=True)
    log_power = log_power_sum(jnp.asarray(log_p), alpha)
    for q in others:
        got = proposal_moments(jnp.asarray(log_p), jnp.log(jnp.asarray(q)), alpha)
        np.testing.assert_allclose(got.log_mean, log_power, rtol=1e-10, atol=1e-12)
        # chi-square >= (L1 distance)^2: no variance only for the best.
        assert float(got.relative_variance) >= np.abs(q - best).sum() ** 2 > 0


@pytest.mark.parametrize("shift", [1e-3, 1e-5, 1e-7, -1e-7])
def test_variance_near_the_optimum_keeps_its_digits(x64, shift):
    # To first order w/S - 1 is (alpha - 1/tau) (log p - its mean); E[w^2] - E[w]^2 would cancel.
    alpha, log_p = 4.0, random_log_p(5)
    temperature = (1 + shift) / alpha
    best = tempered(log_p, 1 / alpha)
    variance = (best * log_p**2).sum() - (best * log_p).sum() ** 2
    truth = (alpha - 1 / temperature) ** 2 * variance
    got = weight_moments(jnp.asarray(log_p), alpha, temperature).relative_variance
    assert float(got) == pytest.approx(truth, rel=max(30 * abs(shift), 1e-6))


@pytest.mark.parametrize("temperature", [0.02, 0.05])
def test_cold_proposals_overflow_to_infinity_and_never_to_nan(temperature):
    log_p = jnp.asarray([-1e-6, -14.0, -60.0], jnp.float32)
    got = weight_moments(log_p, 4.0, temperature)
    # log(p2^8 / q2) with q2 = e^(-60/tau)
    expected = -480 + 60 / temperature
    assert float(got.log_relative_variance) == pytest.approx(expected, rel=1e-3)
    assert float(got.relative_variance) == np.inf


def test_infinite_temperature_is_the_uniform_proposal(x64):
    log_p = random_log_p(6, impossible=(0,))
    mean, variance = moments_by_sums(log_p, np.where(np.arange(9) > 0, 1 / 8, 0.0), 3.0)
    got = weight_moments(jnp.asarray(log_p), 3.0, jnp.inf)
    np.testing.assert_allclose([got.mean, got.variance], [mean, variance], rtol=1e-10)


# --- supports ---


def test_a_proposal_that_misses_a_token_has_infinite_variance_and_too_small_a_mean(x64):
    log_p = random_log_p(7)
    q = tempered(log_p, 0.5)
    q[3] = 0
    q /= q.sum()
    with np.errstate(divide="ignore"):
        got = proposal_moments(jnp.asarray(log_p), jnp.asarray(np.log(q)), 2.0)
    assert float(got.relative_variance) == np.inf == float(got.variance)
    mean, _ = moments_by_sums(log_p, q, 2.0)
    np.testing.assert_allclose(got.mean, mean, rtol=1e-12)
    missing = np.exp(2 * log_p[3])
    assert float(got.mean) == pytest.approx((np.exp(log_p) ** 2).sum() - missing, rel=1e-12)


def test_missing_a_token_outside_the_support_changes_nothing(x64):
    log_p = random_log_p(7, impossible=(3,))
    got = proposal_moments(jnp.asarray(log_p), jnp.asarray(2 * log_p), 2.0)
    assert float(got.relative_variance) < 1e-28
    np.testing.assert_allclose(got.log_mean, np.log((np.exp(log_p) ** 2).sum()), rtol=1e-12)


def test_mass_outside_the_support_costs_its_share(x64):
    # w is 0 with chance 1/4 and constant otherwise: relative variance (1/4)/(3/4).
    log_p = jnp.log(jnp.asarray([0.5, 0.5, 0.0]))
    q = jnp.log(jnp.asarray([0.375, 0.375, 0.25]))
    got = proposal_moments(log_p, q, 4.0)
    assert float(got.relative_variance) == pytest.approx(1 / 3, rel=1e-12)
    assert float(got.mean) == pytest.approx(1 / 8, rel=1e-12)


def test_the_proposal_may_be_given_up_to_a_constant(x64):
    log_p, log_q = jnp.asarray(random_log_p(8)), jnp.asarray(random_log_p(9))
    one, two = proposal_moments(log_p, log_q, 2.0), proposal_moments(log_p, log_q + 5, 2.0)
    np.testing.assert_allclose(one, two, rtol=1e-12)


def test_empty_support_is_a_constant_weight_of_zero():
    empty = jnp.full(4, -jnp.inf)
    for got in (
        weight_moments(empty, 2.0, 0.7),
        proposal_moments(empty, jnp.zeros(4), 2.0),
    ):
        assert float(got.mean) == 0.0 == float(got.variance)
        assert float(got.relative_variance) == 0.0


def test_nan_is_not_taken_for_an_impossible_token():
    log_p = jnp.asarray([-0.5, jnp.nan, -2.0])
    assert np.isnan(log_power_sum(log_p, 2.0)) and np.isnan(renyi_entropy(log_p, 1.0))
    assert np.isnan(weight_moments(log_p, 2.0, 0.7).relative_variance)
    assert np.isnan(proposal_moments(log_p, jnp.zeros(3), 2.0).relative_variance)


# --- Corollary 1 and the Renyi entropy ---


@pytest.mark.parametrize("alpha", [1.5, 4.0])
def test_at_the_optimum_every_token_has_the_weight_s(x64, alpha):
    log_p = random_log_p(10)
    w = np.exp(log_p) ** alpha / tempered(log_p, 1 / alpha)
    np.testing.assert_allclose(np.log(w), float(log_power_sum(jnp.asarray(log_p), alpha)))


@pytest.mark.parametrize("alpha", [1.05, 1.5, 4.0, 30.0])
def test_log_power_sum_is_minus_alpha_less_one_times_the_renyi_entropy(x64, alpha):
    log_p = jnp.asarray(random_log_p(11, impossible=(6,)))
    expected = -(alpha - 1) * renyi_entropy(log_p, alpha)
    np.testing.assert_allclose(log_power_sum(log_p, alpha), expected, rtol=1e-12)
    direct = math.log(sum(math.exp(x) ** alpha for x in log_p.tolist()))
    np.testing.assert_allclose(log_power_sum(log_p, alpha), direct, rtol=1e-12)


def test_log_power_sum_equals_the_samplers_and_does_not_underflow():
    log_p = jnp.asarray(random_log_p(12, vocab=2000), jnp.float32)
    flat = jnp.full(2000, -math.log(2000), jnp.float32)
    rows = jnp.stack([log_p, flat])
    theirs = power_proposal(Logits(rows), jnp.ones(rows.shape, bool), jnp.float32(64.0)).log_sum
    np.testing.assert_allclose(log_power_sum(rows, 64.0), theirs, rtol=1e-6)
    assert float(log_power_sum(flat, 64.0)) == pytest.approx(-63 * math.log(2000), rel=1e-5)


@pytest.mark.parametrize("impossible", [(), (0, 5)])
def test_renyi_entropy_has_its_limits(x64, impossible):
    log_p = random_log_p(13, impossible=impossible)
    p = np.exp(log_p[np.isfinite(log_p)])
    shannon = -(p * np.log(p)).sum()
    for alpha, expected in (
        (0.0, np.log(len(p))),
        (1.0, shannon),
        (np.inf, -np.log(p.max())),
        (1e5, -np.log(p.max()) * 1e5 / (1e5 - 1)),
    ):
        got = float(renyi_entropy(jnp.asarray(log_p), alpha))
        assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9, 1e-13])
def test_renyi_entropy_is_smooth_at_one(x64, gap):
    # H_(1+e) = H - e Var(log p)/2 + O(e^2); the plain quotient has no digits left at 1e-13.
    log_p = random_log_p(14)
    p = np.exp(log_p)
    shannon = -(p * log_p).sum()
    variance = (p * log_p**2).sum() - shannon**2
    for sign in (-1, 1):
        exact_gap = (1 + sign * gap) - 1
        got = float(renyi_entropy(jnp.asarray(log_p), 1 + sign * gap))
        expected = shannon - exact_gap * variance / 2
        assert got == pytest.approx(expected, abs=10 * gap**2 + 1e-14)


@pytest.mark.parametrize("alpha", [0.9, 0.90001, 1.09999, 1.1])
def test_both_formulas_of_the_renyi_entropy_meet(x64, alpha):
    log_p = random_log_p(15, vocab=300, scale=3.0)
    direct = math.log((np.exp(log_p) ** alpha).sum()) / (1 - alpha)
    assert float(renyi_entropy(jnp.asarray(log_p), alpha)) == pytest.approx(direct, rel=1e-12)


def test_renyi_entropy_falls_with_alpha_and_is_flat_for_uniform():
    alphas = jnp.asarray([0.0, 0.5, 0.95, 1.0, 1.05, 2.0, 8.0, jnp.inf])
    log_p = jnp.asarray(random_log_p(16), jnp.float32)
    values = np.asarray(jax.vmap(lambda a: renyi_entropy(log_p, a))(alphas))
    assert np.all(np.diff(values) < 0)
    uniform = jnp.full(32, -math.log(32), jnp.float32)
    flat = jax.vmap(lambda a: renyi_entropy(uniform, a))(alphas)
    np.testing.assert_allclose(flat, math.log(32), rtol=1e-5)


@pytest.mark.parametrize("alpha", [1.05, 1.5, 1.85])
def test_renyi_entropy_of_a_large_flat_vocabulary_keeps_its_digits(alpha):
    log_p = jnp.full(150_000, -math.log(150_000), jnp.float32)
    assert float(renyi_entropy(log_p, alpha)) == pytest.approx(math.log(150_000), rel=1e-5)


# --- shapes and dtypes ---


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.float64])
def test_batches_and_dtypes(x64, dtype):
    rows = jnp.asarray([[random_log_p(10 * i + j) for j in range(3)] for i in range(2)], dtype)
    q = rows[::-1]

    def everything(log_p, log_q):
        return (
            *weight_moments(log_p, 4.0, 0.5),
            *proposal_moments(log_p, log_q, 4.0),
            log_power_sum(log_p, 4.0),
            renyi_entropy(log_p, 1.0),
            renyi_entropy(log_p, 2.0),
        )

    batched = everything(rows, q)
    one_by_one = jax.vmap(jax.vmap(everything))(rows, q)
    compiled = jax.jit(everything)(rows, q)
    for got, single, jitted in zip(batched, one_by_one, compiled, strict=True):
        assert got.shape == (2, 3) and got.dtype == dtype == jitted.dtype
        np.testing.assert_allclose(got, single, rtol=1e-5)
        np.testing.assert_allclose(got, jitted, rtol=1e-5)


def test_alpha_and_temperature_are_traced():
    traces, log_p = [], jnp.asarray(random_log_p(17), jnp.float32)

    @jax.jit
    def run(alpha, temperature):
        traces.append(1)
        return weight_moments(log_p, alpha, temperature).relative_variance

    values = [
        float(run(jnp.float32(a), jnp.float32(t))) for a, t in ((2, 0.5), (4, 0.25), (4, 1.0))
    ]
    assert len(traces) == 1 and values[:2] == [0.0, 0.0] and values[2] > 0.1


# --- which steps cost the most ---


def test_the_most_costly_steps_come_first_with_their_tokens():
    costs = weight_costs(jnp.asarray([-0.5, -2.0, 0.0, -0.5]), ["a", "b", "c", "d"])
    assert [tuple(cost) for cost in costs] == [
        (1, "b", 2.0),
        (0, "a", 0.5),
        (3, "d", 0.5),
        (2, "c", 0.0),
    ]
    assert math.copysign(1, costs[-1].cost) == 1
    assert weight_costs([-0.5, -2.0], [7, 8], count=1) == [(1, 8, 2.0)]
    tied = weight_costs([-1.0, -2.0] * 100, range(200))
    assert [cost.step for cost in tied] == [*range(1, 200, 2), *range(0, 200, 2)]
    assert weight_costs([], []) == [] == weight_costs([-1.0], [3], count=0)


def test_costs_are_the_entropies_of_the_steps_and_sum_to_the_lost_weight(x64):
    rows = jnp.asarray([random_log_p(seed, scale=0.5 + seed) for seed in range(6)])
    costs = weight_costs(log_power_sum(rows, 4.0), list(range(6)))
    entropies = np.asarray(renyi_entropy(rows, 4.0))
    for cost in costs:
        assert cost.cost == pytest.approx(3 * entropies[cost.step], rel=1e-12)
    assert [cost.step for cost in costs] == np.argsort(-entropies).tolist()
    log_weight = np.log((np.exp(np.asarray(rows)) ** 4).sum(axis=1)).sum()
    assert sum(cost.cost for cost in costs) == pytest.approx(-log_weight, rel=1e-12)


def test_a_step_with_an_empty_support_costs_everything():
    assert weight_costs([-1.0, -np.inf], [0, 1])[0] == (1, 1, np.inf)


def test_lists_and_scalars_of_numpy_and_jax_are_taken():
    log_p = np.log([0.5, 0.25, 0.25]).astype(np.float32)
    for alpha in (2, np.float64(2.0), jnp.int32(2)):
        for same in (log_p, log_p.tolist()):
            assert float(log_power_sum(same, alpha)) == pytest.approx(math.log(0.375), rel=1e-6)
            assert float(renyi_entropy(same, alpha)) == pytest.approx(-math.log(0.375), rel=1e-6)
            assert float(weight_moments(same, alpha, 1 / 2).variance) == pytest.approx(0, abs=1e-9)
            assert proposal_moments(same, [0, 0, 0], alpha).variance > 0
    assert len(weight_costs(jnp.asarray(log_p), jnp.arange(3), np.int64(2))) == 2


def test_an_empty_support_makes_no_nan_on_the_way():
    with jax.debug_nans(True):
        moments = proposal_moments([-np.inf, -np.inf], [0.0, 0.0], 2.0)
    assert moments.log_mean == moments.log_relative_variance == -np.inf


def test_costs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2,\) and there are 3 tokens"):
        weight_costs([-1.0, -2.0], [1, 2, 3])
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        weight_costs([[-1.0, -2.0]], [1])
    with pytest.raises(ValueError, match=r"^log_sum is NaN at step 1\.$"):
        weight_costs([-1.0, np.nan], [1, 2])
    with pytest.raises(ValueError, match=r"^count is -1; it must be an integer of at least 0\.$"):
        weight_costs([-1.0], [1], count=-1)
