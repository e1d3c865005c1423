"""Progress of an evaluation: a live line on a terminal, a plain line now and then elsewhere."""

import math
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as LiveProgress

from jax_power_smc.cli.progress import clock
from jax_power_smc.core.process_group import SINGLE_PROCESS, ProcessGroup
from jax_power_smc.evaluation.job import State

_SECONDS_BETWEEN_LINES = 10


class Progress:
    """Shows the state of a job; a context manager.

    Args:
      processes: of several, the first shows how far its own share is, and the others nothing.
    """

    def __init__(self, processes: ProcessGroup = SINGLE_PROCESS) -> None:
        self._share = "" if processes.count == 1 else f" (process 0 of {processes.count})"
        self._shows = processes.is_first
        self._last = 0.0
        self._task: tuple[str, TaskID] | None = None
        self._live: LiveProgress | None = None
        if self._shows and sys.stdout.isatty():
            self._live = LiveProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(file=sys.stdout),
            )

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self._live:
            self._live.stop()

    def report(self, state: State) -> None:
        """Shows how far a run is."""
        if not self._shows:
            return
        left = state.seconds_left
        text = f"accuracy so far {state.accuracy:.3f}"
        if not math.isnan(left):
            text += f", {clock(left)} left"
        if self._live:
            if self._task is None or self._task[0] != state.label:
                task = self._live.add_task(state.label, total=state.total, text=text)
                self._task = state.label, task
            self._live.update(self._task[1], completed=state.done, text=text)
            return
        now = time.monotonic()
        if state.done == state.total or now - self._last > _SECONDS_BETWEEN_LINES:
            self._last = now
            print(
                f"{state.label}: {state.done}/{state.total} items{self._share}, {text}", flush=True
            )
