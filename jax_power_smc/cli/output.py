"""stdout and stderr of the launchers: nobody has to read them, and they show what they print.

A terminal that is closed, a pipe whose reader has ended and a descriptor that was closed from the
start all take the output and lose it. A full disk does not: that is an error like any other.

Text of models, data sets and files may come up in any line, in errors and logs of other libraries
too, so control characters are replaced here once more, whoever prints them.
"""

import contextlib
import errno
import io
import os
import sys
from typing import Any

from absl import logging

from jax_power_smc.core.sanitize import VisibleStream

# What writing to a dead pipe, a lost terminal or a closed descriptor ends in.
_NOBODY_READS = (errno.EPIPE, errno.EIO, errno.EBADF)


class _Lasting(io.FileIO):
    """A descriptor that leads to nowhere once nobody reads it."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                raise
            _lead_nowhere(self.fileno())
            return len(memoryview(content))


def prepare_output() -> None:
    """Makes stdout and stderr of this process such; streams that are no descriptors stay."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # closed when Python started
            if _is_open(descriptor):  # some other file has the number by now
                setattr(sys, name, open(os.devnull, "w", errors="replace"))  # noqa: SIM115
                continue
            _lead_nowhere(descriptor)
        elif _writes_to(stream, descriptor):
            with contextlib.suppress(OSError):
                stream.flush()
        else:
            continue
        made = io.TextIOWrapper(
            io.BufferedWriter(_Lasting(descriptor, "w", closefd=False)),
            encoding=getattr(stream, "encoding", "utf-8"),
            errors="backslashreplace",
            line_buffering=name == "stderr" or os.isatty(descriptor),
        )
        setattr(sys, name, VisibleStream(made))
        if name == "stderr":
            logging.get_absl_handler().python_handler.setStream(sys.stderr)  # it has that of before
            os.environ.setdefault("PYTHON_COLORS", "0")  # or tracebacks show the codes of colors


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _writes_to(stream: object, descriptor: int) -> bool:
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == descriptor
    except (OSError, ValueError):
        return False


def _lead_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
