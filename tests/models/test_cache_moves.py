"""Defaults of what a model may do with its rows: against indexing, and in place."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.models import cache_moves

R, T = 6, 8
MODEL = types.SimpleNamespace()  # without any member of its own


def ints(*values):
    return jnp.asarray(values, jnp.int32)


def cache_of(rows, capacity, seed=0):
    """Leaves with the positions on different axes, and one without."""
    rng = np.random.default_rng(seed)
    return {
        "first": jnp.asarray(rng.normal(size=(rows, capacity, 3)), jnp.float32),
        "last": jnp.asarray(rng.normal(size=(rows, 2, capacity)), jnp.bfloat16),
        "state": jnp.asarray(rng.integers(9, size=(rows, 5)), jnp.int32),
        "steps": jnp.asarray(rng.integers(9, size=(rows,)), jnp.int32),
    }


def assert_leaves(got, expected):
    for name, leaf in expected.items():
        assert got[name].dtype == leaf.dtype
        np.testing.assert_array_equal(np.asarray(got[name]), np.asarray(leaf), err_msg=name)


def move(cache, source, destination, length, count):
    return cache_moves.move_rows(MODEL, cache, source, destination, length, count)


def insert(cache, rows, prefilled):
    return cache_moves.insert_rows(MODEL, cache, rows, prefilled)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_moved_rows_are_those_below_the_count(count):
    cache, source, destination = cache_of(R, T), [4, 0, 4, 1], [5, 2, 3, 0]
    index = np.arange(R)
    index[destination[:count]] = source[:count]
    got = jax.jit(move)(
        cache, ints(*source), ints(*destination), ints(1, 2, 3, 4), jnp.int32(count)
    )
    assert_leaves(got, jax.tree.map(lambda leaf: leaf[index], cache))


@pytest.mark.parametrize("capacity", [T, 3])
def test_inserted_rows_are_overwritten_and_padding_is_dropped(capacity):
    cache, group = cache_of(R, T), cache_of(4, capacity, seed=1)
    got = jax.jit(insert)(cache, ints(R, 3, R + 7, 0), group)
    expected = jax.tree.map(np.array, cache)
    for row, g in ((3, 1), (0, 3)):
        expected["first"][row, :capacity] = group["first"][g]
        expected["last"][row, :, :capacity] = group["last"][g]
        expected["state"][row], expected["steps"][row] = group["state"][g], group["steps"][g]
    assert_leaves(got, expected)


def test_a_group_of_padding_inserts_nothing():
    cache = cache_of(R, T)
    assert_leaves(jax.jit(insert)(cache, ints(R, R), cache_of(2, T, seed=1)), cache)
    assert jax.jit(insert)((), ints(0), ()) == ()


@pytest.mark.parametrize(("rows", "capacity"), [(R, T), (9, 12), (4, 5), (9, 5), (2, 12)])
def test_a_resized_cache_keeps_what_both_have(rows, capacity):
    class Model:
        def init_cache(self, params, num_rows, capacity):
            return jax.tree.map(lambda x: x + params, cache_of(num_rows, capacity, seed=2))

    cache = cache_of(R, T)
    one = jnp.ones((), jnp.int32)
    with jax.numpy_dtype_promotion("standard"):
        expected = jax.tree.map(np.array, Model().init_cache(one, rows, capacity))
        got = cache_moves.resize_cache(Model(), one, cache, rows, capacity)
    keep, entries = min(rows, R), min(capacity, T)
    expected["first"][:keep, :entries] = cache["first"][:keep, :entries]
    expected["last"][:keep, :, :entries] = cache["last"][:keep, :, :entries]
    expected["state"][:keep], expected["steps"][:keep] = (
        cache["state"][:keep],
        cache["steps"][:keep],
    )
    assert_leaves(got, expected)


def test_entries_are_written_below_the_count_only():
    leaf = jnp.asarray(np.random.default_rng(0).normal(size=(4, T, 3)), jnp.float32)
    block = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3, 3)), jnp.float32)
    position, count = [2, T - 1, T, 0], [3, 1, 0, 2]
    expected = np.array(leaf)
    for row, (begin, num) in enumerate(zip(position, count, strict=True)):
        expected[row, begin : begin + num] = block[row, :num]
    got = jax.jit(cache_moves.write_entries)(leaf, block, ints(*position), ints(*count))
    np.testing.assert_array_equal(got, expected)


def test_a_models_own_members_are_used():
    calls = []

    class Model:
        def __getattr__(self, name):
            return lambda *args: calls.append((name, args)) or name

    model = Model()
    assert cache_moves.move_rows(model, "c", "s", "d", "l", "n") == "move"
    assert cache_moves.insert_rows(model, "c", "r", "p") == "insert"
    assert cache_moves.resize_cache(model, "params", "c", 2, 3) == "resize"
    assert cache_moves.release_rows(model, "c", "f") == "release"
    assert calls == [
        ("move", ("c", "s", "d", "l", "n")),
        ("insert", ("c", "r", "p")),
        ("resize", ("params", "c", 2, 3)),
        ("release", ("c", "f")),
    ]
    assert cache_moves.release_rows(MODEL, "c", "f") == "c"


# --- The compiled programs ---


def big(rows, capacity):
    """Shapes that nothing else in the program has."""
    return {
        "keys": jax.ShapeDtypeStruct((rows, capacity, 17), jnp.float32),
        "state": jax.ShapeDtypeStruct((rows, 19), jnp.float32),
    }


def in_step(cache, source, destination, count):
    """A loop of steps, each of which moves rows and reads the cache."""

    def body(_, carry):
        cache, total = carry
        cache = move(cache, source, destination, source, count)
        return cache, total + jnp.sum(cache["keys"][:, 0])

    return jax.lax.fori_loop(0, 5, body, (cache, jnp.zeros((), jnp.float32)))


SCALAR, INDEX = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((7,), jnp.int32)


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (move, (INDEX, INDEX, INDEX, SCALAR)),
        (in_step, (INDEX, INDEX, SCALAR)),
        (insert, (INDEX, big(7, 40))),
        (
            lambda cache, block, position, count: {
                **cache,
                "keys": cache_moves.write_entries(cache["keys"], block, position, count),
            },
            (
                jax.ShapeDtypeStruct((23, 4, 17), jnp.float32),
                *[jax.ShapeDtypeStruct((23,), jnp.int32)] * 2,
            ),
        ),
    ],
    ids=["move", "moves in a loop", "insert", "write"],
)
def test_a_donated_cache_is_changed_in_place(full_optimization, function, args):
    shapes = big(23, 50)
    compiled = jax.jit(function, donate_argnums=0).lower(shapes, *args).compile()
    text = compiled.as_text()
    assert "conditional" not in text
    assert not re.findall(r"= f32\[23,(?:50,17|19)\]\S* copy\(", text)
    sizes = compiled.memory_analysis()
    cache = 4 * 23 * (50 * 17 + 19)
    assert sizes.alias_size_in_bytes >= cache
    assert sizes.temp_size_in_bytes < cache / 4
