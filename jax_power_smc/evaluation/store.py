"""The workdir of a job: what was asked for, and the records of what is finished.

    config.json         what the records were made with, see ``claim``
    records.jsonl       a line per finished item, flushed and synced before the next one; several
                        processes write records-00001.jsonl and so on
    .lock               held by process 0 of the job that is running
    records/*.jsonl     instead, where the workdir is remote (gs://): objects cannot be appended to,
                        so some lines at a time are written as a whole

A job that was killed leaves at most a torn last line, which the next start removes.
"""

import contextlib
import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from typing import IO, Any

from etils import epath

from jax_power_smc.evaluation.records import Item, Record, item_of

# A remote object is written when it holds so many records, or its first one is so old.
OBJECT_RECORDS = 64
OBJECT_SECONDS = 60.0


def is_remote(workdir: epath.Path) -> bool:
    """Whether files there can only be written whole."""
    return "://" in os.fspath(workdir)


def read_json(path: epath.Path) -> Any:
    """What a JSON file holds, or None if there is none.

    Raises:
      ValueError: if it is damaged.
    """
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} is not JSON ({error}).") from error


def read_records(workdir: epath.Path) -> Iterator[Record]:
    """All records, one at a time; a torn last line, and a second record of an item, are left out.

    Raises:
      ValueError: for a line that is no record, with its place.
    """
    seen: set[Item] = set()
    for path in files(workdir):
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                record = _parse(line, path, number)
                if (item := item_of(record)) not in seen:
                    seen.add(item)
                    yield record


def sizes(workdir: epath.Path) -> dict[str, int]:
    """Bytes of every local file of records that holds any: whether there is something new."""
    if is_remote(workdir):
        return {}
    held = {os.fspath(path): os.path.getsize(path) for path in files(workdir)}
    return {path: size for path, size in held.items() if size}


def write_whole(path: epath.Path, text: str) -> None:
    """Writes a file so that it is there whole or, as far as anyone can see, not at all."""
    write_bytes_whole(path, text.encode())


def write_bytes_whole(path: epath.Path, content: bytes) -> None:
    """The same, for what is no text."""
    if is_remote(path):  # an object appears when it has been written
        path.write_bytes(content)
        return
    draft = f"{os.fspath(path)}.tmp"
    with open(draft, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    _sync_directory(path.parent)


class Appender:
    """Adds records to a local file, each safe on the disk before ``add`` returns.

    Args:
      path: the file; a torn last line of it is removed.

    Raises:
      ValueError: if another process is writing there.
      OSError: if it cannot be written.
    """

    def __init__(self, path: epath.Path) -> None:
        is_new = not path.exists()
        self._file = open(path, "ab")  # noqa: SIM115, closed by close()
        lock(self._file, path)
        if is_new:
            _sync_directory(path.parent)
        self.torn = self._repair(path)

    def _repair(self, path: epath.Path) -> int:
        """Cuts the file after its last whole line; returns how many bytes that were."""
        size = end = os.path.getsize(path)
        with open(path, "rb") as file:
            # A line can be long: look for its beginning block by block, from the end.
            while end > 0:
                start = max(0, end - 2**20)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    end = start + newline + 1
                    break
                end = start
        if end < size:
            self._file.truncate(end)
            os.fsync(self._file.fileno())
        return size - end

    def add(self, record: Record) -> None:
        """Writes a line, and waits until it is on the disk."""
        self._file.write(_line(record).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def flush(self) -> None:
        """Everything is on the disk already."""

    def close(self) -> None:
        """Lets others write to the file."""
        self._file.close()


class ObjectWriter:
    """Writes records as objects of some lines each, to where nothing can be appended.

    What has been added and not yet written is lost if the process is killed; the next start does
    those items again.

    Args:
      directory: of the objects.
      writer: a name for this process among those that write there at the same time.
    """

    torn = 0

    def __init__(self, directory: epath.Path, writer: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        # The time first, so that a listing is in order; no two starts have the same name.
        self._name = f"{time.strftime('%Y%m%dT%H%M%S')}-{writer}-{uuid.uuid4().hex[:8]}"
        self._lines: list[str] = []
        self._written, self._oldest = 0, 0.0

    def add(self, record: Record) -> None:
        """Takes a record, and writes an object now and then."""
        if not self._lines:
            self._oldest = time.monotonic()
        self._lines.append(_line(record))
        old = time.monotonic() - self._oldest >= OBJECT_SECONDS
        if len(self._lines) >= OBJECT_RECORDS or old:
            self.flush()

    def flush(self) -> None:
        """Writes what has been added."""
        if self._lines:
            path = self._directory / f"{self._name}-{self._written:06d}.jsonl"
            path.write_text("".join(self._lines))
            self._lines, self._written = [], self._written + 1

    def close(self) -> None:
        """Writes what has been added."""
        self.flush()


Writer = Appender | ObjectWriter


@contextlib.contextmanager
def open_writer(workdir: epath.Path, process: int = 0, num_processes: int = 1) -> Iterator[Writer]:
    """Where one of several processes puts its records.

    Args:
      workdir: claimed by the job, and locked by its process 0: another number of processes
        writes to other files.
      process, num_processes: which of how many.
    """
    with contextlib.ExitStack() as stack:
        if is_remote(workdir):
            writer: Writer = ObjectWriter(workdir / "records", f"{process:05d}")
        else:
            name = "records.jsonl" if num_processes == 1 else f"records-{process:05d}.jsonl"
            writer = Appender(workdir / name)
        stack.callback(writer.close)
        yield writer


def lock(file: IO[bytes], path: epath.Path) -> None:
    """Keeps others out until the file is closed; closes it, with a ValueError, if one is there."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ValueError(f"another job is writing to {os.fspath(path)}; wait for it.") from error


def files(workdir: epath.Path) -> list[epath.Path]:
    """Those with records, of all processes and starts."""
    if not workdir.exists():
        return []
    objects = workdir / "records"
    found = [*workdir.glob("records*.jsonl")]
    if objects.is_dir():
        found += objects.glob("*.jsonl")
    return sorted(found)


def _parse(line: bytes, path: epath.Path, number: int) -> Record:
    try:
        record = json.loads(line)
        hash(item_of(record))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"line {number} of {os.fspath(path)} is no record ({type(error).__name__}: {error}); "
            "the file is damaged."
        ) from error
    return record


def _line(record: Record) -> str:
    # ASCII: a text may hold a lone surrogate, which UTF-8 has no bytes for.
    return json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n"


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a JSON file for people to read; see ``write_whole``."""
    write_whole(path, _pretty(value))


def _sync_directory(directory: epath.Path) -> None:
    """A new name is safe on the disk only when its directory is."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
