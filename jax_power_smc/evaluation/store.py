"""The workdir of a job: its records, and the files that describe them.

    config.json         what the records were made with, see ``claim``
    records.jsonl       a line per finished item, flushed and synced before the next one; several
                        processes write records-00000.jsonl and so on; see ``appender``
    set-aside-*.jsonl   lines that are no records of the job, moved there on request
    .lock               locked by process 0 of the running job
    records/*.jsonl     in place of records.jsonl if the workdir is remote (gs://): objects cannot
                        be appended to, so each is written whole, with several lines

A job that was killed leaves at most a torn last line, which the next start removes.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from typing import Any

from etils import epath

from jax_power_smc.core.files import is_remote as is_remote
from jax_power_smc.core.files import lock as lock
from jax_power_smc.core.files import naming, parse_json, replacing
from jax_power_smc.core.files import write_bytes_whole as write_bytes_whole
from jax_power_smc.core.files import write_json as write_json
from jax_power_smc.evaluation import record_schema
from jax_power_smc.evaluation.appender import Appender, line_of
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
        return parse_json(path.read_text())
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


def set_aside(workdir: epath.Path, belongs: Callable[[Record], bool]) -> tuple[int, epath.Path]:
    """Moves lines that are not records, or do not belong, to a new file; says how many, and where.

    Inside ``claim.locked``, so that nothing writes there.
    """
    target = workdir / f"set-aside-{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:8]}.jsonl"
    wrong = {path: _wrong_lines(path, belongs) for path in record_files(workdir)}
    moved = [line for lines in wrong.values() for line in lines.values()]
    if moved:
        write_bytes_whole(target, b"".join(moved))
    for path, lines in wrong.items():
        if lines:
            _without(path, lines.keys())
    return len(moved), target


def _wrong_lines(path: epath.Path, belongs: Callable[[Record], bool]) -> dict[int, bytes]:
    found = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                is_wrong = line.endswith(b"\n") and not belongs(_parse(line, path, number))
            except ValueError:
                is_wrong = True
            if is_wrong:
                found[number] = line
    return found


def _without(path: epath.Path, numbers: Collection[int]) -> None:
    with path.open("rb") as file:
        kept = (line for number, line in enumerate(file, start=1) if number not in numbers)
        if is_remote(path):
            path.write_bytes(b"".join(kept))
        else:
            with replacing(path) as new, naming(path):
                new.writelines(kept)


def sizes(workdir: epath.Path) -> dict[str, int]:
    """The bytes of every local file of records that is not empty: they tell if any was added."""
    if is_remote(workdir):
        return {}
    paths = map(os.fspath, record_files(workdir))
    return {path: size for path in paths if (size := os.path.getsize(path))}


class ObjectWriter:
    """Writes records to a remote workdir as objects of several lines each.

    If the process is killed, records not yet written are lost; the next start redoes their items.
    ``writer`` is a name that tells this process from others that write at the same time.
    """

    torn, rescued = 0, ()

    def __init__(self, workdir: epath.Path, writer: str) -> None:
        self.workdir, directory = workdir, workdir / "records"
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
        self._lines.append(line_of(record))
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
        writer: Writer = ObjectWriter(workdir, f"{process:05d}")
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
        record = parse_json(line)
        if isinstance(record, dict) and "digest" not in record:
            hash(item_of(record))  # of an earlier version, which ``conditions`` refuses
        else:
            record_schema.check(record)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"line {number} of {os.fspath(path)} is not a record as a job writes it ({error}); "
            "restore the line, or resume the job with --redo_damaged, which keeps such lines "
            "aside and does their items again."
        ) from error
    return record
