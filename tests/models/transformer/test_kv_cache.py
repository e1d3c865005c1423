"""Leaves of both layouts: what is written where, and what a move copies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.models.transformer import kv_cache

K, H = 2, 3
every_layout = pytest.mark.parametrize("layout", ["flat", "by_head"])


def int32(*values):
    return jnp.asarray(values, jnp.int32)


def random_cache(layout, rows, capacity, layers=2, heads=K):
    empty = kv_cache.empty(layout, layers, rows, capacity, heads, H, jnp.dtype("float32"))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), empty)


def by_entry(cache):
    """All keys and values as numpy [R, T, K, H]."""
    found = []
    for keys, values in zip(cache.keys, cache.values, strict=True):
        keys, values = kv_cache.by_head(cache.layout, keys, values, H)
        found += [np.asarray(keys).transpose(0, 3, 1, 2), np.asarray(values).transpose(0, 2, 1, 3)]
    return found


@every_layout
def test_an_empty_cache_has_a_row_and_an_entry_for_each(layout):
    cache = kv_cache.empty(layout, 5, 4, 7, K, H, jnp.dtype("bfloat16"))
    assert len(cache.keys) == len(cache.values) == 5 and cache.capacity == 7
    for leaf in jax.tree.leaves(cache):
        assert leaf.shape[0] == 4 and leaf.size == 4 * 7 * K * H and leaf.dtype == jnp.bfloat16
        assert not leaf.any()
    assert {x.shape for x in by_entry(cache)} == {(4, 7, K, H)}


def test_the_layout_is_that_of_the_platform(monkeypatch):
    assert kv_cache.default_layout() == "by_head"
    for platform in ("gpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        assert kv_cache.default_layout() == "flat"


def test_a_token_that_does_not_count_has_no_entry():
    at, count = int32(3, 0, 7), int32(1, 0, 1)
    assert kv_cache.entries(at, count, 8).tolist() == [3, 8, 7]
    block = at[:, None] + int32(0, 1, 2)[None]
    expected = [[3, 4, 8], [8, 8, 8], [7, 8, 8]]
    assert kv_cache.entries(block, int32(2, 0, 1), 8).tolist() == expected


@every_layout
@pytest.mark.parametrize("heads", [1, K])
@pytest.mark.parametrize("entry", [[2], [5], [4, 1, 5], [[0, 1, 5], [3, 4, 2]]], ids=str)
def test_only_the_given_entries_are_written(layout, heads, entry):
    capacity = 5  # entry 5 is out of bounds
    entry = jnp.asarray(entry, jnp.int32)
    cache = random_cache(layout, entry.shape[0], capacity, layers=1, heads=heads)
    rng = np.random.default_rng(1)
    new = [jnp.asarray(rng.normal(size=(*entry.shape, heads, H)), jnp.float32) for _ in range(2)]
    leaves = cache.keys[0], cache.values[0]
    keys, values = jax.jit(kv_cache.write, static_argnums=0)(layout, *leaves, *new, entry)
    expected = [x.copy() for x in by_entry(cache)]
    for row in range(entry.shape[0]):
        for i, place in enumerate(np.atleast_1d(entry[row])):
            if place < capacity:
                for whole, part in zip(expected, new, strict=True):
                    whole[row, place] = np.asarray(part[row]).reshape(-1, heads, H)[i]
    written = by_entry(kv_cache.KVCache((keys,), (values,), layout))
    for got, wanted in zip(written, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@every_layout
@pytest.mark.parametrize("capacity", [5, 128, 300, 512])
def test_moved_rows_have_the_entries_of_their_sources(layout, capacity):
    cache = random_cache(layout, 6, capacity)
    length = np.minimum([capacity, 1, 130, 0], capacity)
    source, destination = [3, 3, 0, 5], [1, 4, 2, 0]
    move = jax.jit(kv_cache.move_rows)
    for count in range(4):  # the last pair never moves: its source would be a destination
        moved = by_entry(move(cache, *map(jnp.int32, (source, destination, length, count))))
        for before, after in zip(by_entry(cache), moved, strict=True):
            for s, d, n in list(zip(source, destination, length, strict=True))[:count]:
                np.testing.assert_array_equal(after[d, :n], before[s, :n])
                # No more than the rest of a block.
                end = -(-n // kv_cache.BLOCK) * kv_cache.BLOCK
                np.testing.assert_array_equal(after[d, end:], before[d, end:])
            untouched = [r for r in range(6) if r not in destination[:count]]
            np.testing.assert_array_equal(after[untouched], before[untouched])
