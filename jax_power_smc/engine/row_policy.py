"""How many rows there are, and who enters or leaves them: decided between chunks by the host.

Every decision is a pure function of what was seen after a chunk. It is applied to a later one,
since the host never waits for the chunk that runs. So all processes of a mesh decide alike.

Every prompt ends. Rows are handed out in order of arrival (``rows.may_proceed``), so if any prompt
stalls, then the earliest one that stalls is not kept waiting by a later one's ask. If no prompt can
take a step, then either the table grows, or the youngest prompt that has rows gives them all back,
unless it is the only one. Both can happen only finitely often before the earliest prompt has all
the rows that it asks for, or is alone with the whole table. In the first case it takes a step; its
cap bounds the number of its steps. In the second its request fails, because even the whole table is
too small for it. Then the next prompt is the earliest.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from jax_power_smc.engine.buckets import doubling

# Rows beyond those in use, as a share of them: when no prompt stalled, and when one did. If a lone
# prompt stalls, the device waits; of several prompts the others go on, so that slack costs more
# than stalls (32 prompts of the tiny reasoner on a CPU: 7 % with N = 16, 5 % without replacement,
# nothing with N = 64).
SLACK = (0.0, 0.25)
SLACK_IF_ALONE = (0.125, 0.5)
# The share of a table that is kept free for prompts that may arrive while a chunk runs.
SPARE = 1 / 16
# A table does not shrink by fewer rows: it would soon grow again, and each way is a program.
LEAST_SAVING = 8


class Load(NamedTuple):
    """What was seen of a row table after a chunk; of the fullest device if there are several.

    Attributes:
      in_use: rows in use.
      longest: positions of the longest row.
      stalled: prompts that wait for rows.
      limit: as many rows might be in use when they stalled.
      stuck: no prompt could take a step, though some are not done.
    """

    in_use: int = 0
    longest: int = 0
    stalled: int = 0
    limit: int = 0
    stuck: bool = False


class RowPlan(NamedTuple):
    """What is done before the next chunk.

    Attributes:
      num_rows: R.
      row_limit: as many rows may be in use.
    """

    num_rows: int
    row_limit: int


def plan_rows(
    ladder: Sequence[int],
    num_rows: int,
    at_most: int,
    load: Load,
    useful: int,
    reserve: int,
    alone: bool = False,
) -> RowPlan:
    """The size of a row table for the next chunk.

    Args:
      ladder: the allowed sizes, ascending.
      num_rows: the present one; 0 if there is no table yet.
      at_most: as many rows may be in use when the chunk begins, those that enter before included.
      load: what was seen last, with the rows that enter.
      useful: as many as the prompts can have, of the fullest device: N each.
      reserve: prompts that may arrive while the chunk runs, per device.
      alone: whether there is only one prompt.
    """
    most = ladder[-1]
    slack = (SLACK_IF_ALONE if alone else SLACK)[bool(load.stalled)]
    wanted = math.ceil(load.in_use * (1 + slack))
    if load.stalled:
        wanted = max(wanted, load.limit + 1)

    def usable(size: int) -> int:
        # Not all, or the table would grow whenever a prompt arrives.
        return size if load.stuck else size - min(reserve, math.floor(SPARE * size))

    wanted = min(wanted, useful)
    size = next((size for size in ladder if usable(size) >= wanted), most)
    if num_rows - LEAST_SAVING < size < num_rows:
        size = num_rows
    floor = smallest(ladder, at_most)
    # Also below the size, so that it is known that prompts that leave leave rows free.
    limit = max(min(usable(size), useful), 1)
    if size < floor:
        # Rows are given back first, below a limit, and the table shrinks one look later.
        size = max(floor, num_rows) if num_rows else floor
    if size == most and limit == usable(most) and not load.stuck:
        limit = max(most - reserve, 1)
    return RowPlan(size, limit)


def smallest(ladder: Sequence[int], least: int) -> int:
    """The smallest size of at least ``least``, or else the largest."""
    return next((size for size in ladder if size >= least), ladder[-1])


def row_ladder(most: int) -> tuple[int, ...]:
    """Sizes up to ``most``, by doubling from 4, from 16 on with half steps: 16, 24, 32, 48, ..."""
    return doubling(4, most, halves_from=16)


def plan_capacity(ladder: Sequence[int], capacity: int, longest: int) -> int:
    """The capacity for rows of up to ``longest`` positions; if it shrinks, then by half or more."""
    if longest > capacity or 2 * (longest + longest // 4) <= capacity:
        return smallest(ladder, longest)
    return capacity
