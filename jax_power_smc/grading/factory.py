"""The grader for a kind of answers."""

import functools
import os

from jax_power_smc.grading.base import Grader
from jax_power_smc.grading.humaneval import CodeWorker
from jax_power_smc.grading.inline import ImmediateGrader
from jax_power_smc.grading.pool import PooledGrader, default_processes
from jax_power_smc.grading.references import check_kind
from jax_power_smc.grading.worker_process import WorkerProcess


def open_grader(
    kind: str,
    *,
    processes: int | None = None,
    seconds: float = 10.0,
    allow_code_execution: bool = False,
) -> Grader:
    """A grader; close it, or use it as a context manager.

    Args:
      kind: as in ``tasks.base.Kind``. Answers of kind "math" and "code" are judged in other
        processes, the others at once.
      processes: how many of them; by default one less than there are processors, at most 8.
      seconds: that judging one response may take.
      allow_code_execution: for "code": the user has agreed that it is run.

    Raises:
      ValueError: for a value that is not allowed.
    """
    check_kind(kind)
    if processes is None:
        processes = default_processes(os.cpu_count())
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise ValueError(f"processes is {processes!r}; it must be an integer, at least 1.")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise ValueError(f"seconds is {seconds!r}; it must be a number.")
    if not 0 < seconds <= 3600:
        raise ValueError(f"seconds is {seconds}; it must be above 0 and at most 3600.")
    if kind == "code":
        if not allow_code_execution:
            raise ValueError(
                "HumanEval runs code that the model wrote; to allow that on this machine, pass "
                "--config.allow_code_execution=True (launch.grade: --allow_code_execution)."
            )
        return PooledGrader(kind, functools.partial(CodeWorker, seconds), processes)
    if kind == "math":
        make = functools.partial(WorkerProcess, "jax_power_smc.grading.math_answer", seconds)
        return PooledGrader(kind, make, processes, merges=True)
    return ImmediateGrader(kind)
