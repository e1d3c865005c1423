"""Runs a program that a model wrote, in a process that can do little harm.

The process has limits on time, memory and files, an empty environment, an empty temporary
directory, no way to start other processes (see ``sandbox_child``), and, where Linux lets an
ordinary user do so, no network. This contains accidents. It does not withstand an attacker, so
nothing runs unless the user has asked for it.
"""

import json
import logging
import os
import pathlib
import secrets
import sys
import tempfile
import threading

from jax_power_smc.grading.subprocesses import GradingError, KillableProcess, timed_out

MAX_MEMORY_BYTES = 4 * 2**30
MAX_FILE_BYTES = 2**20

_PROGRAM = pathlib.Path(__file__).with_name("sandbox_child.py")
# At most this many bytes of a program's output are read.
_MAX_OUTPUT = 4096
_logger = logging.getLogger(__name__)
_warned_of_network = threading.Event()


class Sandbox:
    """Runs one program at a time.

    Args:
      seconds: time limit of one program, including the start of its process.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: KillableProcess | None = None
        self._closed = False
        self._lock = threading.Lock()

    def passes(self, code: str, test: str, entry_point: str) -> bool:
        """Whether the code defines the function and passes the test's ``check``.

        Raises:
          GradingError: if it took too long, or the sandbox did not start.
        """
        # The child sends the token back only after the check has passed, so a program that exits
        # early has not passed.
        token = secrets.token_hex(16)
        job = {
            "token": token,
            "code": code,
            "test": test,
            "entry_point": entry_point,
            "seconds": self._seconds,
            "memory": MAX_MEMORY_BYTES,
            "file": MAX_FILE_BYTES,
            "parent": os.getpid(),
        }
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
            lines = self._run(json.dumps(job).encode(), directory)
        if not lines:  # the child sends its first line before it runs the code
            raise GradingError("its sandbox did not start")
        if lines[:1] == ["network"] and not _warned_of_network.is_set():
            _warned_of_network.set()
            _logger.warning("Model-written programs can reach the network on this system.")
        return lines[1:2] == [token]

    def kill(self) -> None:
        """Kills the running program and refuses further ones; can be called from any thread."""
        with self._lock:
            self._closed = True
            if self._process:
                self._process.kill()

    def _run(self, job: bytes, directory: str) -> list[str]:
        with self._lock:
            if self._closed:
                raise GradingError("the grader was closed")
            command = [sys.executable, "-I", os.fspath(_PROGRAM)]
            process = self._process = KillableProcess(command, env={}, cwd=directory)
        stdin, stdout = process.popen.stdin, process.popen.stdout
        assert stdin is not None and stdout is not None
        try:
            with process.deadline(self._seconds) as expired:
                try:
                    stdin.write(job)
                    stdin.close()
                except BrokenPipeError:
                    return []
                process.wait()
            os.set_blocking(stdout.fileno(), False)
            sent = stdout.read(_MAX_OUTPUT) or b""
            if expired.is_set():
                raise timed_out(self._seconds)
            return sent.decode("ascii", "replace").splitlines()
        finally:
            with self._lock:
                self._process = None
                process.close()
