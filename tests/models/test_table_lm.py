"""The table model: its logits are the rows that the definition names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc import TableLM
from jax_power_smc.models.cache_moves import take_ancestors

V = 3


def row(model, history):
    """The row of a history: digits in base V+1, oldest first, V for nothing yet."""
    digits = [V] * model.order + list(history)
    return int("".join(str(d) for d in digits[-model.order :]), V + 1)


def expected(model, params, sequence, step):
    table = params.logits[min(step, params.logits.shape[0] - 1)]
    return table[row(model, sequence)]


def scalar(value):
    return jnp.asarray(value, jnp.int32)


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("prompt", [[2], [0, 1], [1, 2, 0, 2, 1]])
def test_logits_are_the_rows_of_the_history(order, steps, prompt):
    model = TableLM(V, order=order)
    params = model.init(jax.random.key(0), steps=steps)
    padded = jnp.asarray([*prompt, 1, 1], jnp.int32)  # the padding must not be read
    logits, context = model.prefill(params, padded, scalar(len(prompt)))
    np.testing.assert_array_equal(logits, expected(model, params, prompt, 0))

    generated = np.array([[0, 1, 2, 2, 0], [2, 2, 1, 0, 1]])
    cache = model.init_cache(params, 2, 8)
    decode = jax.jit(model.decode)
    for t in range(generated.shape[1]):
        token = jnp.asarray(generated[:, t], jnp.int32)
        # The clock only says where the cache is written.
        logits, cache = decode(params, context, cache, token, scalar(t), scalar(t + 5))
        for i, tokens in enumerate(generated):
            sequence = [*prompt, *tokens[: t + 1]]
            np.testing.assert_array_equal(logits[i], expected(model, params, sequence, t + 1))


def test_moved_particles_continue_their_ancestors_history():
    model = TableLM(V, order=3)
    params = model.init(jax.random.key(1))
    _, context = model.prefill(params, jnp.asarray([1], jnp.int32), scalar(1))
    cache = model.init_cache(params, 3, 4)
    _, cache = model.decode(params, context, cache, jnp.asarray([0, 1, 2]), scalar(0), scalar(0))
    cache = take_ancestors(cache, jnp.asarray([2, 0, 0]))
    logits, _ = model.decode(params, context, cache, jnp.asarray([0, 1, 1]), scalar(1), scalar(1))
    for i, sequence in enumerate([[1, 2, 0], [1, 0, 1], [1, 0, 1]]):
        np.testing.assert_array_equal(logits[i], expected(model, params, sequence, 0))


def test_decoding_can_go_back_to_an_earlier_step():
    model = TableLM(V, order=3)
    params = model.init(jax.random.key(5), steps=2)
    _, context = model.prefill(params, jnp.asarray([1, 2], jnp.int32), scalar(2))
    cache = model.init_cache(params, 1, 6)
    decode, path = jax.jit(model.decode), []
    for t, token in [(0, 0), (1, 2), (2, 1), (3, 2), (1, 0), (2, 2), (0, 1), (1, 1)]:
        path = [*path[:t], token]
        now = jnp.asarray([token], jnp.int32)
        logits, cache = decode(params, context, cache, now, scalar(t), scalar(t))
        np.testing.assert_array_equal(logits[0], expected(model, params, [1, 2, *path], t + 1))


def test_different_keys_and_scales_give_different_tables():
    model = TableLM(V)
    one = model.init(jax.random.key(0)).logits
    assert one.shape == (1, model.num_histories, V) == (1, V + 1, V)
    np.testing.assert_allclose(model.init(jax.random.key(0), scale=2.0).logits, 2 * one)
    assert not np.array_equal(model.init(jax.random.key(1)).logits, one)


def test_table_in_float64_has_float64_logits(x64):
    model = TableLM(V)
    params = model.init(jax.random.key(0), dtype=jnp.float64)
    logits, _ = model.prefill(params, jnp.asarray([0], jnp.int32), scalar(1))
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
