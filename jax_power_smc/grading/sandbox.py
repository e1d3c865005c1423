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

from jax_power_smc.grading.subprocesses import GradingError, ProcessOwner, timed_out

MAX_MEMORY_BYTES = 4 * 2**30
MAX_FILE_BYTES = 2**20

_PROGRAM = pathlib.Path(__file__).with_name("sandbox_child.py")
# At most this many bytes of a program's output are read.
_MAX_OUTPUT = 4096
_logger = logging.getLogger(__name__)
_warned_of_network = threading.Event()


class Sandbox(ProcessOwner):
    """Runs one program at a time, whose time limit includes the start of its process."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def passes(self, code: str, test: str, entry_point: str) -> bool:
        """Whether the code defines the function and passes the test's ``check``.

        Raises:
          GradingError: if it took too long, or the sandbox did not start.
        """
        # The child sends the token back only after the check has passed, so a program that exits
        # early has not passed.
        token = secrets.token_hex(16)
        limits = {"seconds": self._seconds, "memory": MAX_MEMORY_BYTES, "file": MAX_FILE_BYTES}
        job = {"token": token, "parent": os.getpid(), **limits}
        job |= {"code": code, "test": test, "entry_point": entry_point}
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
            lines = self._run(json.dumps(job).encode(), directory)
        if not lines:  # the child sends its first line before it runs the code
            raise GradingError("its sandbox did not start")
        if lines[:1] == ["network"] and not _warned_of_network.is_set():
            _warned_of_network.set()
            _logger.warning("Model-written programs can reach the network on this system.")
        return lines[1:2] == [token]

    def _run(self, job: bytes, directory: str) -> list[str]:
        command = [sys.executable, "-I", os.fspath(_PROGRAM)]
        process = self._start_process(command, env={}, cwd=directory)
        try:
            with process.deadline(self._seconds) as expired:
                try:
                    process.stdin.write(job)
                    process.stdin.close()
                except BrokenPipeError:
                    return []
                process.wait()
            os.set_blocking(process.stdout.fileno(), False)
            sent = process.stdout.read(_MAX_OUTPUT) or b""
            if expired.is_set():
                raise timed_out(self._seconds)
            return sent.decode("ascii", "replace").splitlines()
        finally:
            self._discard(process)
