"""The one display of progress: a live bar on a terminal, plain lines now and then elsewhere."""

import sys
import time
from typing import Self, TextIO

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from jax_power_smc.core.sanitize import VisibleStream, as_is, visible


class ProgressDisplay:
    """Shows how much of one or several stages is done; a context manager.

    On a terminal every stage has a bar of its own. Elsewhere a line is printed when a stage is
    complete, and in between if the last line is old enough.

    Args:
      seconds_between_lines: how old; 0 prints every line, None prints none.
      in_bytes: whether the amounts are bytes; otherwise they are shown as they are.
      stream: where to show it; None for stdout.
      show: False shows nothing.
      transient: whether bars vanish at the end.
    """

    def __init__(
        self,
        seconds_between_lines: float | None = 10.0,
        *,
        in_bytes: bool = False,
        stream: TextIO | None = None,
        show: bool = True,
        transient: bool = False,
    ) -> None:
        self._stream = stream or sys.stdout
        self._seconds, self._last = seconds_between_lines, -float("inf")
        self._show = show
        self._bars: dict[str, TaskID] = {}
        self._live: Progress | None = None
        if show and self._stream.isatty():
            amounts = (DownloadColumn(), TimeRemainingColumn())
            self._live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                *(amounts if in_bytes else (MofNCompleteColumn(),)),
                TextColumn("{task.fields[text]}", markup=False),
                console=Console(file=as_is(self._stream)),
                transient=transient,
            )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
            # What is printed meanwhile appears above the bars, by way of the display's console.
            for name in ("stdout", "stderr"):
                if isinstance(stream := getattr(sys, name), FileProxy):
                    setattr(sys, name, VisibleStream(stream))
        return self

    def __exit__(self, *details: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, stage: str, done: int, total: int, text: str = "", line: str = "") -> None:
        """Shows how much of a stage is done.

        Args:
          stage: its name; a new one gets a bar of its own.
          done, total: amounts.
          text: what to show behind the amounts.
          line: the plain line instead; "" for one made of the above.
        """
        # Names may come from a data set, a hub or a config of strangers.
        stage, text, line = map(visible, (stage, text, line))
        if self._live:
            if stage not in self._bars:
                self._bars[stage] = self._live.add_task(stage, total=total, text=text)
            self._live.update(self._bars[stage], completed=done, total=total, text=text)
        elif self._show and self._seconds is not None and (self._is_due() or done == total):
            line = line or f"{stage}: {done}/{total}" + (f", {text}" if text else "")
            print(line, file=self._stream, flush=True)

    def _is_due(self) -> bool:
        if not self._seconds:
            return True
        now = time.monotonic()
        if now - self._last <= self._seconds:
            return False
        self._last = now
        return True


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
