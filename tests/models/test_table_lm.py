"""The table model: its logits are the rows that the definition names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc import TableLM, make_mesh

V = 3


def row(model, history):
    """The row of a history: digits in base V+1, oldest first, V for nothing yet."""
    digits = [V] * model.order + list(history)
    return int("".join(str(d) for d in digits[-model.order :]), V + 1)


def expected(model, params, sequence):
    """The logits after a sequence: of the table at the position of its last token."""
    table = params.logits[min(len(sequence), params.logits.shape[0]) - 1]
    return table[row(model, sequence)]


def ints(*values):
    return jnp.asarray(values, jnp.int32)


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("steps", [1, 3])
def test_logits_are_the_rows_of_the_history(order, steps):
    model = TableLM(V, order=order)
    params = model.init(jax.random.key(0), steps=steps)
    sequences = [[2, 0, 1, 1, 2, 0, 0], [0], [1, 2, 0, 2, 1, 1]]
    extend = jax.jit(model.extend)
    cache = jnp.full_like(model.init_cache(params, 3, 8), 1)  # what is stale must not be read
    done = [0, 0, 0]
    for block, counts in ((4, (3, 1, 0)), (1, (1, 0, 1)), (5, (3, 0, 5))):
        tokens = np.full((3, block), 2)
        for r, num in enumerate(counts):
            tokens[r, :num] = sequences[r][done[r] : done[r] + num]
        logits, cache = extend(
            params, cache, jnp.asarray(tokens, jnp.int32), ints(*done), ints(*counts)
        )
        assert logits.shape == (3, block, V)
        for r, num in enumerate(counts):
            for b in range(num):
                known = sequences[r][: done[r] + b + 1]
                np.testing.assert_array_equal(logits[r, b], expected(model, params, known))
            done[r] += num
    assert done == [len(sequence) for sequence in sequences]
    np.testing.assert_array_equal(cache[1], [0, *[1] * 7])  # nothing else was written


def test_different_prompts_of_a_batch_under_vmap():
    model = TableLM(V, order=2)
    params = model.init(jax.random.key(1), steps=2)
    cache = jnp.zeros((2, 1, 4), jnp.int32)
    tokens, position, count = ints(0, 1, 2, 0).reshape(2, 1, 2), ints(0, 0), ints(2, 1)
    extend = jax.vmap(model.extend, in_axes=(None, 0, 0, 0, 0))
    logits, cache = extend(params, cache, tokens, position[:, None], count[:, None])
    np.testing.assert_array_equal(logits[0, 0, 1], expected(model, params, [0, 1]))
    np.testing.assert_array_equal(logits[1, 0, 0], expected(model, params, [2]))
    np.testing.assert_array_equal(cache[:, 0], [[0, 1, 0, 0], [2, 0, 0, 0]])


def test_a_row_can_rewind():
    model = TableLM(V, order=3)
    params = model.init(jax.random.key(5), steps=2)
    cache, path = model.init_cache(params, 1, 6), []
    extend = jax.jit(model.extend)
    for t, token in [(0, 1), (1, 0), (2, 2), (3, 1), (1, 2), (2, 2), (0, 1), (1, 1)]:
        path = [*path[:t], token]
        logits, cache = extend(params, cache, ints(token)[:, None], ints(t), ints(1))
        np.testing.assert_array_equal(logits[0, 0], expected(model, params, path))


def test_every_device_has_the_logits_of_its_tokens():
    model = TableLM(4, order=2)
    params = model.init(jax.random.key(2), steps=3)
    mesh = make_mesh(model=2, devices=jax.devices()[:2])
    here = model.on(2)
    assert here.vocabulary.num_shards == 2
    args = (model.init_cache(params, 2, 4), ints(3, 1, 0, 2).reshape(2, 2), ints(0, 0), ints(2, 2))
    none = jax.sharding.PartitionSpec()
    sharded = jax.jit(
        jax.shard_map(
            lambda params, *rest: here.extend(params, *rest)[0],
            mesh=mesh,
            in_specs=(here.param_specs(params), none, none, none, none),
            out_specs=jax.sharding.PartitionSpec(None, None, "model"),
        )
    )
    np.testing.assert_array_equal(sharded(params, *args), model.extend(params, *args)[0])
    with pytest.raises(ValueError, match="over which a vocabulary of 5 cannot be sharded"):
        TableLM(5).on(2)


def test_different_keys_and_scales_give_different_tables():
    model = TableLM(V)
    one = model.init(jax.random.key(0)).logits
    assert one.shape == (1, model.num_histories, V) == (1, V + 1, V)
    np.testing.assert_allclose(model.init(jax.random.key(0), scale=2.0).logits, 2 * one)
    assert not np.array_equal(model.init(jax.random.key(1)).logits, one)


def test_table_in_float64_has_float64_logits(x64):
    model = TableLM(V)
    params = model.init(jax.random.key(0), dtype=jnp.float64)
    cache = model.init_cache(params, 1, 1)
    logits, _ = model.extend(params, cache, ints(0)[:, None], ints(0), ints(1))
    assert logits.dtype == jnp.float64


@pytest.mark.parametrize(
    ("field", "value"),
    [("vocab_size", 0), ("order", 0), ("order", 1.0), ("order", True), ("vocab_size", "3")],
)
def test_sizes_must_be_positive_integers(field, value):
    with pytest.raises(
        ValueError, match=f"^{field} is {value!r}; it must be an integer of at least 1.$"
    ):
        TableLM(**{"vocab_size": V, field: value})


@pytest.mark.parametrize("kind", [np.int64, np.uint8, jnp.int32])
def test_sizes_of_numpy_and_jax_are_pythons(kind):
    model = TableLM(kind(V), order=kind(2))
    assert model == TableLM(V, order=2) and type(model.vocab_size) is int
