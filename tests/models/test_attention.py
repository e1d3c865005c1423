"""Rotary positions, causal attention, and attention over a shared prompt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.models import attention
from tests.models import oracle

K, H = 2, 6  # key/value heads, head dimension

shared_prompt_attention = jax.jit(attention.shared_prompt_attention)


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def positions(*values):
    return jnp.asarray(values, jnp.int32)


def test_rotation_equals_complex_multiplication():
    x = normal(0, 9, K, H)
    rotated = attention.rotate(x, jnp.arange(9, dtype=jnp.int32), 100.0)
    np.testing.assert_allclose(rotated, oracle.rotate(np.asarray(x), 100.0), atol=1e-5)


@pytest.mark.parametrize("shift", [1, 250])
def test_scores_depend_on_relative_position_only(shift):
    q, k = normal(0, 5, K, H), normal(1, 5, K, H)
    at_q, at_k = positions(3, 9, 20, 7, 40), positions(0, 9, 1, 6, 2)

    def scores(offset):
        rotated_q = attention.rotate(q, at_q + offset, 10_000.0)
        rotated_k = attention.rotate(k, at_k, 10_000.0)
        rotated_shifted_k = attention.rotate(k, at_k + offset, 10_000.0)
        return (
            jnp.sum(rotated_q * rotated_shifted_k, axis=-1),
            jnp.sum(rotated_q * rotated_k, axis=-1),
        )

    together, _ = scores(jnp.int32(shift))
    reference, _ = scores(jnp.int32(0))
    _, apart = scores(jnp.int32(shift))
    np.testing.assert_allclose(together, reference, atol=1e-4)
    assert float(jnp.max(jnp.abs(apart - reference))) > 0.1


def test_rotation_of_grouped_queries_is_that_of_each_head():
    x = normal(0, 4, K, 3, H)
    at = positions(0, 5, 2, 9)
    whole = attention.rotate(x, at, 500.0)
    for g in range(3):
        np.testing.assert_array_equal(whole[:, :, g], attention.rotate(x[:, :, g], at, 500.0))


def test_position_zero_rotates_nothing():
    x = normal(0, 3, K, H)
    np.testing.assert_array_equal(attention.rotate(x, positions(0, 0, 0), 10_000.0), x)


def test_bfloat16_tells_neighbouring_positions_apart():
    # In bfloat16 itself, 257 is 256.
    x = jnp.ones((2, H), jnp.bfloat16)
    rotated = attention.rotate(x, positions(256, 257), 10_000.0)
    assert rotated.dtype == jnp.bfloat16
    exact = attention.rotate(x.astype(jnp.float32), positions(256, 257), 10_000.0)
    np.testing.assert_allclose(rotated.astype(jnp.float32), exact, atol=0.01)
    assert float(jnp.max(jnp.abs(exact[0] - exact[1]))) > 0.1


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("length", [1, 8])
def test_causal_attention_equals_the_loop(group, length):
    q, k, v = normal(0, length, K, group, H), normal(1, length, K, H), normal(2, length, K, H)
    out = jax.jit(attention.causal_attention)(q, k, v)
    plain_q = np.asarray(q).reshape(length, K * group, H)
    expected = oracle.attention(plain_q, np.asarray(k), np.asarray(v))
    np.testing.assert_allclose(out.reshape(length, -1), expected, atol=1e-5)


def test_gradient_of_causal_attention_is_that_of_the_softmax_form():
    q, k, v = normal(0, 5, K, 2, H), normal(1, 5, K, H), normal(2, 5, K, H)
    direction = normal(3, 5, K, 2, H)

    def softmax_form(q, k, v):
        scores = jnp.einsum("skgh,tkh->kgst", q, k) * jnp.float32(H**-0.5)
        scores = jnp.where(jnp.tri(5, dtype=bool)[None, None], scores, -jnp.inf)
        return jnp.einsum("kgst,tkh->skgh", jax.nn.softmax(scores, axis=-1), v)

    def gradient(function):
        slope = jax.grad(lambda *x: jnp.sum(direction * function(*x)), argnums=(0, 1, 2))
        return jax.jit(slope)(q, k, v)

    for ours, theirs in zip(
        gradient(attention.causal_attention), gradient(softmax_form), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def concatenated(q, prompt_k, prompt_v, k, v):
    """One particle's attention in float64, over a list of keys: q [K, G, H], keys [M, K, H]."""
    keys = np.concatenate([np.asarray(prompt_k), np.asarray(k)]).astype(np.float64)
    values = np.concatenate([np.asarray(prompt_v), np.asarray(v)]).astype(np.float64)
    scores = np.einsum("kgh,mkh->kgm", np.asarray(q, np.float64), keys) / np.sqrt(H)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("kgm,mkh->kgh", weights, values)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("prompt_length", [1, 4, 7])
@pytest.mark.parametrize(
    "entries", [[], [0], [0, 1, 2], [5, 0, 1], [0, 1, 2, 3, 4, 5]], ids=lambda x: f"entries{x}"
)
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_halves_merge_to_attention_over_the_concatenation(group, prompt_length, entries, scale):
    # What is not valid holds large numbers, so that any leak shows.
    n, bucket, capacity = 3, 7, 6
    q = scale * normal(0, n, K, group, H)
    prompt_valid = jnp.arange(bucket) < prompt_length
    valid = jnp.asarray(np.isin(np.arange(capacity), entries))
    junk = jnp.float32(1e4)
    prompt_k, prompt_v = (
        jnp.where(prompt_valid[:, None, None], normal(i, bucket, K, H), junk) for i in (1, 2)
    )
    k, v = (
        jnp.where(valid[None, None, :, None], normal(i, n, K, capacity, H), junk) for i in (3, 4)
    )
    out = shared_prompt_attention(
        q,
        prompt_k.transpose(1, 2, 0),
        prompt_v.transpose(1, 0, 2),
        prompt_valid,
        k.swapaxes(2, 3),
        v,
        valid,
    )
    for i in range(n):
        expected = concatenated(
            q[i],
            prompt_k[:prompt_length],
            prompt_v[:prompt_length],
            k[i][:, entries].transpose(1, 0, 2),
            v[i][:, entries].transpose(1, 0, 2),
        )
        np.testing.assert_allclose(out[i], expected, atol=2e-5 * max(1.0, scale / 10))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_keeps_its_dtype_and_stays_close(dtype):
    args = [normal(0, 2, K, 2, H), normal(1, K, H, 5), normal(2, K, 5, H)]
    own = [normal(3, 2, K, H, 4), normal(4, 2, K, 4, H)]
    prompt_valid, valid = jnp.arange(5) < 4, jnp.arange(4) < 3

    def run(cast):
        q, prompt_k, prompt_v, k, v = (x.astype(cast) for x in (*args, *own))
        return shared_prompt_attention(q, prompt_k, prompt_v, prompt_valid, k, v, valid)

    low, high = run(dtype), run(jnp.float32)
    assert low.dtype == dtype
    np.testing.assert_allclose(low.astype(jnp.float32), high, atol=0.03)
