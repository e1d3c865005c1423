"""The shapes that are compiled."""

import numpy as np
import pytest

from jax_power_smc.engine.buckets import Sizes, pad_prompts, power_of_two


def sizes(**changes):
    fields = {"slots": 4, "group": 1, "prompt_tokens": 200, "new_tokens": 700, "chunk": 32}
    return Sizes(**{**fields, **changes})


def test_prompts_are_padded_to_few_lengths():
    assert [sizes().prompt_bucket(n) for n in (1, 64, 65, 200)] == [64, 64, 128, 256]
    assert sizes().prompt_buckets() == [64, 128, 256] and sizes().longest == 256
    assert sizes(most_positions=210).prompt_buckets() == [64, 128, 210]
    assert sizes(prompt_tokens=3, most_positions=16).prompt_buckets() == [16]


def test_token_buffers_hold_whole_chunks():
    assert sizes().token_capacity == 704
    assert sizes(new_tokens=64).token_capacity == 64


def test_caches_grow_in_few_steps():
    assert [sizes().cache_bucket(n) for n in (1, 256, 257, 700)] == [256, 256, 512, 704]
    assert sizes().cache_buckets() == [256, 512, 704]
    whole = sizes(grows=False)
    assert whole.cache_bucket(1) == 704 and whole.cache_buckets() == [704]


def test_missing_prompts_have_one_token():
    tokens, lengths = pad_prompts([[3, 4], np.array([5])], 3, 4)
    assert tokens.tolist() == [[3, 4, 0, 0], [5, 0, 0, 0], [0, 0, 0, 0]]
    assert lengths.tolist() == [2, 1, 1] and tokens.dtype == lengths.dtype == np.int32


@pytest.mark.parametrize(("value", "power"), [(1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_powers_of_two(value, power):
    assert power_of_two(value) == power
