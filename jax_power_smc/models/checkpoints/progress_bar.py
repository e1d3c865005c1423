"""A progress bar for loading a checkpoint, in bytes."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

# Bytes above which a bar is shown by default; less is loaded in a second or two.
LARGE = 256 * 10**6


@contextlib.contextmanager
def loading_bar(total: int, show: bool | None) -> Iterator[Callable[[int], None]]:
    """Yields a function that advances the bar by a number of bytes.

    Args:
      total: bytes in all.
      show: whether to show the bar, on stderr and only if that is a terminal; None shows it if
        total is more than ``LARGE``.
    """
    if not (total > LARGE if show is None else show) or not sys.stderr.isatty():
        yield lambda size: None
        return
    columns = (TextColumn("loading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total)
        yield lambda size: progress.advance(task, size)
