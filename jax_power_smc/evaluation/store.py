"""The workdir of a job: its records, and the files that describe them.

    config.json         what the records were made with, see ``claim``
    records.jsonl       a line per finished item, flushed and synced before the next one; several
                        processes write records-00000.jsonl and so on
    .lock               locked by process 0 of the running job
    records/*.jsonl     in place of records.jsonl if the workdir is remote (gs://): objects cannot
                        be appended to, so each is written whole, with several lines

A job that was killed leaves at most a torn last line, which the next start removes.
"""

import contextlib
import json
import mmap
import os
import time
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from jax_power_smc.core.files import is_remote as is_remote
from jax_power_smc.core.files import lock as lock
from jax_power_smc.core.files import sync_directory
from jax_power_smc.core.files import write_bytes_whole as write_bytes_whole
from jax_power_smc.core.files import write_json as write_json
from jax_power_smc.evaluation.records import Item, Record, item_of

# A remote object is written when it has this many records, or when its first one is this old.
OBJECT_RECORDS = 64
OBJECT_SECONDS = 60.0


def read_json(path: epath.Path) -> Any:
    """The content of a JSON file; None if there is no file.

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
    """All records, one at a time, without a torn last line and without repeated items.

    Raises:
      ValueError: for a line that is not a record; names the file and the line.
    """
    seen: set[Item] = set()
    for path in record_files(workdir):
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                record = _parse(line, path, number)
                if (item := item_of(record)) not in seen:
                    seen.add(item)
                    yield record


def sizes(workdir: epath.Path) -> dict[str, int]:
    """The bytes of every local file of records that is not empty: they tell if any was added."""
    if is_remote(workdir):
        return {}
    paths = map(os.fspath, record_files(workdir))
    return {path: size for path in paths if (size := os.path.getsize(path))}


class Appender:
    """Appends records to a local file; each is on the disk before ``add`` returns.

    If the file's last line is torn, it is removed, and ``torn`` is the number of its bytes.

    Raises:
      ValueError: if another process is writing to it.
      OSError: if it cannot be written.
    """

    def __init__(self, path: epath.Path) -> None:
        is_new = not path.exists()
        self._file = open(path, "ab")  # noqa: SIM115, closed by close()
        lock(self._file, path)
        if is_new:
            sync_directory(path.parent)
        self.torn = self._repair(path)

    def _repair(self, path: epath.Path) -> int:
        """Cuts the file off after its last complete line; returns how many bytes were removed."""
        size, end = os.path.getsize(path), 0
        if size:
            with (
                open(path, "rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                end = content.rfind(b"\n") + 1
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
        """Does nothing: everything is on the disk already."""

    def close(self) -> None:
        """Releases the file, so that others may write to it."""
        self._file.close()


class ObjectWriter:
    """Writes records to a remote directory as objects of several lines each.

    If the process is killed, records not yet written are lost; the next start redoes their items.
    ``writer`` is a name that tells this process from others that write at the same time.
    """

    torn = 0

    def __init__(self, directory: epath.Path, writer: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        # The time comes first, so that listings are in order; no two starts share a name.
        self._name = f"{time.strftime('%Y%m%dT%H%M%S')}-{writer}-{uuid.uuid4().hex[:8]}"
        self._lines: list[str] = []
        self._written, self._oldest = 0, 0.0

    def add(self, record: Record) -> None:
        """Takes a record; writes an object once there is enough."""
        if not self._lines:
            self._oldest = time.monotonic()
        self._lines.append(_line(record))
        old = time.monotonic() - self._oldest >= OBJECT_SECONDS
        if len(self._lines) >= OBJECT_RECORDS or old:
            self.flush()

    def flush(self) -> None:
        """Writes the records not yet written."""
        if self._lines:
            path = self._directory / f"{self._name}-{self._written:06d}.jsonl"
            path.write_text("".join(self._lines))
            self._lines, self._written = [], self._written + 1

    def close(self) -> None:
        """As ``flush``."""
        self.flush()


Writer = Appender | ObjectWriter


@contextlib.contextmanager
def open_writer(workdir: epath.Path, process: int = 0, num_processes: int = 1) -> Iterator[Writer]:
    """The writer of one process, closed at the end.

    The workdir must be claimed by the job, and locked by its process 0: jobs with other numbers of
    processes write to other files, whose locks would not keep them out.
    """
    if is_remote(workdir):
        writer: Writer = ObjectWriter(workdir / "records", f"{process:05d}")
    else:
        name = "records.jsonl" if num_processes == 1 else f"records-{process:05d}.jsonl"
        writer = Appender(workdir / name)
    with contextlib.closing(writer):
        yield writer


def record_files(workdir: epath.Path) -> list[epath.Path]:
    """The files of records, of all processes and starts."""
    if not workdir.exists():
        return []
    return sorted([*workdir.glob("records*.jsonl"), *(workdir / "records").glob("*.jsonl")])


def _parse(line: bytes, path: epath.Path, number: int) -> Record:
    try:
        record = json.loads(line)
        hash(item_of(record))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"line {number} of {os.fspath(path)} is not a record ({type(error).__name__}: "
            f"{error}); the file is damaged."
        ) from error
    return record


def _line(record: Record) -> str:
    # ASCII: a text may hold a lone surrogate, which UTF-8 cannot encode.
    return json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n"
