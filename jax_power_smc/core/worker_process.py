"""A worker process as its owner sees it: call a function, and kill the process if that is late."""

import json
import os
import pathlib
import sys
from typing import Any

from jax_power_smc.core.subprocesses import (
    KillableProcess,
    ProcessOwner,
    WorkerError,
    describe_exit,
    timed_out,
)

# Importing takes half a second, but many workers may start at once on a slow disk.
START_SECONDS = 120.0
DEFAULT_MEMORY = 4 * 2**30

_WORKER = pathlib.Path(__file__).with_name("worker.py")


class WorkerProcess(ProcessOwner):
    """Runs functions of a module in another process, which is replaced after it was killed.

    The process is started when it is first needed. All calls must come from one thread, because
    the process ends with the thread that started it. The module must not import JAX, which starts
    slowly; ``seconds`` is the time limit of one call, ``memory`` the process's address space.
    """

    def __init__(self, module: str, seconds: float, memory: int = DEFAULT_MEMORY) -> None:
        super().__init__()
        self._module, self._seconds, self._memory = module, seconds, memory

    def call(self, function: str, **arguments: Any) -> Any:
        """Returns what the function returns; arguments and result must be JSON values.

        Raises:
          WorkerError: if the call took too long or failed, or its process died.
          OSError: if no process can be started.
        """
        if self._process and self._process.popen.poll() is not None:  # died since the last call
            self.discard(self._process)
        process = self._process or self._start()
        code = 0
        with process.deadline(self._seconds) as deadline:
            answer = _exchange(process, {"function": function, **arguments})
            expired = deadline.is_set()
        if expired or answer is None or "error" in answer:
            code = self.discard(process)
        if answer is None:
            if expired:
                raise timed_out(self._seconds)
            raise WorkerError(f"its process {describe_exit(code)}")
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """Kills the process and reaps it; for the calling thread, at the end."""
        self.kill()
        if self._process:
            self.discard(self._process)

    def _start(self) -> KillableProcess:
        command = [sys.executable, "-P", os.fspath(_WORKER), self._module]
        command += [str(self._seconds), str(self._memory), str(os.getpid())]
        process = self.start_process(command)
        with process.deadline(START_SECONDS):
            answer = _receive(process)
        if answer is None or "error" in answer:
            code = self.discard(process)
            if self._closed:
                raise WorkerError("was closed")
            why = answer["error"] if answer else f"it {describe_exit(code)}"
            raise OSError(f"a worker process cannot start: {why}")
        return process


def _exchange(process: KillableProcess, job: dict[str, Any]) -> dict[str, Any] | None:
    try:
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
    except OSError:
        return None
    return _receive(process)


def _receive(process: KillableProcess) -> dict[str, Any] | None:
    """The next answer, or None if the process ended before it gave one."""
    line = process.stdout.readline()
    return json.loads(line) if line.endswith(b"\n") else None
