"""Judges a program that a model wrote, by two processes: one for its code, one for the tests.

With code_isolation "bubblewrap" (see ``isolation``) each is cut off from the machine and from the
other. With "none" they are ordinary processes of the user with limits on time, memory and files:
that contains accidents, and nothing else. See ``sandbox_child`` for what runs in them.
"""

import contextlib
import json
import os
import pathlib
import tempfile
from typing import Any

from jax_power_smc.core.subprocesses import (
    KillableProcess,
    ProcessOwner,
    WorkerError,
    timed_out,
)
from jax_power_smc.grading import isolation
from jax_power_smc.grading.sandbox_child import ABSENT, FAILED, NOT_PLAIN, PASSED, STARTED

MAX_MEMORY_BYTES = 4 * 2**30
MAX_FILE_BYTES = 2**20

_PROGRAM = pathlib.Path(__file__).with_name("sandbox_child.py")
_PROGRAM_THERE = "/sandbox_child.py"
# At most this many bytes of the judge's output are read.
_MAX_OUTPUT = 4096
_UNGRADED = {
    ABSENT: "its sandbox did not start",
    NOT_PLAIN: "its tests pass something to the function that is not plain data",
}


class Sandbox:
    """Judges one program at a time; the time limit includes the start of its processes."""

    def __init__(self, seconds: float, code_isolation: str = isolation.BUBBLEWRAP) -> None:
        self._seconds, self._isolated = seconds, code_isolation == isolation.BUBBLEWRAP
        self._processes = {role: ProcessOwner() for role in ("candidate", "judge")}

    def kill(self) -> None:
        """Kills what is running and refuses further programs; for any thread."""
        for process in self._processes.values():
            process.kill()

    def passes(self, code: str, helpers: str, test: str, entry_point: str) -> bool:
        """Whether the code defines the function and passes the test's ``check``.

        Args:
          code: the whole program.
          helpers: what the test may use beside the function.
          test: defines ``check``, which takes the function.
          entry_point: the function's name.

        Raises:
          WorkerError: if it took too long, or could not be judged.
        """
        job = {"code": code, "helpers": helpers, "test": test, "entry_point": entry_point}
        verdict = self._run(json.dumps(job).encode())
        if verdict in _UNGRADED:
            raise WorkerError(_UNGRADED[verdict])
        return verdict == PASSED

    def _run(self, job: bytes) -> str:
        with contextlib.ExitStack() as stack:
            calls, answers = os.pipe(), os.pipe()
            with contextlib.ExitStack() as pipes:  # the processes have copies of their own
                for fd in (*calls, *answers):
                    pipes.callback(os.close, fd)
                self._start("candidate", stack, calls[0], answers[1])
                judge = self._start("judge", stack, answers[0], calls[1])
            with judge.deadline(self._seconds) as expired:
                with contextlib.suppress(BrokenPipeError):
                    judge.stdin.write(job)
                    judge.stdin.close()
                judge.wait()
            os.set_blocking(judge.stdout.fileno(), False)
            said = judge.stdout.read(_MAX_OUTPUT) or b""
        if expired.is_set():
            raise timed_out(self._seconds)
        if not said.startswith(STARTED):
            return ABSENT
        return said.removeprefix(STARTED).decode().strip() or FAILED

    def _start(self, role: str, stack: contextlib.ExitStack, *pipes: int) -> KillableProcess:
        """Starts one of the two; the stack ends it, and removes what it left."""
        owner = self._processes[role]
        options: dict[str, Any] = dict(zip(("reading", "writing"), pipes, strict=True))
        options |= {"role": role, "parent": 0 if self._isolated else os.getpid()}
        options |= {"seconds": self._seconds, "memory": MAX_MEMORY_BYTES, "file": MAX_FILE_BYTES}
        options |= {"libraries": isolation.libraries()}
        program = _PROGRAM_THERE if self._isolated else os.fspath(_PROGRAM)
        command = [*isolation.interpreter(), program, json.dumps(options)]
        # OpenBLAS, and with it NumPy, would start threads.
        environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        if self._isolated:
            seccomp = isolation.filter_descriptor()
            try:
                files = {program: os.fspath(_PROGRAM)}
                command = isolation.command(command, files, seccomp, environment)
                process = owner.start_process(command, env={}, pass_fds=(*pipes, seccomp))
            finally:
                os.close(seccomp)
        else:
            directory = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            cwd = stack.enter_context(directory)
            process = owner.start_process(command, env=environment, pass_fds=pipes, cwd=cwd)
        stack.callback(owner.discard, process)
        return process
