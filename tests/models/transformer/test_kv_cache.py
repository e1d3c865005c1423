"""The ring: ages, growth, and moves in place against ``take``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.models.transformer import kv_cache

AXES = (-1, -2)


def rings(count, num, capacity, seed=0):
    """[P, N, 2, T] and [P, N, T, 3]."""
    rng = np.random.default_rng(seed)
    shapes = (count, num, 2, capacity), (count, num, capacity, 3)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def used(leaf, axis, clock, step):
    """The entries in use, oldest first, of one prompt: leaf [N, ...]."""
    entries = [(clock - age) % leaf.shape[axis] for age in range(step, -1, -1)]
    return np.take(np.asarray(leaf), entries, axis=axis)


def test_ages_count_back_from_the_clock():
    assert kv_cache.ages(jnp.int32(9), 8).tolist() == [1, 0, 7, 6, 5, 4, 3, 2]
    assert kv_cache.entry(jnp.int32(9), 8) == 1


@pytest.mark.parametrize("clock", [3, 7, 8, 21])
@pytest.mark.parametrize("capacity", [5, 12, 16])
def test_another_capacity_keeps_what_is_in_use(clock, capacity):
    step = 3
    for leaf, axis in zip(rings(1, 2, 8), AXES, strict=True):
        resized = kv_cache.resize(leaf[0], leaf[0].ndim + axis, capacity, jnp.int32(clock))
        assert resized.shape[axis] == capacity
        np.testing.assert_array_equal(
            used(resized, axis, clock, step), used(leaf[0], axis, clock, step)
        )


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("capacity", [256, 384, 96])
@pytest.mark.parametrize("clock", [40, 700])
def test_moved_rows_are_those_of_their_sources(count, capacity, clock):
    num, steps = 5, np.array([30, 94, 0][:count], np.int32)
    leaves = rings(count, num, capacity)
    kinds = [[0, 0, 2, 4, 4], [0, 1, 2, 3, 4], [3, 3, 3, 3, 3]]
    source = np.array(kinds[:count], np.int32)
    own = np.tile(np.arange(num, dtype=np.int32), (count, 1))

    def move(leaves, source, destination, step, clock):
        return kv_cache.move_rows(leaves, AXES, source, destination, step, clock)

    moved = jax.jit(jax.vmap(move, in_axes=(0, 0, 0, 0, None)))(
        leaves, source, own, steps, jnp.int32(clock)
    )
    for before, after, axis in zip(leaves, moved, AXES, strict=True):
        for p in range(count):
            taken = np.asarray(before)[p][source[p]]
            np.testing.assert_array_equal(
                used(after[p], axis, clock, steps[p]), used(taken, axis, clock, steps[p])
            )
            stays = source[p] == own[p]
            np.testing.assert_array_equal(after[p][stays], before[p][stays])
    # Outside a vmap too.
    alone = jax.jit(move)(
        [x[0] for x in leaves], source[0], own[0], jnp.int32(steps[0]), jnp.int32(clock)
    )
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[0]), alone, moved)


@pytest.mark.parametrize("moves", [0, 1, 2, 7, 16])
def test_the_gathered_form_moves_whole_rows(moves):
    leaves = [leaf[0] for leaf in rings(1, 16, 32)]
    # All copies are of row 0, into the last rows; beyond the count the lists hold anything.
    lists = np.zeros((2, 16), np.int32)
    lists[1, :moves] = np.arange(16)[::-1][:moves]
    source = np.arange(16, dtype=np.int32)
    source[16 - moves :] = 0
    moved = jax.jit(kv_cache.move_gathered)(
        leaves, lists[0], lists[1], np.full(16, 31, np.int32), jnp.int32(moves), jnp.int32(31)
    )
    for before, after in zip(leaves, moved, strict=True):
        np.testing.assert_array_equal(after, np.asarray(before)[source])


def test_only_what_is_in_use_is_copied():
    leaves = [leaf[0] for leaf in rings(1, 3, 4 * kv_cache.BLOCK)]
    source = jnp.array([0, 0, 2], jnp.int32)
    own, step, clock = jnp.arange(3, dtype=jnp.int32), jnp.int32(5), jnp.int32(kv_cache.BLOCK + 2)
    moved = kv_cache.move_rows(leaves, AXES, source, own, step, clock)
    # Ages 0 .. 5 lie on both sides of a boundary: two blocks, and nothing of the other two.
    end = 2 * kv_cache.BLOCK
    keys = np.asarray(moved[0])
    np.testing.assert_array_equal(keys[1, :, :end], np.asarray(leaves[0])[0, :, :end])
    np.testing.assert_array_equal(keys[1, :, end:], np.asarray(leaves[0])[1, :, end:])


def test_a_column_is_written_in_place_under_vmap():
    leaf = jnp.zeros((3, 2, 8, 2))
    column = jnp.ones((3, 2, 1, 2))

    def write(leaf, column, place):
        return kv_cache.write(leaf, column, place, -2)

    mapped = jax.jit(jax.vmap(write, in_axes=(0, 0, None)))
    out = np.asarray(mapped(leaf, column, jnp.int32(5)))
    assert out[:, :, 5].min() == 1 and out.sum() == 12
    assert "scatter" not in mapped.lower(leaf, column, jnp.int32(5)).as_text()
    places = jnp.array([1, 2, 3], jnp.int32)
    out = np.asarray(jax.vmap(write)(leaf, column, places))
    assert [out[p, :, place].min() for p, place in enumerate(places)] == [1, 1, 1]
