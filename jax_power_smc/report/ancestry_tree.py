"""The ancestry of a record's particles as a tree of line segments, and the order to draw it in.

A row's token of step t follows the past that its parent row held after step t - 1. So a particle
that ends in some row is followed backwards, from step to step, and two particles share all steps
up to the last one at which they are in the same row. With the moves [2, 1, 0] and [4, 0, 1]:

    step      0   1   2   3   4
    row 0     .---.---.   .---.      row 0 at the end went through rows 0 0 1 1 0
                  |       |
    row 1         '---.---.---.      row 1 at the end went through rows 0 0 1 1 1

and nobody descends from what row 0 held at steps 2 and 3. That holds for every sampler: in
without-replacement SMC a row of the pool takes over a running row's past at the step at which the
sequence ends. Copies of a finished sequence are in the same row at its last step: they are one end
of the tree.
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
    """A stretch of steps over which nothing branches.

    Attributes:
      start, end: its steps are start .. end - 1.
      particles: indices of all that went through it.
      branches: what follows; none at an end of the tree.
    """

    start: int
    end: int
    particles: list[int]
    branches: list["Segment"]

    def ends(self) -> list["Segment"]:
        """The ends of the tree behind this segment, from first to last branch."""
        if not self.branches:
            return [self]
        return [end for branch in self.branches for end in branch.ends()]


def paths(record: Record, particles: Sequence[int]) -> np.ndarray:
    """[particles, steps]: the row that held each at every step of its tokens, then ``ENDED``."""
    chosen = [record["particles"][i] for i in particles]
    lengths = np.array([len(p["tokens"]) for p in chosen], np.int64)
    parents: dict[int, dict[int, int]] = defaultdict(dict)
    for step, row, parent in record["info"]["moves"]:
        parents[step][row] = parent
    # Moves go on after a sequence has ended, and the rows are those behind the last move.
    steps = max([0, *(1 + step for step in parents), *lengths.tolist()])
    rows = np.array([p["row"] for p in chosen], np.int64)
    found = np.full((len(chosen), steps), ENDED, np.int64)
    for step in range(steps - 1, -1, -1):
        found[:, step] = np.where(step < lengths, rows, ENDED)
        if step in parents:
            rows = np.array([parents[step].get(row, row) for row in rows.tolist()], np.int64)
    return found[:, : lengths.max(initial=0)]


def forest(rows: np.ndarray) -> list[Segment]:
    """The trees of what ``paths`` returns: one for each row at the first step."""
    return _branches(rows, list(range(len(rows))), 0)


def arrange(trees: list[Segment], key: Callable[[Segment], Any]) -> list[Segment]:
    """Sorts the branches everywhere by a key; returns the trees in order."""
    for tree in trees:
        tree.branches = arrange(tree.branches, key)
    return sorted(trees, key=key)


def places(trees: Sequence[Segment]) -> dict[int, float]:
    """``id`` of every segment -> its height: ends are 0, 1, 2, ...; others between their branches.

    All ends behind a segment are neighbours, so no line has to cross another.
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
    """The segments that begin at a step, of particles that shared all steps before it."""
    if start == rows.shape[1]:
        return [Segment(start, start, group, [])]
    by_row: dict[int, list[int]] = defaultdict(list)
    for particle in group:
        by_row[int(rows[particle, start])].append(particle)
    return [_segment(rows, members, start) for members in by_row.values()]


def _segment(rows: np.ndarray, group: list[int], start: int) -> Segment:
    """Up to the first step at which not all are in the same row."""
    part = rows[group, start:]
    if part[0, 0] == ENDED:
        return Segment(start, start, group, [])
    differ = np.any(part != part[0], axis=0)
    if differ.any():
        end = start + int(np.argmax(differ))
        return Segment(start, end, group, _branches(rows, group, end))
    return Segment(start, start + int(np.sum(part[0] != ENDED)), group, [])
