"""Files of results: whole or not at all, no other file overwritten, errors that name the file.

JSON is strict JSON.
"""

import contextlib
import fcntl
import json
import math
import os
import pathlib
import secrets
from collections.abc import Iterator, Mapping
from typing import IO, Any

from etils import epath

# Levels of brackets in the JSON that jobs write and read.
MOST_LEVELS = 32


def json_line(value: Any) -> str:
    """The value as a line of strict JSON, with null for numbers that are not finite."""
    return json.dumps(_without_infinities(value), allow_nan=False) + "\n"


def is_remote(path: epath.Path | pathlib.Path) -> bool:
    """Whether files there, such as those of gs://, can only be written whole."""
    return "://" in os.fspath(path)


def write_json(path: epath.Path | pathlib.Path, value: Any) -> None:
    """Writes strict JSON, indented, in one atomic step.

    Raises:
      ValueError: for a number that is not finite.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_bytes_whole(path, text.encode())


def write_bytes_whole(path: epath.Path | pathlib.Path, content: bytes) -> None:
    """Writes a file in one atomic step, and waits until it is on the disk."""
    if is_remote(path):  # an object appears when it has been written
        path.write_bytes(content)
        return
    with replacing(path) as file, naming(path):
        file.write(content)


@contextlib.contextmanager
def replacing(path: epath.Path | pathlib.Path, keep: bool = False) -> Iterator[IO[bytes]]:
    """A new file, which takes the place of ``path`` at the end; nothing changes on an error.

    Until then its name is one that no other file has. ``keep`` renames what is at ``path`` before;
    see ``keep_older``.
    """
    with naming(path):
        partial, file = _new_file(path)
    try:
        yield file
        with naming(path):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            if keep:
                keep_older(pathlib.Path(path))
            os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):  # what is not written yet cannot be, perhaps
            file.close()
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    sync_directory(path.parent)


def _new_file(path: epath.Path | pathlib.Path) -> tuple[str, IO[bytes]]:
    """A hidden file in the same directory, and its name."""
    while True:
        partial = os.fspath(path.parent / f".{path.name[:60]}.{secrets.token_hex(4)}.tmp")
        with contextlib.suppress(FileExistsError):
            return partial, open(partial, "xb")


@contextlib.contextmanager
def naming(path: epath.Path | pathlib.Path | str) -> Iterator[None]:
    """Inside, errors of the operating system name this file; some of them would name none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = os.fspath(path)
        raise


def sync_directory(directory: epath.Path | pathlib.Path) -> None:
    """Waits until new names in a local directory are on the disk."""
    with naming(directory):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def lock(file: IO[bytes], path: epath.Path | pathlib.Path) -> None:
    """Locks the file until it is closed; if it cannot be, closes it.

    Raises:
      ValueError: if it is locked.
      OSError: if there are no locks, as on some network file systems.
    """
    try:
        with naming(path):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError):
            where = os.fspath(path)
            raise ValueError(f"another job is writing to {where}; wait for it.") from error
        raise


@contextlib.contextmanager
def writing_alone(path: pathlib.Path) -> Iterator[None]:
    """Inside, no other job may write this file; a lock file beside it, removed at the end, says so.

    Raises:
      ValueError: if another job is writing it.
      OSError: if the lock file cannot be made, or there are no locks.
    """
    held = path.with_name(f".{path.name[:200]}.lock")
    while True:
        file = open(held, "ab")  # noqa: SIM115, closed below
        lock(file, path)
        # Whoever held the lock before may have removed the file after it was opened here.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(held)):
                break
        file.close()
    with file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                held.unlink()


def parse_json(text: str | bytes, *, strict: bool = True) -> Any:
    """The value in JSON, which may come from anybody.

    Args:
      text: to be read.
      strict: whether to refuse NaN and infinities, which are not JSON, but which Python reads and
        some libraries write.

    Raises:
      ValueError: if it is not JSON, or nested without end.
    """
    options: Any = {"parse_constant": _refuse, "parse_float": _finite} if strict else {}
    try:
        value = json.loads(text, **options)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
    check_levels(value)
    return value


def check_levels(value: Any) -> None:
    """Raises ValueError if lists and objects are nested more than ``MOST_LEVELS`` deep."""
    level: list[Any] = [[value]]
    for _ in range(MOST_LEVELS + 1):
        level = [
            part.values() if type(part) is dict else part
            for parts in level
            for part in parts
            if isinstance(part, dict | list)
        ]
        if not level:
            return
    raise ValueError("its brackets are nested too deeply")


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"the number {number[:80]} is too large")
    return value


def keep_older(path: pathlib.Path) -> None:
    """Renames an existing file, say records.jsonl, to the first free of records.1.jsonl, ..."""
    if not path.exists():
        return
    number = 1
    while (older := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    path.rename(older)


def _without_infinities(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _without_infinities(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(part) for part in value]
    return value
