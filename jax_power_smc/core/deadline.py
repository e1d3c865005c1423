"""A time limit for a call into a library that has none of its own."""

import threading
from collections.abc import Callable
from typing import TypeVar

# The longest limit that the operating system's clocks take is higher.
MOST_SECONDS = 10**6
_T = TypeVar("_T")


class LateError(ValueError):
    """A call took longer than it may."""


def within(seconds: float, who: str, call: Callable[[], _T]) -> _T:
    """What the call returns or raises, if it does within a time.

    It runs in a thread. If it is late, that goes on until the process ends, because a library's
    code cannot be interrupted; it must let other threads run.

    Raises:
      LateError: if it is late; begins with ``who``.
    """
    outcome: list[tuple[_T | None, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:  # raised again below
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise LateError(f"{who} took longer than {seconds:g} s.")
    value, error = outcome[0]
    if error is not None:
        raise error
    return value  # type: ignore[return-value]
