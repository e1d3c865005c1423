"""Causal attention, and attention over a shared prompt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.models.transformer import attention
from tests.models import oracle

K, H = 2, 6  # key/value heads, head dimension

shared_prompt_attention = jax.jit(attention.shared_prompt_attention)


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def positions(*values):
    return jnp.asarray(values, jnp.int32)


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
