"""Uniform numbers that depend on seed, prompt id, run and step, and on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.core import prng

KEY = jax.random.key(0)


def numbers(key, step=0, num=4):
    out = prng.step_uniforms(key, jnp.int32(step), num)
    return np.concatenate([np.asarray(out.resample), np.asarray(out.token).ravel()])


def data(keys):
    return [tuple(row) for row in np.asarray(jax.random.key_data(keys)).tolist()]


def test_a_prompt_key_does_not_depend_on_its_neighbours():
    together = data(prng.prompt_keys(KEY, [7, 3, 5]))
    assert data(prng.prompt_keys(KEY, [5]))[0] == together[2]
    assert data(prng.prompt_keys(KEY, [3, 7]))[::-1] == together[:2]


def test_keys_differ_by_id_in_all_63_bits_by_run_and_by_seed():
    ids = [0, 1, 2**31, 2**32, 2**32 + 1, 2**62, prng.LARGEST_PROMPT_ID]
    keys = data(prng.prompt_keys(KEY, ids))
    keys += data(prng.prompt_keys(KEY, ids, run=1))
    keys += data(prng.prompt_keys(jax.random.key(1), ids))
    assert len(set(keys)) == 3 * len(ids)


def test_prompts_may_have_keys_of_their_own():
    seeds = [jax.random.key(seed) for seed in (5, 6, 5)]
    together = data(prng.prompt_keys(jax.numpy.stack(seeds), [1, 1, 2]))
    alone = [data(prng.prompt_keys(k, [i]))[0] for k, i in zip(seeds, (1, 1, 2), strict=True)]
    assert together == alone and len(set(together)) == 3


def test_equal_ids_give_equal_keys():
    first, second = data(prng.prompt_keys(KEY, [4, 4]))
    assert first == second


def test_numbers_reproduce_and_change_with_the_step():
    key = prng.prompt_keys(KEY, [0])[0]
    np.testing.assert_array_equal(numbers(key, 3), numbers(key, 3))
    seen = np.concatenate([numbers(key, t) for t in range(50)])
    assert len(set(seen.tolist())) > 0.99 * len(seen)


def test_the_final_number_is_not_one_of_a_step():
    key = prng.prompt_keys(KEY, [0])[0]
    final = float(prng.final_uniforms(key)[0])
    assert 0 <= final < 1
    assert all(final not in numbers(key, t) for t in range(50))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_shapes_and_dtype(x64, dtype):
    out = prng.step_uniforms(KEY, jnp.int32(0), 5, dtype)
    assert out.resample.shape == (5,) and out.token.shape == (5, 2)
    assert out.resample.dtype == out.token.dtype == dtype
    assert prng.final_uniforms(KEY, dtype).dtype == dtype


def test_numbers_are_uniform_and_uncorrelated():
    out = prng.step_uniforms(KEY, jnp.int32(0), 20000)
    columns = np.stack([np.asarray(out.resample), *np.asarray(out.token).T])
    assert columns.min() >= 0 and columns.max() < 1
    np.testing.assert_allclose(columns.mean(axis=1), 0.5, atol=0.01)
    np.testing.assert_allclose(columns.var(axis=1), 1 / 12, atol=0.003)
    np.testing.assert_allclose(np.corrcoef(columns), np.eye(3), atol=0.03)


def test_a_name_gives_one_id_that_is_allowed():
    names = ["a", "b", "ab", "", "ä", "x" * 1000]
    ids = [prng.prompt_id(name) for name in names]
    assert len(set(ids)) == len(names)
    assert all(0 <= i <= prng.LARGEST_PROMPT_ID for i in ids)
    # A published record can be made again only if this never changes.
    assert prng.prompt_id("147*23+38*64") == 4176377511624629692


def test_constants_that_are_folded_into_one_key_differ():
    of_callers_key = [prng.FOLD_CUTS, prng.FOLD_POOL, prng.FOLD_PIMH]
    assert len(set(of_callers_key)) == len(of_callers_key)
    assert prng.FOLD_FINAL >= 2**31 and prng.FOLD_CUTS >= 2**31  # no step and no half of an id


def test_host_uniforms_depend_on_key_purpose_id_and_run_alone():
    def numbers(seed=0, purpose=prng.FOLD_POOL, ids=(3, 7), runs=(0, 1)):
        return prng.host_uniforms(jax.random.key(seed), purpose, ids, runs)

    found = numbers()
    assert found.shape == (2, 2) and found.dtype == np.float64
    assert found.min() >= 0 and found.max() < 1
    np.testing.assert_array_equal(numbers(ids=(7, 9), runs=(1,))[0], found[1, 1:])
    values = [found, numbers(seed=1), numbers(purpose=prng.FOLD_PIMH), numbers(runs=(2, 3))]
    assert len(np.unique(values)) == 16
