"""What the launchers show of their progress: of an evaluation, and of a training run."""

import math
import time

from jax_power_smc.core.process_group import SINGLE_PROCESS, ProcessGroup
from jax_power_smc.core.progress import ProgressDisplay, clock
from jax_power_smc.engine.stats import EngineStats
from jax_power_smc.evaluation.job import Progress


class EvaluationProgress(ProgressDisplay):
    """Progress of an evaluation: a bar for each run.

    Of several processes, the first one shows its own share, and the others show nothing.
    """

    def __init__(self, processes: ProcessGroup = SINGLE_PROCESS) -> None:
        super().__init__(show=processes.is_first)
        self._share = "" if processes.count == 1 else f" (process 0 of {processes.count})"

    def report(self, progress: Progress) -> None:
        """Shows the progress of a run."""
        text = f"accuracy so far {progress.accuracy:.3f}"
        if progress.stats is not None and progress.stats.steps:
            text += f", {_rows(progress.stats)}"
        if not math.isnan(progress.seconds_left):
            text += f", {clock(progress.seconds_left)} left"
        label, done, total = progress.label, progress.done, progress.total
        line = f"{label}: {done}/{total} items{self._share}, {text}"
        self.update(label, done, total, text, line)


class TrainingProgress(ProgressDisplay):
    """Progress of a training run: step, loss, tokens per second and the time left."""

    def __init__(self, steps: int, first_step: int = 0) -> None:
        super().__init__(seconds_between_lines=0.0)
        self._steps = steps
        self._previous: tuple[float, int, int | None] = (time.monotonic(), first_step, None)

    def report(self, step: int, tokens: int, loss: float, valid_loss: float | None) -> None:
        """Shows the state after ``step``, with ``tokens`` seen so far."""
        now = time.monotonic()
        then, last_step, last_tokens = self._previous
        self._previous = (now, step, tokens)
        elapsed = max(now - then, 1e-9)
        parts = [f"loss {loss:.4f}"]
        if valid_loss is not None:
            parts.append(f"valid {valid_loss:.4f}")
        if last_tokens is not None:
            parts.append(f"{(tokens - last_tokens) / elapsed:,.0f} tokens/s")
        left = (self._steps - step) * elapsed / max(step - last_step, 1)
        parts.append(f"{clock(left)} left")
        text = "  ".join(parts)
        self.update("step", step, self._steps, text, f"step {step}/{self._steps}  {text}")


def _rows(stats: EngineStats) -> str:
    """Rows in use and there, in a step on average, and how many prompts waited for some."""
    used, there = (total / stats.steps for total in (stats.row_steps, stats.table_steps))
    text = f"{used:.1f} of {there:.1f} rows"
    return f"{text}, {stats.stalls / stats.steps:.2f} stalled" if stats.stalls else text
