"""``open_grader``: the grader for a kind of answer."""

import functools
import os

from jax_power_smc.core import checks
from jax_power_smc.core.worker_process import WorkerProcess
from jax_power_smc.grading import isolation
from jax_power_smc.grading.base import LONGEST, Grader
from jax_power_smc.grading.humaneval import CodeWorker
from jax_power_smc.grading.inline import InlineGrader
from jax_power_smc.grading.pool import PooledGrader, default_processes
from jax_power_smc.grading.references import check_kind


def open_grader(
    kind: str,
    *,
    processes: int | None = None,
    seconds: float = 10.0,
    longest: int = LONGEST,
    allow_code_execution: bool = False,
    code_isolation: str = isolation.BUBBLEWRAP,
) -> Grader:
    """Returns a grader; close it, or use it as a context manager.

    Args:
      kind: see ``tasks.base.Kind``. Answers of kind "math" and "code" are graded in other
        processes, all others in the caller's.
      processes: number of worker processes; by default one fewer than there are CPUs, at most 8.
      seconds: time limit for grading one response.
      longest: characters of a response; longer ones are not graded.
      allow_code_execution: for "code": whether the user has agreed to run model-written code.
      code_isolation: for "code": what stands between that code and the machine, see ``isolation``.

    Raises:
      ValueError: if an argument is invalid, or code cannot be isolated that way here.
    """
    check_kind(kind)
    if processes is None:
        processes = default_processes(os.cpu_count())
    processes = checks.integer("processes", processes, at_least=1)
    seconds = checks.number("seconds", seconds, above=0, at_most=3600)
    longest = checks.integer("longest", longest, at_least=1)
    if kind == "code":
        if not allow_code_execution:
            raise ValueError(
                "HumanEval runs code that the model wrote; to allow that on this machine, pass "
                "--config.allow_code_execution=True (launch.grade: --allow_code_execution)."
            )
        isolation.check(code_isolation)
        make_worker = functools.partial(CodeWorker, seconds, code_isolation)
        return PooledGrader(kind, make_worker, processes, longest=longest)
    if kind == "math":
        make = functools.partial(WorkerProcess, "jax_power_smc.grading.math_answer", seconds)
        return PooledGrader(kind, make, processes, merges=True, longest=longest)
    return InlineGrader(kind, longest)
