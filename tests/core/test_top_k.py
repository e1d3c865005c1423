"""The largest values and the first indices, against JAX's and NumPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.core.top_k import top_k, true_indices


def test_the_largest_values_come_first_and_of_equal_ones_the_first():
    x = jnp.asarray([[3.0, 1.0, 3.0, -jnp.inf], [0.0, 2.0, 1.0, 2.0]])
    values, indices = top_k(x, 3)
    np.testing.assert_array_equal(values, [[3, 3, 1], [2, 2, 1]])
    np.testing.assert_array_equal(indices, [[0, 2, 1], [1, 3, 2]])
    assert indices.dtype == jnp.int32


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a CPU's kernel")
def test_a_reader_of_the_last_value_does_not_make_a_cpu_sort_everything():
    x = jnp.zeros((4, 272), jnp.float32)

    def last(values):
        return values[:, -1]

    ours = jax.jit(lambda x: last(top_k(x, 16)[0])).lower(x).compile().as_text()
    assert "TopK" in ours and " sort(" not in ours


MASKS = [
    ([0, 1, 1, 0, 1], 2),
    ([0, 1, 1, 0, 1], 3),
    ([0, 1, 1, 0, 1], 5),
    ([0, 1, 1, 0, 1], 8),
    ([0, 0, 0], 2),
    ([1, 1, 1], 3),
    ([1], 1),
]


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize(("mask", "count"), MASKS)
def test_the_first_true_indices_are_those_of_nonzero(mask, count, x64):
    with jax.enable_x64(x64):
        mask = jnp.asarray(mask, bool)
        found = jax.jit(lambda mask: true_indices(mask, count, fill_value=-1))(mask)
        expected = jnp.nonzero(mask, size=count, fill_value=-1)[0]
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)


def test_the_first_true_indices_of_many_masks():
    masks = np.random.default_rng(0).random((7, 300)) < 0.1
    found = jax.vmap(lambda mask: true_indices(mask, 20, fill_value=300))(jnp.asarray(masks))
    for row, mask in zip(np.asarray(found), masks, strict=True):
        own = np.flatnonzero(mask)[:20]
        np.testing.assert_array_equal(row[: len(own)], own)
        assert (row[len(own) :] == 300).all()
