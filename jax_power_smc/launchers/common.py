"""What the launchers share: errors as one sentence, and stopping when asked to."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from absl import app, logging

BAD_INPUT = 2


def launch(main: Callable[[Sequence[str]], Any]) -> None:
    """Parses the flags and runs ``main``; what it refuses is one sentence and exit code 2."""
    with plain_errors():
        app.run(main)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turns ``ValueError`` and ``OSError`` into their sentence on stderr and exit code 2.

    With ``--verbosity=1`` the traceback is logged too.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        logging.debug("The traceback of the error below.", exc_info=True)
        print(f"error: {sentence(error)}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None


def sentence(error: Exception) -> str:
    """What went wrong, for a reader who does not know the code."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror}."
    return str(error) or type(error).__name__


class StopRequest:
    """Whether somebody asked the program to stop.

    Attributes:
      name: the signal that asked, such as "SIGTERM", or ``None``.
    """

    name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Inside, SIGTERM and the first Ctrl-C only set the request, to be looked at between steps.

    A second Ctrl-C interrupts at once. Must be entered from the main thread.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        request.name = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
