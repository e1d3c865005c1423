"""What the host knows of rows while chunks run that it has not looked at."""

import types

import numpy as np
import pytest

from jax_power_smc.engine.known_rows import KnownRows

NOBODY = [None] * 4


def snapshot(in_use, longest):
    return types.SimpleNamespace(in_use=np.array(in_use), longest=np.array(longest))


@pytest.fixture
def known():
    """Two devices: 3 and 5 rows in use, then 2 and 0 put in, and a chunk with at most 6 each."""
    made = KnownRows(2)
    made.in_use = np.array([3, 5], np.int32)
    made.entered, made.entered_longest = np.array([2, 0], np.int32), 40
    made.hand_out(NOBODY, None, None, num_rows=8, row_limit=6)
    return made


def test_what_enters_is_known_only_as_far_as_it_may_grow(known):
    known.entered = np.array([0, 1], np.int32)
    assert known.expected.tolist() == [5, 6]
    # The chunk may have used 6 on each; one more enters the second device after it.
    assert known.at_most(np.array([False, False])).tolist() == [6, 7]
    assert known.at_most(np.array([True, False])).tolist() == [3, 7]


def test_more_rows_than_a_limit_stay_in_use_until_they_are_given_back(known):
    known.hand_out(NOBODY, None, None, num_rows=8, row_limit=4)
    assert known.at_most(np.array([False, False])).tolist() == [6, 6]


def test_a_limit_is_never_more_than_the_rows_there_are(known):
    known.hand_out(NOBODY, None, None, num_rows=8, row_limit=99)
    assert known.at_most(np.array([False, False])).tolist() == [8, 8]


def test_rows_get_longer_by_one_position_in_every_step(known):
    assert known.longest(8) == 40 + 2 * 8  # in the chunk that runs, and in the next one
    known.entered_longest = 50
    assert known.longest(8) == 50 + 2 * 8
    chunk = known.unseen.popleft()._replace(snapshot=snapshot([6, 5], [48, 60]))
    known.see(types.SimpleNamespace(**chunk._asdict(), stalled=0), stuck=False)
    assert known.longest(8) == 60 + 8


@pytest.mark.parametrize(("later_limit", "stalled"), [(None, 2), (5, 2), (6, 2), (7, 0)])
def test_stalls_count_only_if_the_limit_was_not_raised_since(known, later_limit, stalled):
    chunk = known.unseen.popleft()._replace(snapshot=snapshot([6, 5], [48, 60]))
    assert chunk.row_limit == 6
    if later_limit is not None:
        known.hand_out(NOBODY, None, None, num_rows=16, row_limit=later_limit)
    known.see(types.SimpleNamespace(**chunk._asdict(), stalled=2), stuck=True)
    assert known.load == (6, 60, stalled, 6, True)
    assert known.in_use.tolist() == [6, 5]
    known.give_back(np.array([1, 4]))
    assert known.load == (4, 60, stalled, 6, False)
    if later_limit is None:
        assert known.expected.tolist() == [1, 4]
