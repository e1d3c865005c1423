"""Attention of one and of several tokens per row, against loops in numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.models.transformer import attention
from jax_power_smc.models.transformer.attention import Scoring
from tests.models import oracle

K, H = 2, 6  # key/value heads, head dimension
PLAIN = Scoring(H**-0.5)
SCORINGS = {
    "plain": PLAIN,
    "scale": Scoring(2.0),
    "softcap": Scoring(0.7, softcap=1.5),
    "window-1": Scoring(0.7, window=1),
    "window-3": Scoring(0.7, window=3),
    "window-and-softcap": Scoring(0.7, softcap=2.0, window=4),
    "window-beyond-all": Scoring(0.7, window=100),
}
every_scoring = pytest.mark.parametrize("name", SCORINGS)

decode = jax.jit(attention.decode, static_argnames="scoring")
extend = jax.jit(attention.extend, static_argnames=("scoring", "in_parts"))


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def one(q, k, v, position, scoring):
    """One query [K, G, H] over its row's keys and values [T, K, H], in float64."""
    first = 0 if scoring.window is None else max(0, position + 1 - scoring.window)
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = k[first : position + 1], v[first : position + 1]
    scores = np.einsum("kgh,mkh->kgm", q, k) * scoring.scale
    if scoring.softcap is not None:
        scores = scoring.softcap * np.tanh(scores / scoring.softcap)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("kgm,mkh->kgh", weights, v)


def rows_of(lengths, capacity, seed=0):
    """Keys and values [R, T, K, H]; beyond the lengths, large numbers, so that any leak shows."""
    filled = np.arange(capacity)[None] < np.asarray(lengths)[:, None]
    return [
        jnp.where(filled[..., None, None], normal(seed + i, len(lengths), capacity, K, H), 1e4)
        for i in (1, 2)
    ]


def viewed(k, v):
    return k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)


@every_scoring
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("lengths", [[1], [9, 1, 4, 7]], ids=str)
def test_one_token_attends_to_the_filled_entries_of_its_row(name, group, lengths):
    scoring, q = SCORINGS[name], normal(0, len(lengths), K, group, H)
    k, v = rows_of(lengths, 9)
    out = decode(q, *viewed(k, v), jnp.asarray(lengths, jnp.int32) - 1, scoring)
    for r, length in enumerate(lengths):
        expected = one(q[r], k[r], v[r], length - 1, scoring)
        np.testing.assert_allclose(out[r], expected, atol=2e-5)


@every_scoring
@pytest.mark.parametrize("in_parts", [True, False])
@pytest.mark.parametrize("limit", [1, 5 * 3 * K * 2 * 12, 10**6])
def test_several_tokens_attend_to_what_is_before_each(name, in_parts, limit, monkeypatch):
    # At most one, five, or all of 7 tokens at a time.
    monkeypatch.setattr(attention, "MAX_SCORES", limit)
    scoring, first, block = SCORINGS[name], np.array([0, 4, 2]), 7
    k, v = rows_of(first + block, 12)
    q = normal(0, 3, block, K, 2, H)
    position = first[:, None] + np.arange(block)[None]
    out = jax.jit(attention.extend, static_argnums=(4, 5))(
        q, *viewed(k, v), jnp.asarray(position, jnp.int32), scoring, in_parts
    )
    for r in range(3):
        for b in range(block):
            expected = one(q[r, b], k[r], v[r], position[r, b], scoring)
            np.testing.assert_allclose(out[r, b], expected, atol=2e-5)


def test_how_many_scores_are_held():
    assert attention.scores_at_a_time(1, 4096, 4, 4096) == attention.MAX_SCORES
    assert attention.scores_at_a_time(3, 4096, 4, 10**9) == 3 * 4 * 10**9  # one token
    assert attention.scores_at_a_time(3, 5, 4, 6) == 3 * 5 * 4 * 6


def test_memory_does_not_grow_with_the_square_of_the_length():
    length = 16384
    shapes = (1, length, K, 2, 8), (1, K, 8, length), (1, K, length, 8)
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    at = jax.ShapeDtypeStruct((1, length), jnp.int32)
    planned = extend.lower(*args, at, scoring=PLAIN).compile().memory_analysis()
    assert planned.temp_size_in_bytes < 3 * 4 * attention.MAX_SCORES < 4 * 4 * length**2 / 8


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("length", [1, 8])
def test_attention_of_whole_sequences_equals_the_loop(group, length):
    q, k, v = normal(0, length, K, group, H), normal(1, length, K, H), normal(2, length, K, H)
    position = jnp.arange(length, dtype=jnp.int32)[None]
    out = extend(q[None], *viewed(k[None], v[None]), position, scoring=PLAIN)
    plain_q = np.asarray(q).reshape(length, K * group, H)
    expected = oracle.attention(plain_q, np.asarray(k), np.asarray(v))
    np.testing.assert_allclose(out.reshape(length, -1), expected, atol=1e-5)


def test_gradient_is_that_of_the_softmax_form():
    q, k, v = normal(0, 2, 5, K, 2, H), normal(1, 2, 5, K, H), normal(2, 2, 5, K, H)
    direction = normal(3, 2, 5, K, 2, H)
    position = jnp.arange(5, dtype=jnp.int32)[None]

    def ours(q, k, v):
        return attention.extend(q, *viewed(k, v), position, PLAIN, in_parts=False)

    def softmax_form(q, k, v):
        scores = jnp.einsum("bskgh,btkh->bkgst", q, k) * jnp.float32(H**-0.5)
        scores = jnp.where(jnp.tri(5, dtype=bool)[None, None, None], scores, -jnp.inf)
        return jnp.einsum("bkgst,btkh->bskgh", jax.nn.softmax(scores, axis=-1), v)

    def gradient(function):
        slope = jax.grad(lambda *x: jnp.sum(direction * function(*x)), argnums=(0, 1, 2))
        return jax.jit(slope)(q, k, v)

    for got, expected in zip(gradient(ours), gradient(softmax_form), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_scores_far_apart_stay_finite():
    scoring = dataclasses.replace(PLAIN, scale=300.0)
    q, (k, v) = normal(0, 2, K, 2, H), rows_of([6, 6], 6)
    out = decode(q, *viewed(k, v), jnp.asarray([5, 5], jnp.int32), scoring)
    for r in range(2):
        expected = one(q[r], k[r], v[r], 5, scoring)
        np.testing.assert_allclose(out[r], expected, atol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_keeps_its_dtype_and_stays_close(dtype):
    q, (k, v) = normal(0, 2, K, 2, H), [normal(i, 2, 5, K, H) for i in (1, 2)]
    position = jnp.asarray([3, 4], jnp.int32)

    def run(cast):
        return decode(q.astype(cast), *viewed(k.astype(cast), v.astype(cast)), position, PLAIN)

    low, high = run(dtype), run(jnp.float32)
    assert low.dtype == dtype
    np.testing.assert_allclose(low.astype(jnp.float32), high, atol=0.03)


def test_double_precision(x64):
    q, (k, v) = (
        normal(0, 2, K, 2, H, dtype=jnp.float64),
        [normal(i, 2, 5, K, H, dtype=jnp.float64) for i in (1, 2)],
    )
    out = decode(q, *viewed(k, v), jnp.asarray([3, 4], jnp.int32), PLAIN)
    for r, position in enumerate((3, 4)):
        expected = one(q[r], k[r], v[r], position, PLAIN)
        np.testing.assert_allclose(out[r], expected, atol=1e-14)
