"""The engine of another checkout of the package, in a process of its own."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax

from jax_power_smc.benchmarks.decode_worker import Run, Work

_WORKER = pathlib.Path(__file__).with_name("decode_worker.py")
# JAX's settings that the process shares with this one; a variable of the same name sets each.
_SHARED = (
    *("jax_compilation_cache_dir", "jax_enable_compilation_cache"),
    *(f"jax_persistent_cache_min_{x}" for x in ("compile_time_secs", "entry_size_bytes")),
)


class Baseline:
    """Decodes with the package of a checkout; see ``started``."""

    def __init__(self, process: subprocess.Popen[str], directory: str) -> None:
        self._process, self._directory = process, directory

    def decode(self, model: dict[str, Any], work: Work) -> Run:
        """What ``decode_worker.decode`` returns there.

        Raises:
          OSError: if the process ended instead; its own messages are on stderr.
        """
        job = {"model": model, "work": dataclasses.asdict(work)}
        assert self._process.stdin is not None and self._process.stdout is not None
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise OSError(
                f"the engine in {self._directory} ended with exit code {self._process.wait()}; "
                "its messages are above."
            )
        return Run(**json.loads(answer))


@contextlib.contextmanager
def started(directory: str) -> Iterator[Baseline]:
    """A process that runs under the package in this directory, until the context is left."""
    settings = {name: getattr(jax.config, name) for name in _SHARED}
    variables = {n.upper(): str(value) for n, value in settings.items() if value is not None}
    with subprocess.Popen(
        [sys.executable, "-P", os.fspath(_WORKER)],
        env={**os.environ, **variables, "PYTHONPATH": os.path.abspath(directory)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Baseline(process, directory)
        finally:
            process.kill()


def check(directory: str) -> None:
    """Raises ValueError if the directory is not a checkout of the package."""
    if not pathlib.Path(directory, "jax_power_smc", "__init__.py").is_file():
        raise ValueError(
            f"config.baseline is {directory!r}; it must be a checkout of this repository, of "
            "commit afd20fd for the figures of docs/benchmarks.md."
        )
