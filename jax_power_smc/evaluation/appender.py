"""Appends records to a local file, of which others may make anything while a job runs.

The job holds the directory and the file open, so it finds both again when the directory is renamed.
If the file itself is removed, replaced or cut, nothing more is appended to what is there now: what
the job still has is written to a new file beside it, and the job goes on in that one.
"""

import collections
import contextlib
import itertools
import json
import mmap
import os
import sys
from collections.abc import Iterator

from absl import logging
from etils import epath

from jax_power_smc.core.files import lock, naming, sync_directory
from jax_power_smc.evaluation.records import Record

# Bytes of the latest lines that are kept in memory, for when they cannot be read from the file.
MOST_KEPT = 2**26
_CHUNK = 2**24


def line_of(record: Record) -> str:
    """A record as its line."""
    # ASCII: a text may hold a lone surrogate, which UTF-8 cannot encode.
    return json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n"


class Directory:
    """A directory that is held open, so that it is found again when it has been renamed."""

    def __init__(self, path: epath.Path) -> None:
        self._path, self._descriptor = path, os.open(path, os.O_RDONLY)

    @property
    def path(self) -> epath.Path:
        """Where it is now; made anew, empty, if it has been removed."""
        status = os.fstat(self._descriptor)
        for candidate in self._candidates():
            with contextlib.suppress(OSError):
                if os.path.samestat(status, os.stat(candidate)):
                    self._path = epath.Path(candidate)
                    return self._path
        self._path.mkdir(parents=True, exist_ok=True)
        self.close()
        self._descriptor = os.open(self._path, os.O_RDONLY)
        return self._path

    def close(self) -> None:
        """Lets it go."""
        os.close(self._descriptor)

    def _candidates(self) -> Iterator[str]:
        yield os.fspath(self._path)
        with contextlib.suppress(OSError):
            if sys.platform == "linux":
                yield os.readlink(f"/proc/self/fd/{self._descriptor}")


class Appender:
    """Appends records to a local file; each is on the disk before ``add`` returns.

    If the file's last line is torn, it is removed, and ``torn`` is the number of its bytes.
    ``rescued`` are the files that took the place of the first one, see above.

    Raises:
      ValueError: if another process is writing to it.
      OSError: if it cannot be written; names the file.
    """

    def __init__(self, path: epath.Path) -> None:
        self.rescued: tuple[epath.Path, ...] = ()
        self._latest: collections.deque[bytes] = collections.deque()
        self._kept = 0
        self._has_failed = False
        self._stem = path.stem
        self._directory = Directory(path.parent)
        try:
            self._open(path)
            self.torn = self._repair()
        except BaseException:
            self._directory.close()
            raise

    @property
    def workdir(self) -> epath.Path:
        """The directory of the file, when it was last looked at."""
        return self.path.parent

    def add(self, record: Record) -> None:
        """Writes a line, and waits until it is on the disk."""
        line = line_of(record).encode()
        self._check()
        self._write(line)
        self._latest.append(line)
        self._kept += len(line)
        while self._kept > MOST_KEPT and len(self._latest) > 1:
            self._kept -= len(self._latest.popleft())

    def flush(self) -> None:
        """Does nothing: everything is on the disk already."""

    def close(self) -> None:
        """Checks once more that the file is there, and releases it for others to write to."""
        try:
            if not self._has_failed:
                self._check()
        finally:
            self._file.close()
            self._directory.close()

    def _open(self, path: epath.Path) -> None:
        is_new = not path.exists()
        # Without a buffer: what could not be written is not written later, half of it.
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115, closed by close()
        lock(self._file, path)
        self.path = path
        if is_new:
            sync_directory(path.parent)
        self._size = os.fstat(self._file.fileno()).st_size

    def _repair(self) -> int:
        """Cuts the file off after its last complete line; returns how many bytes were removed."""
        torn, end = self._size, 0
        if self._size:
            with (
                open(self.path, "rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                end = content.rfind(b"\n") + 1
        if end < self._size:
            with naming(self.path):
                self._file.truncate(end)
                os.fsync(self._file.fileno())
        self._size = end
        return torn - end

    def _write(self, content: bytes) -> None:
        self._has_failed = True
        with naming(self.path):
            rest = memoryview(content)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        self._has_failed = False
        self._size += len(content)

    def _check(self) -> None:
        """Continues in another file if this one is not as it was left."""
        with naming(self.path):
            path = self._directory.path / self.path.name
            own = os.fstat(self._file.fileno())
            is_whole = own.st_size == self._size
            with contextlib.suppress(FileNotFoundError):
                if is_whole and os.path.samestat(own, os.stat(path)):
                    self.path = path
                    return
        self._rescue(path, is_whole)

    def _rescue(self, path: epath.Path, is_whole: bool) -> None:
        """Writes to a new file all that the old one had; if it was changed, the latest lines."""
        before, size = self._file, self._size
        for number in itertools.count(1):
            other = path.with_name(f"{self._stem}-rescued-{number}.jsonl")
            if not other.exists():
                break
        self._open(other)
        if is_whole:
            for start in range(0, size, _CHUNK):
                self._write(os.pread(before.fileno(), min(_CHUNK, size - start), start))
        else:
            self._write(b"".join(self._latest))
        before.close()
        self.rescued += (other,)
        what = "removed or replaced" if is_whole else "changed"
        logging.warning("%s was %s while the job runs; it goes on in %s.", path, what, other)
