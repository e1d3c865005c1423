"""Checkpoints from the Hugging Face hub, found in the library's cache or downloaded to it.

The library's own environment variables apply: HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT and
HF_HUB_OFFLINE.
"""

import contextlib
import json
import pathlib
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

from jax_power_smc.core.files import parse_json
from jax_power_smc.core.worker_process import START_SECONDS
from jax_power_smc.models.checkpoints import hub_child
from jax_power_smc.models.checkpoints.fingerprint import METADATA_FILES
from jax_power_smc.models.checkpoints.safetensors_index import INDEX
from jax_power_smc.models.transformer.config import CheckpointError

# What a model is loaded from: no pickles, no code, no copies in subfolders. Exact names, because
# offline a cached model is refused if it lacks a file that these match.
SMALL = (*METADATA_FILES, INDEX)
ALL = (*SMALL, "*.safetensors")
IGNORED = ("*/*", "consolidated*")
# Not read if tokenizer_config.json has an added_tokens_decoder.
_OLD = ("special_tokens_map.json", "added_tokens.json")
# Seconds within which the hub must have answered, with what is downloaded later excepted; and those
# within which a download must have brought this many bytes for each of them.
ANSWER_SECONDS, HUB_SECONDS, SLOWEST = 30.0, 300.0, 1000

_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)


def is_hub_id(name: str) -> bool:
    """Whether a name looks like owner/model."""
    return _ID.fullmatch(name) is not None


def fetch(
    name: str,
    revision: str | None = None,
    patterns: Sequence[str] = ALL,
    seconds: float = HUB_SECONDS,
) -> pathlib.Path:
    """The directory with a model's files, named after their commit; downloads what is not cached.

    If the hub does not answer, only the cache is used.

    Args:
      name: owner/model.
      revision: a branch, tag or commit; None is the main branch.
      patterns: for the names of the files: ``ALL``, or ``SMALL`` for all but the weights, or
        ``SMALL`` with the names of the weight files.
      seconds: how long a download may go without progress.

    Raises:
      CheckpointError: if there is no such model or revision, if it is not in the cache and the hub
        cannot be reached, or if the download fails or comes to a standstill.
    """
    said = _ask(name, revision, patterns, seconds)
    if "no_id" in said:
        raise CheckpointError(f"model {name!r} is neither a directory nor a possible hub id.")
    if "no_revision" in said:
        raise CheckpointError(f"the hub's model {name!r} has no revision {revision!r}.")
    if "unreached" in said:
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return _from_cache(name, revision, patterns)
        except LocalEntryNotFoundError as error:
            version = f" at revision {revision!r}" if revision else ""
            raise CheckpointError(
                f"model {name!r}{version} is neither a directory nor fully in the hub's cache, and "
                f"{said['unreached']}."
            ) from error
    if "error" in said:
        raise CheckpointError(f"the download of model {name!r} failed ({said['error']}).")
    return pathlib.Path(said["directory"])


def _ask(
    name: str, revision: str | None, patterns: Sequence[str], seconds: float
) -> dict[str, Any]:
    """What the process that downloads says last, see ``hub_child``; ends it if it hangs."""
    asked: dict[str, Any] = {"name": name, "revision": revision, "timeout": hub_child.TIMEOUT}
    asked |= {"patterns": list(patterns), "ignored": list(IGNORED)}
    with subprocess.Popen(
        [sys.executable, "-P", hub_child.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        reading = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
        reading.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # then it also says nothing
                process.stdin.write(json.dumps(asked).encode() + b"\n")
            said = _next(lines, START_SECONDS)
            if said and "ready" in said:
                said = _next(lines, ANSWER_SECONDS)
            if said is None:
                return {"unreached": f"the hub has not answered in {ANSWER_SECONDS:g} s"}
            if "cache" in said:
                said = _watched(lines, pathlib.Path(said["cache"]), seconds)
            return said or {"error": f"no progress in {seconds:g} s"}
        finally:
            process.kill()
            reading.join()


def _read(stream: IO[bytes], lines: "queue.SimpleQueue[bytes]") -> None:
    while line := stream.readline():
        lines.put(line)
    lines.put(b"")


def _next(lines: "queue.SimpleQueue[bytes]", seconds: float) -> dict[str, Any] | None:
    """The next line; None if there is none in time."""
    try:
        line = lines.get(timeout=seconds)
    except queue.Empty:
        return None
    return dict(parse_json(line)) if line else {"error": "its process ended"}


def _watched(
    lines: "queue.SimpleQueue[bytes]", cache: pathlib.Path, seconds: float
) -> dict[str, Any] | None:
    """The next line; None if a model's folder in the cache does not grow meanwhile."""
    size = _bytes_in(cache)
    while (said := _next(lines, seconds)) is None:
        before, size = size, _bytes_in(cache)
        if size - before < SLOWEST * seconds:
            return None
    return said


def _bytes_in(directory: pathlib.Path) -> int:
    """The bytes on disk below a directory; a file's own size may be set before they have come."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):  # renamed meanwhile
            total += path.lstat().st_blocks * 512
    return total


def cached(name: str, file: str, revision: str | None = None) -> pathlib.Path | None:
    """Where one file of a model lies in the cache, or None; the hub is not contacted."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file, revision=revision)
    # The cache may also record that there is no such file.
    return pathlib.Path(found) if isinstance(found, str) else None


def _from_cache(name: str, revision: str | None, patterns: Sequence[str]) -> pathlib.Path:
    """The directory in the cache, if it has every file that the model is loaded from."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    def find(patterns: Sequence[str]) -> pathlib.Path:
        found = hub_child.download(
            name, revision, list(patterns), list(IGNORED), local_files_only=True
        )
        return pathlib.Path(found)

    try:
        return find(patterns)
    except LocalEntryNotFoundError as error:
        settings = pathlib.Path(getattr(error, "snapshot_path", ""), "tokenizer_config.json")
        if not settings.is_file() or '"added_tokens_decoder"' not in settings.read_text("utf-8"):
            raise
        return find([pattern for pattern in patterns if pattern not in _OLD])
