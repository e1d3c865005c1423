"""Log weights, evidence and the effective sample size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.smc import weights


def random_log_weights(seed, num, dead=0):
    values = np.random.default_rng(seed).normal(scale=3.0, size=num)
    values[:dead] = -np.inf
    return values


@pytest.mark.parametrize("num", [1, 3, 64])
def test_uniform_weights_sum_to_one(num):
    log_weight = weights.uniform(num, jnp.float32)
    assert log_weight.shape == (num,) and log_weight.dtype == jnp.float32
    np.testing.assert_allclose(np.exp(log_weight), 1 / num, rtol=1e-6)


@pytest.mark.parametrize(("seed", "dead"), [(0, 0), (1, 3), (2, 7)])
def test_renormalize_moves_the_sum_into_the_evidence(x64, seed, dead):
    before = random_log_weights(seed, 8, dead)
    log_weight, evidence = weights.renormalize(jnp.asarray(before), jnp.asarray(-4.0))
    np.testing.assert_allclose(np.exp(log_weight).sum(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(log_weight) + float(evidence), before - 4.0, rtol=1e-12)
    assert float(evidence) == pytest.approx(np.log(np.exp(before).sum()) - 4.0, rel=1e-12)


def test_dead_population_is_never_made_uniform():
    dead = jnp.full((3,), -jnp.inf)
    log_weight, evidence = weights.renormalize(dead, jnp.float32(-1.0))
    assert np.all(np.asarray(log_weight) == -np.inf) and float(evidence) == -np.inf
    log_weight, evidence = weights.renormalize(log_weight, evidence)
    assert np.all(np.asarray(log_weight) == -np.inf) and float(evidence) == -np.inf


def test_differences_keep_their_digits_over_a_long_sequence():
    # The plain sum of 4000 steps of about -50 nats has 0.0156 as its last float32 digit.
    def step(carry, _):
        log_weight, evidence = carry
        return weights.renormalize(log_weight + jnp.array([-50.0, -50.0001]), evidence), None

    (log_weight, evidence), _ = jax.lax.scan(
        step, (jnp.zeros(2), jnp.float32(0.0)), None, length=4000
    )
    # -50.0001 itself has an error of 4e-6, which 4000 steps add up.
    gap = 4000 * float(np.float32(-50.0) - np.float32(-50.0001))
    assert float(log_weight[0] - log_weight[1]) == pytest.approx(gap, abs=2e-4)
    assert float(evidence) == pytest.approx(np.logaddexp(-200000, -200000 - gap), rel=1e-4)


@pytest.mark.parametrize(("seed", "dead"), [(0, 0), (1, 5), (2, 9)])
def test_effective_sample_size_follows_its_formula(x64, seed, dead):
    log_weight = random_log_weights(seed, 10, dead)
    w = np.exp(log_weight)
    expected = w.sum() ** 2 / (w**2).sum()
    ess = float(weights.effective_sample_size(jnp.asarray(log_weight)))
    assert ess == pytest.approx(expected, rel=1e-12)
    shifted = float(weights.effective_sample_size(jnp.asarray(log_weight - 900.0)))
    assert shifted == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("log_weight", "expected"),
    [
        ([0.0] * 6, 6.0),
        ([-30.0] * 6, 6.0),
        ([0.0, -jnp.inf, -jnp.inf], 1.0),
        ([-jnp.inf, 3.0, 3.0], 2.0),
        ([0.0, -500.0, -500.0], 1.0),
        ([-jnp.inf] * 4, 0.0),
        ([-7.0], 1.0),
    ],
)
def test_extremes_of_the_effective_sample_size(log_weight, expected):
    ess = float(weights.effective_sample_size(jnp.array(log_weight, jnp.float32)))
    assert ess == pytest.approx(expected, rel=2e-5)
