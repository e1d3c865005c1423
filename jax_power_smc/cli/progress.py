"""Progress of a training run: a live line on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as LiveProgress


class Progress:
    """Shows step, loss, tokens per second and the time left; a context manager.

    Args:
      steps: of the whole run.
      first_step: where this start of it begins.
    """

    def __init__(self, steps: int, first_step: int = 0) -> None:
        self._steps = steps
        self._last: tuple[float, int, int | None] = (time.monotonic(), first_step, None)
        self._live: LiveProgress | None = None
        if sys.stdout.isatty():
            self._live = LiveProgress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(file=sys.stdout),
            )
            self._task = self._live.add_task("", total=steps, completed=first_step, text="")

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def update(self, step: int, tokens: int, loss: float, valid_loss: float | None) -> None:
        """Shows the state after ``step``, with ``tokens`` seen so far."""
        now = time.monotonic()
        then, last_step, last_tokens = self._last
        self._last = (now, step, tokens)
        elapsed = max(now - then, 1e-9)
        parts = [f"loss {loss:.4f}"]
        if valid_loss is not None:
            parts.append(f"valid {valid_loss:.4f}")
        if last_tokens is not None:
            parts.append(f"{(tokens - last_tokens) / elapsed:,.0f} tokens/s")
        left = (self._steps - step) * elapsed / max(step - last_step, 1)
        parts.append(f"{clock(left)} left")
        text = "  ".join(parts)
        if self._live:
            self._live.update(self._task, completed=step, text=text)
        else:
            print(f"step {step}/{self._steps}  {text}", flush=True)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
