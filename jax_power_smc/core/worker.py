"""The process that its owner can kill: it reads one job per line and answers each with one line.

    python -P worker.py MODULE SECONDS MEMORY PARENT

A job is a JSON object: "function" names a function of the module, the other fields are its
arguments. The answer is {"result": RESULT} or {"error": WHY}. The first line,
{"result": "ready"}, is sent once everything is imported; JAX is not, because nothing in
the modules that run in workers imports it.

The process ends with its parent: on Linux the kernel kills it; elsewhere it ends when its stdin
closes, or when a job has taken longer than the parent would have waited.
"""

import contextlib
import importlib
import json
import math
import os
import pathlib
import signal
import sys
from typing import Any

# How long the parent has to kill this process before it ends on its own.
GRACE_SECONDS = 5
_PR_SET_PDEATHSIG = 1


def main(module: str, seconds: float, memory: int, parent: int) -> None:
    """Answers jobs until stdin closes."""
    die_with(parent)
    limit_memory(memory)
    # Libraries may print, and what they print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    try:
        functions = importlib.import_module(module)
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}")
        return
    answer(result="ready")
    for line in sys.stdin.buffer:
        job = json.loads(line)
        # Without a handler, the alarm also ends a process that is deep inside a C library.
        signal.alarm(math.ceil(seconds) + GRACE_SECONDS)
        try:
            result = getattr(functions, job.pop("function"))(**job)
        except MemoryError:
            answer(error="needed too much memory")
            return  # the interpreter's state can no longer be trusted
        except Exception as error:
            answer(error=f"failed with {type(error).__name__}")
        else:
            answer(result=result)
        signal.alarm(0)


def die_with(parent: int) -> None:
    """Has the kernel kill this process when the thread that started it ends (Linux only)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before that
        os._exit(1)


def limit_memory(memory: int) -> None:
    """Limits the address space, where the system supports that."""
    try:
        import resource
    except ImportError:
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    least = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS
        resource.setrlimit(resource.RLIMIT_AS, (least, least))


if __name__ == "__main__":
    # The parent may have found the package in its working directory, which -P leaves out.
    root = os.fspath(pathlib.Path(__file__).resolve().parents[2])
    if root not in sys.path:
        sys.path.insert(0, root)
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
