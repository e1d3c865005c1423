"""Processes that may be killed at any time, with all that they have started."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from typing import Any


class NotJudged(Exception):  # noqa: N818
    """Says why a response could not be judged."""


class KillableProcess:
    """A process in a group of its own, with pipes to its stdin and from its stdout.

    SIGTERM does not reach it: a cluster manager sends that to all processes of a job alike, and
    what is being judged must not look as if the response had ended it.

    Args:
      command: what to run.
      options: of ``subprocess.Popen``.
    """

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        # What a thread blocks its children block from their first moment on.
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

    def kill(self) -> None:
        """Kills the group; may be called from any thread, and again."""
        if self.popen.returncode is None:  # else the number may by now be another group's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Waits until it ends, and kills what it has left running."""
        if hasattr(os, "waitid"):
            # It is not reaped yet, so that the group still has its number.
            os.waitid(os.P_PID, self.popen.pid, os.WEXITED | os.WNOWAIT)
            self.kill()
            return
        self.popen.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)

    def end(self) -> int:
        """Kills it, closes the pipes and returns the exit code."""
        self.kill()
        for pipe in (self.popen.stdin, self.popen.stdout):
            with contextlib.suppress(OSError):  # what was not yet written cannot be
                if pipe:
                    pipe.close()
        return self.popen.wait()

    @contextlib.contextmanager
    def deadline(self, seconds: float) -> Iterator[threading.Event]:
        """Kills it when the body takes longer; the event is set before that happens."""
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
            # Nothing may be killed after this: the number may then be another process's.
            timer.join()


def too_long(seconds: float) -> NotJudged:
    """What a response gets that hit the deadline."""
    return NotJudged(f"took longer than {seconds:g} s")


def died(code: int) -> str:
    """How a process ended, from its exit code."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"
