"""The exponent ramp, its bridge and its catch-up."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.smc.exponent_ramp import bridge, exponent_at


def exponents(alpha, ramp_tokens, steps):
    return [
        float(exponent_at(jnp.int32(t), jnp.float32(alpha), jnp.int32(ramp_tokens)))
        for t in range(steps)
    ]


def test_ramp_rises_linearly_from_one_to_alpha():
    assert exponents(4.0, 4, 7) == [1.0, 1.75, 2.5, 3.25, 4.0, 4.0, 4.0]


def test_no_ramp_is_alpha_from_the_first_step():
    assert exponents(3.5, 0, 3) == [3.5, 3.5, 3.5]


def test_ramp_of_one_token_starts_at_one():
    assert exponents(8.0, 1, 3) == [1.0, 8.0, 8.0]


@pytest.mark.parametrize("ramp_tokens", [0, 1, 5])
def test_alpha_one_stays_one(ramp_tokens):
    assert exponents(1.0, ramp_tokens, 7) == [1.0] * 7


def test_long_ramp_never_falls_nor_passes_alpha():
    values = exponents(4.0, 37, 60)
    assert all(a <= b for a, b in itertools.pairwise(values))
    assert max(values) == 4.0 and values[37] == 4.0 and values[36] < 4.0


def test_exponent_has_the_dtype_of_alpha(x64):
    for dtype in (jnp.float32, jnp.float64):
        assert exponent_at(jnp.int32(2), jnp.asarray(4, dtype), jnp.int32(3)).dtype == dtype


def test_bridge_adds_the_difference_times_log_p():
    out = bridge(
        jnp.array([0.0, -1.0, -jnp.inf]),
        jnp.array([-2.0, 0.0, -3.0]),
        jnp.float32(1.0),
        jnp.float32(2.5),
    )
    np.testing.assert_allclose(out, [-3.0, -1.0, -np.inf])


@pytest.mark.parametrize("ramp_tokens", [0, 1, 3, 50])
@pytest.mark.parametrize("last_step", [0, 2, 9])
def test_ramp_and_catch_up_add_alpha_minus_one_in_total(x64, ramp_tokens, last_step):
    log_prob = jnp.array([-0.3, -7.0])
    alpha = jnp.asarray(4.0)
    log_weight, old = jnp.zeros(2), jnp.asarray(1.0)
    for t in range(last_step + 1):
        new = exponent_at(jnp.int32(t), alpha, jnp.int32(ramp_tokens))
        log_weight, old = bridge(log_weight, log_prob, old, new), new
    log_weight = bridge(log_weight, log_prob, old, alpha)
    np.testing.assert_allclose(log_weight, 3 * log_prob, rtol=1e-12)


def test_ramp_numbers_are_traced():
    traces = []

    @jax.jit
    def run(step, alpha, ramp_tokens):
        traces.append(1)
        return exponent_at(step, alpha, ramp_tokens)

    for step, alpha, ramp in ((0, 2.0, 0), (3, 4.0, 6), (1, 1.0, 1)):
        run(jnp.int32(step), jnp.float32(alpha), jnp.int32(ramp))
    assert len(traces) == 1
