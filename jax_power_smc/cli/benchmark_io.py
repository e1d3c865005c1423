"""What the benchmarks share: their file of figures, tables on the terminal, progress, checks."""

import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, RenderableType

from jax_power_smc.core.files import keep_older

_SECONDS_BETWEEN_LINES = 15
# Columns of tables that go into a file or a pipe.
_FILE_WIDTH = 110


def new_file(root: pathlib.Path, name: str) -> pathlib.Path:
    """A file that does not exist, in a directory that does; an older one gets another name."""
    root.mkdir(parents=True, exist_ok=True)
    keep_older(root / name)
    return root / name


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The figures of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def show(tables: Sequence[RenderableType]) -> None:
    """Prints tables."""
    console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    for table in tables:
        console.print(table)


def listed(name: str, value: Any) -> Sequence[Any]:
    """Raises ValueError unless the value is a tuple or a list."""
    if not isinstance(value, tuple | list):
        raise ValueError(f"{name} is {value!r}; it must be a tuple.")
    return value


class Report:
    """Prints what is being measured, when that changes and now and then."""

    def __init__(self) -> None:
        self._title, self._last = "", 0.0

    def __call__(self, title: str, done: int, total: int) -> None:
        """What is measured, and how much of it is done."""
        now = time.monotonic()
        if title != self._title or now - self._last > _SECONDS_BETWEEN_LINES:
            self._title, self._last = title, now
            print(f"{done}/{total}  {title}", flush=True)
