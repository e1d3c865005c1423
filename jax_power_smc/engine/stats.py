"""What an engine's rows were used for: the cost of a run beside its results."""

import dataclasses
from typing import Any


@dataclasses.dataclass
class EngineStats:
    """Counts since the engine's last run began, over all devices.

    Attributes:
      rows_there: R, the largest number of rows that the plan allows.
      rows_used: the largest number of rows that a device's table had.
      steps: decode steps of the devices, counted once for all of them.
      row_steps: rows that were in use, summed over the steps; those of stalled prompts included.
      stalls: prompts that waited for rows, summed over the steps.
      preemptions: prompts that gave all their rows back.
      resumed: prompts that got rows again.
      recomputed: tokens that were read again for that.
    """

    rows_there: int = 0
    rows_used: int = 0
    steps: int = 0
    row_steps: int = 0
    stalls: int = 0
    preemptions: int = 0
    resumed: int = 0
    recomputed: int = 0

    def add(self, snapshot: Any) -> None:
        """Adds a chunk's ``Snapshot``, in host memory."""
        self.steps += int(snapshot.num_ticks.max())
        self.row_steps += int(snapshot.row_steps.sum())
        self.stalls += int(snapshot.stalls.sum())
