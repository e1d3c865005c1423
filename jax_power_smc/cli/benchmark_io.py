"""What the benchmarks share: the file of figures, printed progress, checks of lists."""

import pathlib
import time
from collections.abc import Sequence
from typing import Any

from jax_power_smc.core.files import keep_older

_SECONDS_BETWEEN_LINES = 15


def new_file(root: pathlib.Path, name: str) -> pathlib.Path:
    """The path of a new file; creates its directory, and renames an older file of that name."""
    root.mkdir(parents=True, exist_ok=True)
    keep_older(root / name)
    return root / name


def listed(name: str, value: Any) -> Sequence[Any]:
    """Raises ValueError unless the value is a tuple or a list."""
    if not isinstance(value, tuple | list):
        raise ValueError(f"{name} is {value!r}; it must be a tuple.")
    return value


class Progress:
    """Prints what is being measured, when that changes and at intervals."""

    def __init__(self) -> None:
        self._title, self._last = "", 0.0

    def __call__(self, title: str, done: int, total: int) -> None:
        now = time.monotonic()
        if title != self._title or now - self._last > _SECONDS_BETWEEN_LINES:
            self._title, self._last = title, now
            print(f"{done}/{total}  {title}", flush=True)
