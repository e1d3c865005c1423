"""The ancestry as a tree: against a replay of all parents, and cases drawn by hand."""

import itertools

import numpy as np
import pytest

from jax_power_smc.evaluation import records
from jax_power_smc.report import ancestry_tree
from tests.report.plotted import particle, record


def forest(made):
    return ancestry_tree.forest(ancestry_tree.paths(made), range(len(made["particles"])))


def replay(parent, rows, lengths):
    """Names of the tokens of each particle, by copying whole sequences forwards step by step."""
    held = [[] for _ in range(parent.shape[1])]
    for step, parents in enumerate(parent):
        held = [held[p] + [(step, row)] for row, p in enumerate(parents)]
    return [held[row][:length] for row, length in zip(rows, lengths, strict=True)]


def smc_case(rng, num, steps):
    """Resampling in place now and then; some particles end early, and may be copied after that."""
    parent = np.tile(np.arange(num), (steps, 1))
    length, ended = np.zeros(num, int), np.zeros(num, bool)
    for step in range(steps):
        if rng.random() < 0.4:
            taken = rng.integers(0, num, num)
            parent[step] = np.where(rng.random(num) < 0.5, taken, parent[step])
            length, ended = length[parent[step]], ended[parent[step]]
        length = length + ~ended
        ended = ended | (rng.random(num) < 0.1)
    return parent, np.arange(num), length


def swor_case(rng, num, steps):
    """Running rows fork from one root; rows of the pool take over the past of one that ends."""
    parent = np.tile(np.arange(2 * num), (steps, 1))
    length, alive = np.zeros(2 * num, int), np.zeros(2 * num, bool)
    alive[0] = True
    for step in range(steps):
        before = np.flatnonzero(alive[:num])
        if not len(before):
            break
        old = length.copy()
        for row in range(num):
            if alive[row] or rng.random() < 0.5:
                source = row if alive[row] else int(rng.choice(before))
                parent[step, row], length[row] = source, old[source] + 1
        alive[:num] |= parent[step, :num] != np.arange(num)
        for row in range(num, 2 * num):
            if rng.random() < 0.2:  # what the pool held there is dropped
                source = int(rng.choice(before))
                parent[step, row], length[row], alive[row] = source, old[source] + 1, True
    rows = np.flatnonzero(alive)
    return parent, rows, length[rows]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("case", [smc_case, swor_case])
def test_two_particles_share_a_segment_where_a_replay_has_the_same_tokens(case, seed):
    rng = np.random.default_rng(seed)
    parent, rows, lengths = case(rng, 6, 14)
    made = record(
        [particle(int(r), int(n)) for r, n in zip(rows, lengths, strict=True)],
        records.moves(parent),
    )
    everyone = range(len(rows))
    trees = forest(made)
    told = replay(parent, rows, lengths)
    segments = list(ancestry_tree.segments(trees))
    for one, other in itertools.combinations(everyone, 2):
        common = sum(
            s.end - s.start for s in segments if one in s.particles and other in s.particles
        )
        same = sum(a == b for a, b in zip(told[one], told[other], strict=False))
        assert common == same
    for i in everyone:
        own = [s for s in segments if i in s.particles]
        assert sum(s.end - s.start for s in own) == lengths[i]
        assert own[-1].branches == []
    ends = ancestry_tree.leaves(trees)
    assert sorted(i for end in ends for i in end.particles) == list(everyone)


def test_the_example_of_the_module():
    made = record([particle(0, 5), particle(1, 5)], [(2, 1, 0), (4, 0, 1)])
    rows = ancestry_tree.paths(made)
    assert rows.tolist() == [[0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    (tree,) = ancestry_tree.forest(rows, [0, 1])
    assert (tree.start, tree.end, tree.particles) == (0, 4, [0, 1])
    assert [(b.start, b.end, b.particles) for b in tree.branches] == [(4, 5, [0]), (4, 5, [1])]


def test_copies_of_a_finished_sequence_are_one_end():
    # Row 0 ends after two tokens and is copied at step 3; row 2 continues.
    made = record(
        [particle(0, 2), particle(1, 2), particle(2, 4)],
        [(3, 1, 0)],
    )
    trees = forest(made)
    ends = ancestry_tree.leaves(trees)
    assert [(end.end, end.particles) for end in ends] == [(2, [0, 1]), (4, [2])]


def test_a_row_of_the_pool_takes_over_the_past_of_a_running_row():
    # N = 2: row 2 is of the pool. At step 3 the sequence in row 0 ends there, and row 0 continues.
    made = record([particle(2, 4), particle(0, 6)], [(3, 2, 0)])
    rows = ancestry_tree.paths(made)
    assert rows.tolist() == [[0, 0, 0, 2, -1, -1], [0] * 6]
    (tree,) = ancestry_tree.forest(rows, [0, 1])
    assert (tree.end, [(b.start, b.end) for b in tree.branches]) == (3, [(3, 4), (3, 6)])


def test_moves_behind_the_end_of_a_sequence_count():
    # Row 0 took over at step 3, when the sequence had ended, what row 2 held.
    made = record([particle(0, 2), particle(1, 4)], [(3, 0, 2)])
    assert ancestry_tree.paths(made).tolist() == [[2, 2, -1, -1], [1, 1, 1, 1]]


def test_what_has_no_tokens_is_an_end_at_the_prompt():
    trees = forest(record([particle(0, 0), particle(1, 0)]))
    assert [(tree.start, tree.end, tree.particles) for tree in trees] == [(0, 0, [0, 1])]
    trees = forest(record([particle(0, 0), particle(0, 3)]))
    assert sorted((tree.start, tree.end) for tree in trees) == [(0, 0), (0, 3)]


def test_no_lines_cross_in_a_case_made_by_hand():
    # 0 and 3 are of one family, 1 and 2 of another: in the order of the record they would cross.
    made = record([particle(r, 6) for r in range(4)], [(2, 3, 0), (4, 2, 1)])
    trees = forest(made)
    ancestry_tree.sort_branches(trees, lambda segment: min(segment.particles))
    ancestry_tree.set_heights(trees)
    ends = [end.particles for end in ancestry_tree.leaves(trees)]
    assert ends == [[0], [3], [1], [2]]
    assert [end.height for end in ancestry_tree.leaves(trees)] == [0, 1, 2, 3]
    assert [tree.height for tree in trees] == [0.5, 2.5]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("case", [smc_case, swor_case])
def test_no_lines_cross(case, seed):
    parent, rows, lengths = case(np.random.default_rng(seed), 8, 20)
    made = record(
        [particle(int(r), int(n)) for r, n in zip(rows, lengths, strict=True)],
        records.moves(parent),
    )
    trees = forest(made)
    ancestry_tree.sort_branches(trees, lambda s: -max(s.particles))
    ancestry_tree.set_heights(trees)
    along, across = [], []
    for segment in ancestry_tree.segments(trees):
        along.append((segment.start, segment.end, segment.height))
        for branch in segment.branches:
            ends = sorted((segment.height, branch.height))
            across.append((branch.start, *ends))
    assert len(across) > 2
    for at, low, high in across:
        assert not any(start < at < end and low <= y <= high for start, end, y in along)


def test_branches_are_sorted_everywhere():
    leaf = ancestry_tree.Segment(1, 2, [0], [])
    other = ancestry_tree.Segment(1, 2, [1], [])
    tree = ancestry_tree.Segment(0, 1, [0, 1], [leaf, other])
    ancestry_tree.sort_branches([tree], lambda segment: -segment.particles[0])
    assert [branch.particles for branch in tree.branches] == [[1], [0]]
