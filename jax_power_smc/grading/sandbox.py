"""Runs a program that a model wrote, in a process with little room for harm.

The process has limits on time, memory and files, an empty environment, an empty directory that is
removed, no way to start other processes (see ``sandbox_child``), and, where Linux allows it to an
ordinary user, no network. This stops accidents. It is no wall against an attacker, so it is never
done unless the user has asked for it.
"""

import json
import logging
import os
import pathlib
import secrets
import sys
import tempfile
import threading

from jax_power_smc.grading.subprocesses import KillableProcess, NotJudged, too_long

MEMORY = 4 * 2**30
LARGEST_FILE = 2**20

_PROGRAM = pathlib.Path(__file__).with_name("sandbox_child.py")
# All that is read of what a program can send.
_ENOUGH = 4096
_logger = logging.getLogger(__name__)
_said_network = threading.Event()


class Sandbox:
    """Runs one program at a time.

    Args:
      seconds: that each may take, start included.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: KillableProcess | None = None
        self._closed = False
        self._lock = threading.Lock()

    def passes(self, code: str, test: str, entry_point: str) -> bool:
        """Whether the code defines the function, and the test's ``check`` has nothing against it.

        Raises:
          NotJudged: it took too long, or the sandbox did not start.
        """
        # Known only to the process that runs it, which sends it back when all is well: a program
        # that ends early ends without it.
        token = secrets.token_hex(16)
        job = {
            "token": token,
            "code": code,
            "test": test,
            "entry_point": entry_point,
            "seconds": self._seconds,
            "memory": MEMORY,
            "file": LARGEST_FILE,
            "parent": os.getpid(),
        }
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
            lines = self._run(json.dumps(job).encode(), directory)
        if not lines:  # the child sends one before it runs the code
            raise NotJudged("its sandbox did not start")
        if lines[:1] == ["network"] and not _said_network.is_set():
            _said_network.set()
            _logger.warning("This system does not let programs be cut off from the network.")
        return lines[1:2] == [token]

    def close(self) -> None:
        """Kills the program that runs; from any thread."""
        with self._lock:
            self._closed = True
            if self._process:
                self._process.kill()

    def _run(self, job: bytes, directory: str) -> list[str]:
        with self._lock:
            if self._closed:
                raise NotJudged("the grader was closed")
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
            sent = stdout.read(_ENOUGH) or b""
            if expired.is_set():
                raise too_long(self._seconds)
            return sent.decode("ascii", "replace").splitlines()
        finally:
            with self._lock:
                self._process = None
                process.end()
