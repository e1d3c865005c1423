"""Indices from masses and uniform numbers, at the edges too."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.smc import inverse_cdf

JUST_BELOW_ONE = np.float32(1 - 2**-24)


def invert(mass, uniforms):
    return np.asarray(
        inverse_cdf.invert(jnp.asarray(mass, jnp.float32), jnp.asarray(uniforms, jnp.float32))
    )


def test_intervals_are_closed_on_the_left():
    mass = [0.25, 0.0, 0.25, 0.5]
    below = np.nextafter(np.float32(0.25), np.float32(0))
    uniforms = [0.0, below, 0.25, 0.375, 0.5, 0.75, JUST_BELOW_ONE]
    assert invert(mass, uniforms).tolist() == [0, 0, 2, 2, 3, 3, 3]


def test_masses_need_not_be_normalised():
    assert invert([3.0, 1.0], [0.0, 0.74, 0.76]).tolist() == [0, 0, 1]
    assert invert([3e-30, 1e-30], [0.0, 0.74, 0.76]).tolist() == [0, 0, 1]


@pytest.mark.parametrize("uniform", [0.0, 0.5, JUST_BELOW_ONE])
@pytest.mark.parametrize("where", [0, 3, 6])
def test_all_mass_on_one_index(where, uniform):
    mass = np.zeros(7)
    mass[where] = 0.3
    assert invert(mass, [uniform]).tolist() == [where]


def test_zero_mass_at_both_ends_is_skipped():
    mass = [0.0, 0.0, 0.1, 0.7, 0.0]
    assert invert(mass, [0.0]).tolist() == [2]
    assert invert(mass, [JUST_BELOW_ONE]).tolist() == [3]


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_numpy_searchsorted(x64, seed):
    rng = np.random.default_rng(seed)
    mass = rng.exponential(size=50) * (rng.random(50) < 0.6)
    uniforms = rng.random(1000)
    cdf = np.cumsum(mass)
    expected = np.searchsorted(cdf, uniforms * cdf[-1], side="right")
    got = np.asarray(inverse_cdf.invert(jnp.asarray(mass), jnp.asarray(uniforms)))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("seed", range(3))
def test_float32_with_2048_masses_picks_only_positive_ones(seed):
    rng = np.random.default_rng(seed)
    mass = (rng.dirichlet(np.full(2048, 0.1)) * (rng.random(2048) < 0.3)).astype(np.float32)
    uniforms = np.concatenate([[0.0, JUST_BELOW_ONE], rng.random(4000), np.cumsum(mass)[:-1]])
    uniforms = np.sort(np.minimum(uniforms, JUST_BELOW_ONE).astype(np.float32))
    index = invert(mass, uniforms)
    assert np.all(mass[index] > 0)
    assert np.all(np.diff(index) >= 0)


def test_each_index_owns_its_share_of_the_unit_interval():
    mass = np.array([0.1, 0.0, 0.35, 0.05, 0.5])
    grid = (np.arange(20000) + 0.5) / 20000
    share = np.bincount(invert(mass, grid), minlength=5) / 20000
    np.testing.assert_allclose(share, mass, atol=1e-4)


def test_running_sum_is_monotone_and_flat_where_the_mass_is_zero():
    rng = np.random.default_rng(5)
    mass = (rng.random(3000) * (rng.random(3000) < 0.5)).astype(np.float32)
    cdf = np.asarray(inverse_cdf.cumulative(jnp.asarray(mass)))
    steps = np.diff(cdf, prepend=np.float32(0))
    assert np.all(steps >= 0) and np.all(steps[mass == 0] == 0)
    np.testing.assert_allclose(cdf, np.cumsum(mass.astype(np.float64)), rtol=1e-5)


def test_each_distribution_is_inverted_separately():
    rng = np.random.default_rng(7)
    mass = rng.exponential(size=(20, 9)) * (rng.random((20, 9)) < 0.5)
    mass[:, 4] += 0.1
    uniforms = rng.random(20)
    each = inverse_cdf.invert_each(
        jnp.asarray(mass, jnp.float32), jnp.asarray(uniforms, jnp.float32)
    )
    single = [int(invert(m, [u])[0]) for m, u in zip(mass, uniforms, strict=True)]
    assert np.asarray(each).tolist() == single
    assert len(set(single)) > 3


def test_last_positive_along_the_last_axis_and_of_nothing():
    mass = jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert np.asarray(inverse_cdf.last_positive(mass)).tolist() == [1, 0, 2]
