"""Processes that can be killed at any time, together with everything they started."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from typing import Any


class WorkerError(Exception):
    """What a process was asked for could not be done; the message says why."""


class KillableProcess:
    """A process in a group of its own, with pipes to its stdin and from its stdout.

    It starts with SIGTERM blocked: a cluster manager sends that signal to every process of a job,
    and it must not look as if what is being graded had ended its process. The options are
    those of ``subprocess.Popen``.
    """

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        # A child inherits the signal mask of the thread that starts it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        try:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                **options,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert self.popen.stdin is not None and self.popen.stdout is not None
        self.stdin, self.stdout = self.popen.stdin, self.popen.stdout

    def kill(self) -> None:
        """Kills the group. Can be called from any thread, any number of times."""
        if self.popen.returncode is None:  # once reaped, the id may belong to another group
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Waits until the process ends, and kills whatever it left running."""
        if hasattr(os, "waitid"):
            # WNOWAIT does not reap the process, so the group keeps its id.
            os.waitid(os.P_PID, self.popen.pid, os.WEXITED | os.WNOWAIT)
            self.kill()
            return
        self.popen.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)

    def close(self) -> int:
        """Kills the group, closes the pipes and returns the exit code."""
        self.kill()
        for pipe in (self.stdin, self.stdout):
            with contextlib.suppress(OSError):  # unwritten data can no longer be flushed
                pipe.close()
        return self.popen.wait()

    @contextlib.contextmanager
    def deadline(self, seconds: float) -> Iterator[threading.Event]:
        """Kills the group if the body takes longer, after setting the event that is yielded."""
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            yield expired
        finally:
            timer.cancel()
            # The process may be reaped and its id reused once this returns.
            timer.join()


class ProcessOwner:
    """What has at most one process at a time, and can be closed from any thread."""

    def __init__(self) -> None:
        self._process: KillableProcess | None = None
        self._closed = False
        self._lock = threading.Lock()

    def kill(self) -> None:
        """Kills the process and refuses further ones; whatever it was doing fails."""
        with self._lock:
            self._closed = True
            if self._process:
                self._process.kill()

    def start_process(self, command: Sequence[str], **options: Any) -> KillableProcess:
        """Raises ``WorkerError`` once this is closed."""
        with self._lock:
            if self._closed:
                raise WorkerError("was closed")
            self._process = KillableProcess(command, **options)
            return self._process

    def discard(self, process: KillableProcess) -> int:
        """Kills the process, if it still runs, and returns its exit code."""
        with self._lock:
            self._process = None
            return process.close()


def timed_out(seconds: float) -> WorkerError:
    """The error for what hit the time limit."""
    return WorkerError(f"took longer than {seconds:g} s")


def describe_exit(code: int) -> str:
    """How a process ended, from its exit code."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"
