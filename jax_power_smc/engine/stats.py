"""What an engine's rows were used for: the cost of a run beside its results."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass
class EngineStats:
    """Counts since the engine's last run began, over all devices.

    On a mesh devices are data shards: those that share the tensors of a model count as one.

    Attributes:
      rows_there: rows of all tables, at the largest size that they had.
      rows_used: the most rows that were in use after any chunk.
      steps: decode steps of the devices, counted once for all of them.
      row_steps: rows in use, summed over the steps; those of stalled prompts included.
      table_steps: rows of the tables, in use or not, summed over the steps.
      stalls: prompts that waited for rows, summed over the steps.
      preemptions: prompts that gave all their rows back.
      resumed: prompts that got rows again.
      recomputed: tokens that were read again for that.
      copied_rows: rows that were copied for new prefixes.
      by_device: ``row_steps`` of each device.
    """

    rows_there: int = 0
    rows_used: int = 0
    steps: int = 0
    row_steps: int = 0
    table_steps: int = 0
    stalls: int = 0
    preemptions: int = 0
    resumed: int = 0
    recomputed: int = 0
    copied_rows: int = 0
    by_device: tuple[int, ...] = ()

    @property
    def fullest_device(self) -> float:
        """Rows in use in a step, on average, on the device with the most."""
        return max(self.by_device, default=0) / max(self.steps, 1)

    @property
    def mean_device(self) -> float:
        """Rows in use in a step, on average, on a device."""
        return self.row_steps / max(self.steps * len(self.by_device), 1)

    def add(self, snapshot: Any, copies: np.ndarray, num_rows: int) -> None:
        """Adds a chunk: its ``Snapshot``, copied rows [P, ticks], and R of each device."""
        steps, row_steps = int(snapshot.num_ticks.max()), snapshot.row_steps.tolist()
        there = num_rows * len(row_steps)
        self.rows_there = max(self.rows_there, there)
        self.rows_used = max(self.rows_used, int(snapshot.in_use.sum()))
        self.steps += steps
        self.row_steps += sum(row_steps)
        self.table_steps += there * steps
        self.stalls += int(snapshot.stalls.sum())
        self.copied_rows += int(copies.sum())
        before = self.by_device or (0,) * len(row_steps)
        self.by_device = tuple(x + y for x, y in zip(before, row_steps, strict=True))
