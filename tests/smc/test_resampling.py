"""Resampling: unbiased, within its bounds, never a zero weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.smc import resampling

NAMES = ("systematic", "stratified", "residual", "multinomial")
JUST_BELOW_ONE = np.float32(1 - 2**-24)


def ancestors_of(name, weights, uniforms):
    return np.asarray(
        resampling.SCHEMES[name](
            jnp.asarray(weights, jnp.float32), jnp.asarray(uniforms, jnp.float32)
        )
    )


def counts_of(name, weights, uniforms):
    return np.bincount(ancestors_of(name, weights, uniforms), minlength=len(weights))


def random_weights(seed, num, alive=0.7):
    rng = np.random.default_rng(seed)
    weights = rng.exponential(size=num) ** 3 * (rng.random(num) < alive)
    weights[num // 2] += 0.01
    return weights / weights.sum()


def test_the_schemes_are_those_of_the_paper():
    assert set(resampling.SCHEMES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_expected_counts_are_n_times_the_weight(x64, name, seed):
    # A mean of counts is a sum over slots, and each slot's number is uniform on its own, so one
    # grid for all slots at once integrates it.
    weights, num, size = random_weights(seed, 7), 7, 20000
    grid = jnp.asarray((np.arange(size) + 0.5) / size)
    scheme = resampling.SCHEMES[name]
    drawn = jax.jit(jax.vmap(lambda u: scheme(jnp.asarray(weights), jnp.full((num,), u))))(grid)
    counts = np.bincount(np.asarray(drawn).ravel(), minlength=7) / size
    np.testing.assert_allclose(counts, num * weights, atol=2 * num / size)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_counts_keep_within_the_bounds_of_the_scheme(name, seed):
    num = 16
    weights = random_weights(seed, num)
    bound = {"systematic": 1, "stratified": 2, "residual": num, "multinomial": num}[name]
    for uniforms in np.random.default_rng(seed + 50).random((20, num)):
        counts = counts_of(name, weights, uniforms)
        assert counts.sum() == num
        assert np.all(np.abs(counts - num * weights) < bound + 1e-4)
        if name == "residual":
            assert np.all(counts >= np.floor(num * weights - 1e-4))


@pytest.mark.parametrize("name", ["systematic", "stratified", "residual"])
@pytest.mark.parametrize("num", [8, 10, 48])
def test_equal_weights_keep_every_particle(name, num):
    # Not every 1/N is exact in float32: N * (1/N) must not come out as just below one copy.
    weights = np.full(num, 1 / num, np.float32)
    for uniforms in np.random.default_rng(0).uniform(0.01, 0.99, (5, num)):
        assert counts_of(name, weights, uniforms).tolist() == [1] * num


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("uniform", [0.0, 0.5, JUST_BELOW_ONE])
def test_zero_weights_are_never_chosen(name, uniform):
    weights = [0.0, 0.25, 0.0, 0.0, 0.5, 0.25, 0.0, 0.0]
    chosen = ancestors_of(name, weights, np.full(8, uniform, np.float32))
    assert set(chosen.tolist()) <= {1, 4, 5}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("uniform", [0.0, JUST_BELOW_ONE])
@pytest.mark.parametrize("where", [0, 2, 4])
def test_all_mass_on_one_index(name, uniform, where):
    weights = np.zeros(5)
    weights[where] = 1.0
    assert counts_of(name, weights, np.full(5, uniform, np.float32))[where] == 5


def test_points_at_the_cdf_edges_belong_to_the_next_index():
    # Systematic points 0, 1/4, 2/4, 3/4 on a CDF of 1/4, 2/4, 3/4, 1.
    assert ancestors_of("systematic", [0.25] * 4, np.zeros(4)).tolist() == [0, 1, 2, 3]
    assert ancestors_of("systematic", [0.5, 0.0, 0.5, 0.0], np.zeros(4)).tolist() == [0, 0, 2, 2]


def test_systematic_uses_one_number():
    weights = random_weights(3, 8)
    uniforms = np.random.default_rng(3).random(8)
    changed = uniforms.copy()
    changed[1:] = 0.9
    np.testing.assert_array_equal(
        ancestors_of("systematic", weights, uniforms), ancestors_of("systematic", weights, changed)
    )


@pytest.mark.parametrize("name", ["stratified", "multinomial"])
def test_slots_use_their_own_number_only(name):
    weights = np.full(8, 0.125)
    weights[::2], weights[1::2] = 0.2, 0.05
    uniforms = np.random.default_rng(4).random(8)
    before = ancestors_of(name, weights, uniforms)
    moved = False
    for slot in range(8):
        changed = uniforms.copy()
        changed[slot] = (uniforms[slot] + 0.5) % 1
        after = ancestors_of(name, weights, changed)
        others = np.arange(8) != slot
        np.testing.assert_array_equal(after[others], before[others])
        moved |= after[slot] != before[slot]
    assert moved


@pytest.mark.parametrize("name", NAMES)
def test_float32_with_2048_particles(name):
    num = 2048
    weights = random_weights(11, num, alive=0.4).astype(np.float32)
    rng = np.random.default_rng(12)
    for uniforms in (rng.random(num), np.zeros(num), np.full(num, JUST_BELOW_ONE)):
        counts = counts_of(name, weights, uniforms)
        assert counts.sum() == num and np.all(counts[weights == 0] == 0)
        expected = num * weights.astype(np.float64) / weights.sum(dtype=np.float64)
        if name == "systematic":
            assert np.all(np.abs(counts - expected) < 1.01)
        if name == "stratified":
            assert np.all(np.abs(counts - expected) < 2.01)
        if name == "residual":
            assert np.all(counts >= np.floor(expected - 0.01))


def test_in_place_example():
    moved = resampling.in_place(jnp.array([0, 0, 0, 2, 4], jnp.int32))
    assert np.asarray(moved).tolist() == [0, 0, 2, 0, 4]


@pytest.mark.parametrize("num", [1, 2, 5, 33])
@pytest.mark.parametrize("seed", range(4))
def test_in_place_keeps_the_multiset_and_the_slots_of_survivors(num, seed):
    ancestors = np.random.default_rng(seed).integers(0, num, num).astype(np.int32)
    moved = np.asarray(resampling.in_place(jnp.asarray(ancestors)))
    assert sorted(moved.tolist()) == sorted(ancestors.tolist())
    for survivor in set(ancestors.tolist()):
        assert moved[survivor] == survivor


def test_in_place_keeps_the_identity():
    moved = resampling.in_place(jnp.arange(6, dtype=jnp.int32)[::-1])
    assert np.asarray(moved).tolist() == list(range(6))


@pytest.mark.parametrize("name", NAMES)
def test_schemes_are_the_same_under_jit_and_vmap(name):
    weights = np.stack([random_weights(s, 8) for s in range(3)]).astype(np.float32)
    uniforms = np.random.default_rng(9).random((3, 8)).astype(np.float32)
    scheme = resampling.SCHEMES[name]
    together = jax.jit(jax.vmap(scheme))(jnp.asarray(weights), jnp.asarray(uniforms))
    alone = [ancestors_of(name, w, u).tolist() for w, u in zip(weights, uniforms, strict=True)]
    assert np.asarray(together).tolist() == alone
