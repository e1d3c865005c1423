"""What the host knows of the rows of each device, which it sees a chunk late.

Letters: D devices (data shards).
"""

import collections
from typing import Any

import numpy as np

from jax_power_smc.engine.chunk import Chunk
from jax_power_smc.engine.records import PendingRecords
from jax_power_smc.engine.request import ActiveRequest
from jax_power_smc.engine.row_policy import Load


class KnownRows:
    """The chunks that run, the last one that was looked at, and what follows for the rows.

    Args:
      devices: D.

    Attributes:
      unseen: chunks that were handed out, in order.
      seen: the last one that was looked at, in host memory, if any was.
      load: what it showed, of the fullest device.
      in_use: [D] int32, the rows that it showed to be in use.
      entered: [D] int32, rows that were put in since the last chunk was handed out.
      entered_longest: positions of the longest of them.
    """

    def __init__(self, devices: int) -> None:
        self.unseen: collections.deque[Chunk] = collections.deque()
        self.seen: Chunk | None = None
        self.load = Load()
        self.in_use: np.ndarray = np.zeros((devices,), np.int32)
        self.entered: np.ndarray = np.zeros_like(self.in_use)
        self.entered_longest = 0

    @property
    def expected(self) -> np.ndarray:
        """[D] int32: rows in use if no prompt takes any or gives any back meanwhile."""
        return np.asarray(self.in_use + self.entered + sum(chunk.entered for chunk in self.unseen))

    def at_most(self, idle: np.ndarray) -> np.ndarray:
        """[D] int32: at most these are in use when the next chunk begins.

        On an ``idle`` device, [D] bool, all prompts are known to be done, so no rows were added.
        """
        rows = self.in_use
        for chunk in self.unseen:
            rows = np.maximum(rows + chunk.entered, chunk.row_limit)
        return np.where(idle, self.in_use, rows + self.entered)

    def longest(self, ticks: int) -> int:
        """Positions of the longest row after the next chunk, if each has as many ``ticks``."""
        lengths = [self.load.longest, self.entered_longest, *(c.longest for c in self.unseen)]
        return max(lengths) + (len(self.unseen) + 1) * ticks

    def hand_out(
        self,
        occupants: list[ActiveRequest | None],
        records: PendingRecords,
        snapshot: Any,
        num_rows: int,
        row_limit: int,
    ) -> None:
        """Notes a chunk, see ``Chunk``."""
        put_in = self.entered, self.entered_longest
        limit = min(row_limit, num_rows)
        self.unseen.append(Chunk(occupants, records, snapshot, num_rows, limit, *put_in))
        self.entered, self.entered_longest = np.zeros_like(self.in_use), 0

    def see(self, chunk: Chunk, stuck: bool) -> None:
        """Learns from a chunk in host memory, the first of those that were unseen."""
        latest = self.unseen[-1] if self.unseen else chunk
        self.seen, self.in_use = chunk, np.asarray(chunk.snapshot.in_use)
        self.load = Load(
            in_use=int(self.in_use.max()),
            longest=int(chunk.snapshot.longest.max()),
            # Stalls under a limit that was raised since are no reason to raise it again.
            stalled=chunk.stalled if chunk.row_limit >= latest.row_limit else 0,
            limit=chunk.row_limit,
            stuck=stuck,
        )

    def give_back(self, in_use: np.ndarray) -> None:
        """Learns that rows were given back by prompts without which none could move."""
        self.in_use = in_use
        self.load = self.load._replace(in_use=int(in_use.max()), stuck=False)
