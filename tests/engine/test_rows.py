"""Who gets which row: distinct prefixes, the order of asking, and free rows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.engine import rows
from jax_power_smc.engine.rows import distinct_prefixes, may_proceed

P, N, R, V = 3, 7, 16, 5
hand_out = jax.jit(rows.hand_out)


# --- distinct prefixes ---


def prefixes_of(live, row, token):
    """By comparing every particle with every other one: leader, keeps, copies."""
    count, num = live.shape
    leader = np.full((count, num), -1)
    keeps, copies = np.zeros((2, count, num), bool)
    for p in range(count):
        taken = set()
        for n in range(num):
            if not live[p, n]:
                continue
            same = [
                m
                for m in range(n)
                if live[p, m] and (row[p, m], token[p, m]) == (row[p, n], token[p, n])
            ]
            leader[p, n] = p * num + (same[0] if same else n)
            if same:
                continue
            keeps[p, n] = row[p, n] not in taken
            copies[p, n] = row[p, n] in taken
            taken.add(row[p, n])
    return leader, keeps, copies


def some_particles(seed, chance=0.7):
    """Prompts with disjoint rows, each with particles on few of them."""
    rng = np.random.default_rng(seed)
    own = rng.permutation(R)[: 4 * P].reshape(P, 4)
    row = np.take_along_axis(own, rng.integers(0, rng.integers(1, 5), (P, N)), axis=1)
    token = rng.integers(0, rng.integers(1, V + 1), (P, N))
    live = rng.random((P, N)) < chance
    # A particle without a row has any value there.
    row = np.where(live, row, R - 1)
    return live, row.astype(np.int32), token.astype(np.int32)


@jax.jit
def found_prefixes(live, row, token):
    return distinct_prefixes(live, row, token, R, V)


@pytest.fixture
def sorts(monkeypatch):
    """As with more particles than are compared in pairs."""
    monkeypatch.setattr(rows, "MOST_COMPARED", 0)


@jax.jit
def sorted_prefixes(live, row, token):
    return distinct_prefixes(live, row, token, R, V)


@pytest.mark.parametrize("by_sorting", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_distinct_prefixes_are_those_found_by_comparing_all_pairs(seed, by_sorting, request):
    live, row, token = some_particles(seed, chance=[0.7, 1.0, 0.0][seed % 3])
    leader, keeps, copies = prefixes_of(live, row, token)
    if by_sorting:
        request.getfixturevalue("sorts")
    found = (sorted_prefixes if by_sorting else found_prefixes)(live, row, token)
    np.testing.assert_array_equal(np.where(live, found.leader, -1), leader)
    np.testing.assert_array_equal(found.keeps, keeps)
    np.testing.assert_array_equal(found.copies, copies)


def test_a_row_is_kept_once_and_every_prefix_has_one_leader():
    live, row, token = some_particles(1)
    found = found_prefixes(live, row, token)
    leads = np.asarray(found.keeps | found.copies)
    pairs = [(row[p, n], token[p, n]) for p, n in zip(*np.nonzero(live), strict=True)]
    assert leads.sum() == len(set(pairs)) < len(pairs)
    kept = row[np.asarray(found.keeps)]
    assert len(set(kept.tolist())) == len(kept) == len({pair[0] for pair in pairs})


def test_known_distinctness_saves_the_sort(sorts):
    # Without replacement no two particles have the same prefix.
    live = np.array([[True, True, True, False], [True, True, True, True]])
    row = np.array([[3, 3, 1, 0], [2, 2, 2, 5]], np.int32)
    token = np.array([[0, 1, 0, 0], [4, 2, 0, 4]], np.int32)
    args = live, row, token, R, V
    known, sorted_ = distinct_prefixes(*args, all_distinct=True), distinct_prefixes(*args)
    np.testing.assert_array_equal(known.keeps, sorted_.keeps)
    np.testing.assert_array_equal(known.copies, sorted_.copies)
    np.testing.assert_array_equal(known.leader[live], sorted_.leader[live])

    def text(distinct):
        return str(
            jax.make_jaxpr(lambda *x: distinct_prefixes(*x, R, V, distinct))(live, row, token)
        )

    assert " sort[" in text(False) and " sort[" not in text(True)


def test_pairs_must_fit_in_32_bits(sorts):
    one = np.zeros((1, 1), np.int32)
    fits = distinct_prefixes(one == 0, one + 1, one, 4, 2**30 - 1)
    assert fits.keeps.tolist() == [[True]]
    with pytest.raises(ValueError, match="4 rows are too many for a vocabulary of 1073741824"):
        distinct_prefixes(one == 0, one, one, 4, 2**30)
    # The largest pair is not taken for a particle that does not run.
    most = np.array([[3, 3]], np.int32)
    last = distinct_prefixes(most > 0, most, most * 0 + 2**30 - 2, 4, 2**30 - 1)
    assert last.leader.tolist() == [[0, 0]]


# --- who may go on ---


def proceeds(order, holds, wants, free):
    as_array = [jnp.asarray(x, jnp.int32) for x in (order, holds, wants, free)]
    return may_proceed(*as_array).tolist()


def test_all_go_on_while_there_are_rows():
    assert proceeds([0, 1, 2], [1, 1, 1], [2, 3, 2], 4) == [True] * 3


def test_later_prompts_wait_for_earlier_ones():
    assert proceeds([0, 1, 2], [1, 1, 1], [2, 3, 2], 3) == [True, True, False]
    # By arrival, wherever their slots are.
    assert proceeds([2, 0, 1], [1, 1, 1], [2, 2, 3], 3) == [False, True, True]


def test_nobody_overtakes():
    # The last one asks for a single row, and there are two; but the second one needs three.
    assert proceeds([0, 1, 2], [1, 1, 1], [1, 4, 2], 2) == [True, False, False]


def test_giving_back_never_waits_and_serves_the_others_at_once():
    assert proceeds([0, 1, 2], [1, 5, 3], [3, 2, 3], 0) == [True, True, True]
    assert proceeds([0, 1], [1, 4], [9, 3], 0) == [False, True]
    # Also where more rows are in use than may be.
    assert proceeds([0, 1, 2], [4, 4, 4], [4, 3, 5], -2) == [True, True, False]
    assert proceeds([0, 1], [2, 4], [3, 1], -2) == [True, True]
    assert proceeds([0, 1], [2, 4], [3, 2], -2) == [False, True]


@pytest.mark.parametrize("seed", range(20))
def test_the_rule_against_one_prompt_after_the_other(seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(9)
    holds, wants = rng.integers(0, 6, (2, 9))
    free = int(rng.integers(-2, 12))
    left = free + int(np.maximum(holds - wants, 0).sum())
    waits, expected = False, [False] * 9
    for p in np.argsort(order):
        ask = max(int(wants[p] - holds[p]), 0)
        waits = waits or (ask > 0 and ask > left)
        expected[p] = ask == 0 or not waits
        if ask and not waits:
            left -= ask
    assert proceeds(order, holds, wants, free) == expected
    # What goes on fits.
    after = np.where(expected, wants, holds).sum() - holds.sum()
    assert after <= max(free, 0)


# --- free rows ---


def test_the_lowest_free_rows_go_to_the_first_that_ask():
    asks = jnp.array([False, True, True, False, True])
    free = jnp.array([False, True, False, True, True, True])
    assert hand_out(asks, free).tolist() == [6, 1, 3, 6, 4]


def test_there_may_be_no_row_left():
    asks = jnp.ones((4,), bool)
    assert hand_out(asks, jnp.array([True, False, True])).tolist() == [0, 2, 3, 3]
    assert hand_out(asks, jnp.zeros((3,), bool)).tolist() == [3] * 4


def test_no_row_is_handed_out_twice():
    for asks, free in itertools.product(itertools.product([False, True], repeat=4), repeat=2):
        got = np.asarray(hand_out(np.array(asks), np.array(free)))[list(asks)].tolist()
        given = [row for row in got if row < 4]
        assert given == [row for row in range(4) if free[row]][: sum(asks)]
