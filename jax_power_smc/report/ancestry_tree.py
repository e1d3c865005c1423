"""The ancestry of a record's particles as a tree of line segments, and the order to draw it in.

The token that a row draws at step t continues what its parent row had after step t - 1. So the
path of a particle is found backwards from the row in which it ends, and two particles share all
steps up to the last one at which they are in the same row. With the moves [2, 1, 0] and [4, 0, 1]:

    step      0   1   2   3   4
    row 0     .---.---.   .---.      row 0 at the end went through rows 0 0 1 1 0
                  |       |
    row 1         '---.---.---.      row 1 at the end went through rows 0 0 1 1 1

and what row 0 had at steps 2 and 3 has no descendants. This is the same for every sampler: without
replacement, a row of the finished pool takes over the past of a running row at the step at which
the sequence ends. Copies of a finished sequence are in the same row at its last step, so they are
one leaf of the tree.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from jax_power_smc.evaluation.records import Record

ENDED = -1


@dataclasses.dataclass
class Segment:
    """The steps start .. end - 1, without a branch, of all particles whose path includes them.

    A leaf has no branches; for the height see ``set_heights``.
    """

    start: int
    end: int
    particles: list[int]
    branches: list["Segment"]
    height: float = 0.0


def paths(record: Record) -> np.ndarray:
    """[particles, steps]: the row of each particle at every step, then ``ENDED``."""
    particles = record["particles"]
    lengths = np.array([len(p["tokens"]) for p in particles], np.int64)
    parents: dict[int, dict[int, int]] = defaultdict(dict)
    for step, row, parent in record["info"]["moves"]:
        parents[step][row] = parent
    longest = int(lengths.max(initial=0))
    # Sequences may be moved after they have ended; the recorded rows are those after the last move.
    late = sorted((step for step in parents if step >= longest), reverse=True)
    rows = np.array([p["row"] for p in particles], np.int64)
    found = np.full((len(particles), longest), ENDED, np.int64)
    for step in (*late, *range(longest - 1, -1, -1)):
        if step < longest:
            found[:, step] = np.where(step < lengths, rows, ENDED)
        if step in parents:
            rows = np.array([parents[step].get(row, row) for row in rows.tolist()], np.int64)
    return found


def forest(rows: np.ndarray, particles: Iterable[int]) -> list[Segment]:
    """The trees of some particles, one for each row at the first step; rows as from ``paths``."""
    return _branches(rows, list(particles), 0)


def segments(trees: Iterable[Segment]) -> Iterator[Segment]:
    """All segments, each before its branches."""
    for tree in trees:
        yield tree
        yield from segments(tree.branches)


def leaves(trees: Iterable[Segment]) -> list[Segment]:
    """The leaves, from first to last branch."""
    return [segment for segment in segments(trees) if not segment.branches]


def sort_branches(trees: list[Segment], key: Callable[[Segment], Any]) -> None:
    """Sorts the trees, and all branches, by a key."""
    trees.sort(key=key)
    for segment in segments(trees):
        segment.branches.sort(key=key)


def set_heights(trees: list[Segment]) -> None:
    """Puts leaves at 0, 1, 2, ..., and every other segment between its branches.

    All leaves below a segment are adjacent, so no lines cross.
    """
    for place, leaf in enumerate(leaves(trees)):
        leaf.height = float(place)
    for segment in reversed(list(segments(trees))):
        if segment.branches:
            segment.height = (segment.branches[0].height + segment.branches[-1].height) / 2


def _branches(rows: np.ndarray, group: list[int], start: int) -> list[Segment]:
    """The segments that begin at ``start``, of particles that share all steps before it."""
    by_row: dict[int, list[int]] = defaultdict(list)
    for particle in group:
        row = rows[particle, start] if start < rows.shape[1] else ENDED
        by_row[int(row)].append(particle)
    return [_segment(rows, members, start) for members in by_row.values()]


def _segment(rows: np.ndarray, group: list[int], start: int) -> Segment:
    """The segment up to the first step at which the particles are in different rows."""
    part = rows[group, start:]
    differ = np.any(part != part[0], axis=0)
    if differ.any():
        end = start + int(np.argmax(differ))
        return Segment(start, end, group, _branches(rows, group, end))
    return Segment(start, start + int(np.sum(part[0] != ENDED)), group, [])
