"""The ancestry of a record's particles as a tree of line segments, and the order to draw it in.

The token that a row draws at step t continues what its parent row held after step t - 1. So the
path of a particle is found backwards from the row in which it ends, and two particles share all
steps up to the last one at which they are in the same row. With the moves [2, 1, 0] and [4, 0, 1]:

    step      0   1   2   3   4
    row 0     .---.---.   .---.      row 0 at the end went through rows 0 0 1 1 0
                  |       |
    row 1         '---.---.---.      row 1 at the end went through rows 0 0 1 1 1

and what row 0 held at steps 2 and 3 has no descendants. This is the same for every sampler: without
replacement, a row of the finished pool takes over the past of a running row at the step at which
the sequence ends. Copies of a finished sequence are in the same row at its last step, so they are
one leaf of the tree.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jax_power_smc.evaluation.records import Record

ENDED = -1


@dataclasses.dataclass
class Segment:
    """A range of steps without a branch.

    Attributes:
      start, end: its steps are start .. end - 1.
      particles: indices of all particles whose path includes it.
      branches: the segments that follow; none at a leaf.
    """

    start: int
    end: int
    particles: list[int]
    branches: list["Segment"]

    def leaves(self) -> list["Segment"]:
        """The leaves below this segment, from first to last branch."""
        if not self.branches:
            return [self]
        return [leaf for branch in self.branches for leaf in branch.leaves()]


def paths(record: Record, particles: Sequence[int]) -> np.ndarray:
    """[particles, steps]: the row that held each particle at every step, then ``ENDED``."""
    chosen = [record["particles"][i] for i in particles]
    lengths = np.array([len(p["tokens"]) for p in chosen], np.int64)
    parents: dict[int, dict[int, int]] = defaultdict(dict)
    for step, row, parent in record["info"]["moves"]:
        parents[step][row] = parent
    # Sequences may be moved after they have ended; the recorded rows are those after the last move.
    steps = max([0, *(1 + step for step in parents), *lengths.tolist()])
    rows = np.array([p["row"] for p in chosen], np.int64)
    found = np.full((len(chosen), steps), ENDED, np.int64)
    for step in range(steps - 1, -1, -1):
        found[:, step] = np.where(step < lengths, rows, ENDED)
        if step in parents:
            rows = np.array([parents[step].get(row, row) for row in rows.tolist()], np.int64)
    return found[:, : lengths.max(initial=0)]


def forest(rows: np.ndarray) -> list[Segment]:
    """The trees from the result of ``paths``: one for each row at the first step."""
    return _branches(rows, list(range(len(rows))), 0)


def sort_branches(trees: list[Segment], key: Callable[[Segment], Any]) -> list[Segment]:
    """Sorts all branches by a key, at every level; returns the trees in order."""
    for tree in trees:
        tree.branches = sort_branches(tree.branches, key)
    return sorted(trees, key=key)


def heights(trees: Sequence[Segment]) -> dict[int, float]:
    """``id`` of every segment -> height: leaves at 0, 1, 2, ..., others between their branches.

    All leaves below a segment are adjacent, so no lines cross.
    """
    found: dict[int, float] = {}

    def place(segment: Segment, free: int) -> int:
        if not segment.branches:
            found[id(segment)] = float(free)
            return free + 1
        for branch in segment.branches:
            free = place(branch, free)
        heights = [found[id(branch)] for branch in segment.branches]
        found[id(segment)] = (heights[0] + heights[-1]) / 2
        return free

    free = 0
    for tree in trees:
        free = place(tree, free)
    return found


def _branches(rows: np.ndarray, group: list[int], start: int) -> list[Segment]:
    """The segments that begin at ``start``, of particles that share all steps before it."""
    if start == rows.shape[1]:
        return [Segment(start, start, group, [])]
    by_row: dict[int, list[int]] = defaultdict(list)
    for particle in group:
        by_row[int(rows[particle, start])].append(particle)
    return [_segment(rows, members, start) for members in by_row.values()]


def _segment(rows: np.ndarray, group: list[int], start: int) -> Segment:
    """The segment up to the first step at which the particles are in different rows."""
    part = rows[group, start:]
    if part[0, 0] == ENDED:
        return Segment(start, start, group, [])
    differ = np.any(part != part[0], axis=0)
    if differ.any():
        end = start + int(np.argmax(differ))
        return Segment(start, end, group, _branches(rows, group, end))
    return Segment(start, start + int(np.sum(part[0] != ENDED)), group, [])
