"""The children of a population: explicit ones, tails, and the tokens drawn from them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.samplers.children import expand, most_probable
from jax_power_smc.samplers.proposal import normalise

pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.partial(jax.jit, static_argnames=("explicit",))
def children_of(log_p, ends, explicit, exponent):
    """The children of particles with these log p [N, V], everything allowed."""
    logits, allowed = Logits(jnp.asarray(log_p)), jnp.ones((1, log_p.shape[1]), bool)
    token = most_probable(logits, allowed, explicit)
    return expand(logits, normalise(logits), token, allowed, jnp.asarray(ends), exponent)


def test_a_drawn_child_has_its_parent_token_and_log_p():
    p = np.array([[0.4, 0.3, 0.2, 0.1, 0.0], [0.1, 0.1, 0.1, 0.2, 0.5]])
    with np.errstate(divide="ignore"):
        log_p = np.log(p).astype(np.float32)
    ends = np.array([[False, False, True, False, False]])
    children = children_of(log_p, ends, 2, exponent=jnp.float32(2.0))
    assert children.token.tolist() == [[0, 1], [4, 3]]
    live = [[0.16, 0.09, 0.01], [0.25, 0.04, 0.02]]
    np.testing.assert_allclose(np.exp(children.live), live, rtol=1e-5)
    np.testing.assert_allclose(np.exp(children.ending), [[0, 0, 0.04], [0, 0, 0.01]], rtol=1e-5)
    # Columns 1 and 2 (the tail) of both particles; for each the tail has a second number.
    row = jnp.array([0, 0, 1, 1, 1], jnp.int32)
    column = jnp.array([1, 2, 1, 2, 2], jnp.int32)
    uniforms = jnp.tile(jnp.array([0.1, 0.1, 0.1, 0.1, 0.9], jnp.float32)[:, None], (1, 2))
    token, token_log_p = children.draw(row, column, children.live_tail, uniforms)
    assert token.tolist() == [1, 3, 3, 0, 1]
    np.testing.assert_allclose(token_log_p, log_p[row, token], rtol=1e-5)
    token, _ = children.draw(row, column, children.ending_tail, uniforms)
    assert token.tolist() == [1, 2, 3, 2, 2]


def test_tail_masses_of_a_large_vocabulary():
    vocab, num, explicit = 152_000, 2, 8
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(num, vocab))
    logits[:, rng.permutation(vocab)[:explicit]] += 19 + rng.random(explicit)
    log_p = (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)
    ends = np.zeros((num, vocab), bool)
    ends[:, ::50] = True
    children = children_of(log_p, ends, explicit, exponent=4.0)
    exact = 4 * log_p.astype(np.float64)
    token = np.asarray(children.token)
    rest = np.ones((num, vocab), bool)
    np.put_along_axis(rest, token, False, axis=1)
    for found, inside in ((children.live, rest & ~ends), (children.ending, rest & ends)):
        truth = np.array(
            [np.logaddexp.reduce(row[keep]) for row, keep in zip(exact, inside, strict=True)]
        )
        assert (truth < -30).all()
        np.testing.assert_allclose(np.asarray(found)[:, -1], truth, rtol=1e-6)
        np.testing.assert_allclose(np.exp(np.asarray(found)[:, -1] - truth), 1, rtol=1e-4)
    # The difference of the sums is zero or rounding: far from the truth either way.
    mass = np.exp(4 * log_p)
    difference = mass.sum(axis=1) - np.take_along_axis(mass, token, axis=1).sum(axis=1)
    truth = np.where(rest, np.exp(exact), 0).sum(axis=1)
    assert (np.abs(difference / truth - 1) > 0.99).all()
    # The explicit children are the largest, and none is in both.
    largest = np.argsort(-log_p, axis=1)[:, :explicit]
    assert (np.sort(token, axis=1) == np.sort(largest, axis=1)).all()
    both = np.concatenate([children.live, children.ending], axis=1)
    assert np.isfinite(both).sum() == num * (explicit + 2)


@pytest.mark.parametrize("own_supports", [False, True])
def test_explicit_children_of_a_large_vocabulary_are_the_largest(own_supports):
    # 64 blocks of 64 tokens: enough to search only a few blocks for the 16 largest.
    num, vocab, explicit = 3, 4096, 16
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(num, vocab)).astype(np.float32)
    logits[0, 1000:1100] += 10  # many of them in one block
    logits[1] = np.round(logits[1])  # ties
    allowed = rng.random((num if own_supports else 1, vocab)) < 0.5
    token = np.asarray(most_probable(Logits(jnp.asarray(logits)), jnp.asarray(allowed), explicit))
    inside = np.where(allowed, logits, -np.inf)
    found = np.take_along_axis(inside, token, axis=1)
    np.testing.assert_array_equal(-np.sort(-found), -np.sort(-inside)[:, :explicit])
    assert all(len(set(row)) == explicit for row in token.tolist())
