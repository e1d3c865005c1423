"""The process that a grader may kill: it reads a job per line and answers each with a line.

python -P worker.py MODULE SECONDS MEMORY PARENT

Each job is a JSON object: "do" names a function of the module, the other fields are its arguments.
The answer is {"is": RESULT}, or {"failed": WHY}. The first line, {"is": "ready"}, is sent when
everything is imported.

It ends with its parent: on Linux the kernel sees to that, and anywhere when there is nothing more
to read, or else when a job has taken longer than its parent would have waited.
"""

import contextlib
import ctypes
import importlib
import json
import math
import os
import pathlib
import signal
import sys
import types
from typing import Any

# Time that the parent has to kill this process before it ends on its own.
GRACE_SECONDS = 5
_PR_SET_PDEATHSIG = 1


def main(module: str, seconds: float, memory: int, parent: int) -> None:
    """Answers jobs until there are no more."""
    end_with(parent)
    limit_memory(memory)
    # Libraries may print; what they print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    try:
        functions = importlib.import_module(module)
    except Exception as error:
        answer(failed=f"{type(error).__name__}: {error}")
        return
    answer(**{"is": "ready"})
    for line in sys.stdin.buffer:
        job = json.loads(line)
        # No handler, so it also ends a process that is deep in a library.
        signal.alarm(math.ceil(seconds) + GRACE_SECONDS)
        try:
            result = getattr(functions, job.pop("do"))(**job)
        except MemoryError:
            answer(failed="needed too much memory")
            return  # who knows what is left
        except Exception as error:
            answer(failed=f"{type(error).__name__} while it was judged")
        else:
            answer(**{"is": result})
        signal.alarm(0)


def end_with(parent: int) -> None:
    """Has the kernel kill this process when the thread that started it ends, where it can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def limit_memory(size: int) -> None:
    """Limits the address space to so many bytes, where the system does that."""
    try:
        import resource
    except ImportError:
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = size if hard == resource.RLIM_INFINITY else min(size, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS has the name, but not the limit
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def import_without_jax() -> None:
    """Lets modules of the package be imported without what the package imports: JAX is slow."""
    package = types.ModuleType("jax_power_smc")
    package.__path__ = [os.fspath(pathlib.Path(__file__).resolve().parents[1])]
    sys.modules["jax_power_smc"] = package


if __name__ == "__main__":
    import_without_jax()
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
