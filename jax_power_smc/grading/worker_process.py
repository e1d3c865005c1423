"""A worker as its owner sees it: ask, and if it does not answer in time, kill it."""

import json
import os
import pathlib
import sys
import threading
from typing import Any

from jax_power_smc.grading.subprocesses import KillableProcess, NotJudged, died, too_long

# Importing takes half a second, but many may start at once on a slow disk.
START_SECONDS = 120.0
DEFAULT_MEMORY = 4 * 2**30

_WORKER = pathlib.Path(__file__).with_name("worker.py")


class WorkerProcess:
    """Runs functions of a module in another process, which is replaced when it must be killed.

    It is started when it is first needed. The thread that asks must be the same every time: the
    process ends with it.

    Args:
      module: whose functions these are; it is imported without ``jax_power_smc.__init__``.
      seconds: that each may take.
      memory: bytes of address space that it may use.
    """

    def __init__(self, module: str, seconds: float, memory: int = DEFAULT_MEMORY) -> None:
        self._module = module
        self._seconds = seconds
        self._memory = memory
        self._process: KillableProcess | None = None
        self._closed = False
        self._lock = threading.Lock()

    def ask(self, do: str, **arguments: Any) -> Any:
        """What the function returns; arguments and result are of kinds that JSON can hold.

        Raises:
          NotJudged: it took too long, or its process died.
          OSError: no process can be started.
        """
        if self._process and self._process.popen.poll() is not None:  # died since the last answer
            self._discard(self._process)
        process = self._process or self._start()
        code = 0
        with process.deadline(self._seconds) as deadline:
            answer = _exchange(process, {"do": do, **arguments})
            expired = deadline.is_set()
        if expired or answer is None or "failed" in answer:
            code = self._discard(process)
        if answer is None:
            raise too_long(self._seconds) if expired else NotJudged(f"its process {died(code)}")
        if "failed" in answer:
            raise NotJudged(answer["failed"])
        return answer["is"]

    def close(self) -> None:
        """Kills the process; from any thread, and what is being asked then fails."""
        with self._lock:
            self._closed = True
            if self._process:
                self._process.kill()

    def end(self) -> None:
        """What the asking thread does at the end: it also waits for the process."""
        self.close()
        if self._process:
            self._discard(self._process)

    def _start(self) -> KillableProcess:
        command = [sys.executable, "-P", os.fspath(_WORKER), self._module]
        command += [str(self._seconds), str(self._memory), str(os.getpid())]
        with self._lock:
            if self._closed:
                raise NotJudged("the grader was closed")
            process = self._process = KillableProcess(command)
        with process.deadline(START_SECONDS):
            answer = _receive(process)
        if answer is None or "failed" in answer:
            code = self._discard(process)
            if self._closed:
                raise NotJudged("the grader was closed")
            why = answer["failed"] if answer else f"it {died(code)}"
            raise OSError(f"a process for grading cannot start: {why}")
        return process

    def _discard(self, process: KillableProcess) -> int:
        with self._lock:
            self._process = None
            return process.end()


def _exchange(process: KillableProcess, job: dict[str, Any]) -> dict[str, Any] | None:
    stdin = process.popen.stdin
    assert stdin is not None
    try:
        stdin.write(json.dumps(job).encode() + b"\n")
        stdin.flush()
    except OSError:
        return None
    return _receive(process)


def _receive(process: KillableProcess) -> dict[str, Any] | None:
    """The next answer, or None if the process ended before it gave one."""
    stdout = process.popen.stdout
    assert stdout is not None
    line = stdout.readline()
    return json.loads(line) if line.endswith(b"\n") else None
