"""The shapes that are compiled."""

import numpy as np
import pytest

from jax_power_smc.engine.buckets import Sizes, pad_prompts, power_of_two


def sizes(**changes):
    fields = {"slots": 4, "group": 1, "prompt_tokens": 200, "new_tokens": 700, "chunk": 32}
    fields["rows"] = (4, 8)
    return Sizes(**{**fields, **changes})


def test_prompts_are_padded_to_few_lengths():
    assert [sizes().prompt_bucket(n) for n in (1, 64, 65, 200)] == [64, 64, 128, 256]
    assert sizes().prompt_buckets() == [64, 128, 256]
    # 210 positions in all, for a prompt of 200 tokens and the new ones.
    assert sizes(most_positions=210).prompt_buckets() == [64, 128, 210]
    assert sizes(prompt_tokens=3, most_positions=16).prompt_buckets() == [16]
    assert sizes(smallest_bucket=8).prompt_buckets() == [8, 16, 32, 64, 128, 256]


def test_what_was_generated_is_padded_as_well_when_a_prompt_resumes():
    assert [sizes().prompt_bucket(n) for n in (300, 513, 899)] == [512, 900, 900]


def test_a_sequence_is_read_in_blocks_no_longer_than_a_prompt():
    assert [sizes().prefill_block(n) for n in (64, 256, 512, 900)] == [64, 256, 256, 256]


def test_a_row_has_room_for_prompt_and_new_tokens():
    assert sizes().longest == 900
    # For the padded prompt too, though it has few new tokens.
    assert sizes(new_tokens=3).longest == 256
    assert sizes(most_positions=850).longest == 850
    assert sizes(capacity=1000).longest == 1000


def test_caches_grow_in_few_steps():
    assert sizes().cache_buckets() == [128, 256, 384, 512, 900]
    for fixed in (sizes(grows=False), sizes(capacity=900)):
        assert fixed.cache_buckets() == [900]
    assert sizes(prompt_tokens=3, new_tokens=9).cache_buckets() == [64]


def test_programs_are_compiled_ahead_for_the_rows_that_are_needed_but_not_for_too_many():
    ladder = (4, 8, 12, 16, 24, 32, 48, 64, 96)
    few = sizes(rows=ladder, prompt_tokens=3, new_tokens=9)
    assert few.ahead(4) == ((4,), [64], True) and few.ahead(5) == ((4, 8), [64], True)
    assert few.ahead(64) == (ladder[:8], [64], True)
    assert few.ahead(500) == (ladder, [64], True)
    many = sizes(rows=ladder, new_tokens=2000)
    assert many.cache_buckets() == [128, 256, 384, 512, 768, 1024, 1536, 2200]
    # 3 x 8 - 1 programs for each capacity; the longest prompts begin with 256.
    assert many.ahead(64) == (ladder[:8], [256, 384, 512], False)
    assert many.ahead(4) == ((4,), many.cache_buckets(), True)
    assert sizes(rows=(70,)).ahead(7) == ((70,), sizes().cache_buckets(), True)
    assert sizes(rows=tuple(range(1, 200))).ahead(199)[0] == tuple(range(1, 30))


def test_missing_prompts_have_one_token():
    tokens, lengths = pad_prompts([[3, 4], np.array([5])], 3, 4)
    assert tokens.tolist() == [[3, 4, 0, 0], [5, 0, 0, 0], [0, 0, 0, 0]]
    assert lengths.tolist() == [2, 1, 1] and tokens.dtype == lengths.dtype == np.int32


@pytest.mark.parametrize(("value", "power"), [(1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_powers_of_two(value, power):
    assert power_of_two(value) == power
