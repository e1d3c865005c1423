"""Resampling against other libraries: ``blackjax`` and ``particles`` on the same numbers.

Both invert a CDF by ``point <= cdf``, and this library by ``point < cdf``. At a point on an edge
they draw the index that ends there (even one of weight zero, at point 0), and this library the next
index of positive weight. Everywhere else all must agree, slot by slot.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.smc import resampling as blackjax_resampling

from jax_power_smc.smc import resampling

pytestmark = pytest.mark.usefixtures("quick_compilation")

NAMES = ("systematic", "stratified", "residual", "multinomial")


def weights_of(seed, num):
    """Random weights with runs of zeros, also at both ends."""
    rng = np.random.default_rng(seed)
    weights = rng.exponential(size=num) ** 2 * (rng.random(num) < 0.6)
    weights[num // 2] += 0.1
    weights[[0, -1]] = 0.0
    return weights / weights.sum()


def ours(name, weights, uniforms):
    scheme = resampling.SCHEMES[name]
    return np.asarray(scheme(jnp.asarray(weights), jnp.asarray(uniforms)))


def by_blackjax(name, weights, key):
    """What blackjax draws, and the uniform numbers that it drew with, slot by slot."""
    num = len(weights)
    # It mixes dtypes.
    with jax.numpy_dtype_promotion("standard"):
        drawn = np.asarray(getattr(blackjax_resampling, name)(key, jnp.asarray(weights), num))
        if name == "systematic":
            return drawn, jnp.broadcast_to(jax.random.uniform(key, ()), (num,))
        if name == "stratified":
            return drawn, jax.random.uniform(key, (num,))
        if name == "multinomial":
            return drawn, blackjax_resampling._sorted_uniforms(key, num)
        first, second = jax.random.split(key)
        uniforms = blackjax_resampling._sorted_uniforms(first, num)
        return drawn, jax.random.permutation(second, uniforms)


class Numbers:
    """Stands for numpy.random inside ``particles`` and remembers what it gave."""

    def __init__(self, seed, fixed=None):
        self.rng, self.fixed, self.given = np.random.default_rng(seed), fixed, None

    def rand(self, num):
        self.given = self.rng.random(num) if self.fixed is None else np.full(num, self.fixed)
        return self.given


def by_particles(name, weights, numbers, monkeypatch):
    """What ``particles`` draws, and the uniform numbers it used, slot by slot."""
    # Its latest release, 0.4, requires numpy < 2, so it is not among the test dependencies.
    module = pytest.importorskip("particles.resampling")
    monkeypatch.setattr(module, "random", numbers)
    num = len(weights)
    drawn = np.asarray(module.resampling(name, weights, num))
    uniforms = np.full(num, 0.5)
    if name in ("systematic", "stratified"):
        uniforms[:] = numbers.given
    elif numbers.given is not None:  # ordered numbers of the last slots
        spacings = np.cumsum(-np.log(numbers.given))
        uniforms[num - len(spacings) + 1 :] = spacings[:-1] / spacings[-1]
    return drawn, uniforms


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num", [2, 7, 64])
def test_blackjax_draws_the_same(x64, name, num):
    different = set()
    for seed in range(5):
        weights = weights_of(seed, num) if num > 2 else np.full(num, 1 / num)
        drawn, uniforms = by_blackjax(name, weights, jax.random.key(seed))
        np.testing.assert_array_equal(ours(name, weights, uniforms), drawn)
        assert (weights[drawn] > 0).all()
        different.add(tuple(drawn.tolist()))
    assert num < 7 or len(different) > 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num", [2, 7, 64])
def test_particles_draws_the_same(x64, name, num, monkeypatch):
    for seed in range(5):
        weights = weights_of(seed, num) if num > 2 else np.full(num, 1 / num)
        drawn, uniforms = by_particles(name, weights, Numbers(seed), monkeypatch)
        np.testing.assert_array_equal(ours(name, weights, uniforms), drawn)


EDGES = [
    ([0.25, 0.25, 0.25, 0.25], 0.0, [0, 1, 2, 3]),
    ([0.0, 0.5, 0.0, 0.5], 0.0, [1, 1, 3, 3]),
    ([0.5, 0.0, 0.0, 0.5], 0.0, [0, 0, 3, 3]),
    ([0.0, 0.0, 1.0, 0.0], 0.0, [2, 2, 2, 2]),
    ([0.125, 0.375, 0.0, 0.5], 0.5, [1, 1, 3, 3]),
    ([0.625, 0.0, 0.0, 0.375], 0.5, [0, 0, 3, 3]),
]


@pytest.mark.parametrize("name", ["systematic", "stratified"])
@pytest.mark.parametrize(("weights", "uniform", "expected"), EDGES)
def test_points_on_the_edges(x64, name, weights, uniform, expected, monkeypatch):
    weights = np.array(weights)
    assert ours(name, weights, np.full(4, uniform)).tolist() == expected
    # Just to the right of the edge blackjax agrees; on it, it differs somewhere.
    for nudge in (1e-9, 0.0):
        monkeypatch.setattr(
            jax.random, "uniform", lambda key, shape=(), at=uniform + nudge: jnp.full(shape, at)
        )
        theirs = getattr(blackjax_resampling, name)(jax.random.key(0), jnp.asarray(weights), 4)
        assert (theirs.tolist() == expected) == (nudge > 0)


@pytest.mark.parametrize("name", ["systematic", "stratified"])
@pytest.mark.parametrize(("weights", "uniform", "expected"), EDGES)
def test_points_on_the_edges_of_particles(name, weights, uniform, expected, monkeypatch):
    drawn, _ = by_particles(name, np.array(weights), Numbers(0, uniform + 1e-9), monkeypatch)
    assert drawn.tolist() == expected
