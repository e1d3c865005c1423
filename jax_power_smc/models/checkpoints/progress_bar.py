"""A bar of the bytes that have been loaded."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

# Bytes from which a bar is worth its lines; less is loaded in a second or two.
LARGE = 256 * 10**6


@contextlib.contextmanager
def loading_bar(total: int, show: bool | None) -> Iterator[Callable[[int], None]]:
    """Yields a function that takes the bytes of each step.

    Args:
      total: bytes of all steps.
      show: whether to draw the bar, on stderr and only if that is a terminal; None draws it if
        total is more than ``LARGE``.
    """
    if not (total > LARGE if show is None else show) or not sys.stderr.isatty():
        yield lambda size: None
        return
    columns = (TextColumn("loading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total)
        yield lambda size: progress.advance(task, size)
