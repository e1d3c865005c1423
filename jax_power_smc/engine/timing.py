"""Where the seconds of a run go: each phase without the compiling that falls into it.

JAX compiles not only the engine's programs: every small array operation is compiled where it is met
first. Whoever decodes first in a process pays for those, so they must not count as decoding: the
costs of samplers are compared.
"""

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import jax

from jax_power_smc.results.result import PHASES

_COMPILING = "/jax/core/compile/"


class PhaseTimer:
    """Books time by phase.

    Attributes:
      seconds: so far, by phase ("compile", "prefill", "decode").
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.start()

    def start(self) -> None:
        """The time until now belongs to no phase."""
        self._began, self._compiled = time.perf_counter(), compile_seconds()

    def resume(self, phase: str, until: float) -> None:
        """The time until now is the caller's, but the phase went on beside it.

        Args:
          phase: what went on.
          until: when it ended, by ``time.perf_counter``; what the caller compiled is no part of it.
        """
        self.seconds[phase] += max(min(time.perf_counter(), until) - self._began, 0.0)
        self.start()

    def book(self, phase: str) -> None:
        """The time since the last call belongs to a phase, but for what was compiled."""
        now, compiled = time.perf_counter(), compile_seconds()
        compiling = compiled - self._compiled
        self.seconds["compile"] += compiling
        self.seconds[phase] += max(now - self._began - compiling, 0.0)
        self._began, self._compiled = now, compiled


class ReadyTimes:
    """When arrays became ready, while the host did something else."""

    def __init__(self) -> None:
        self._pool = futures.ThreadPoolExecutor(1)
        self._last: futures.Future[float] | None = None

    def watch(self, x: jax.Array) -> None:
        """The next array; they become ready in this order."""
        self._last = self._pool.submit(_ready_time, x)

    def last(self) -> float:
        """When the last one became ready, by ``time.perf_counter``; infinity if it is not yet."""
        if self._last is None:
            return -math.inf
        return self._last.result() if self._last.done() else math.inf


def _ready_time(x: jax.Array) -> float:
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # whoever looks at it finds out
        jax.block_until_ready(x)
    return time.perf_counter()


def compile_seconds() -> float:
    """Seconds that this thread has compiled, since this module was imported."""
    return _thread.seconds


@contextlib.contextmanager
def preparing() -> Iterator[None]:
    """What happens inside counts as compiling, all of it, if anything is compiled there.

    For what only hands out work: its first time is longer than what JAX itself calls compiling.
    """
    began, compiled = time.perf_counter(), compile_seconds()
    try:
        yield
    finally:
        if compile_seconds() > compiled:
            _add(began)


class _Thread(threading.local):
    """Disjoint spans of time in which a thread compiled, in order, and their sum."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []
        self.seconds = 0.0


_thread = _Thread()


def _add(began: float) -> None:
    """A span from ``began`` until now, with those that it encloses, as tracing does tracing."""
    spans, now = _thread.spans, time.perf_counter()
    while spans and spans[-1][0] >= began:
        begin, end = spans.pop()
        _thread.seconds -= end - begin
    if spans:
        began = max(began, spans[-1][1])
    spans.append((began, now))
    _thread.seconds += now - began


def _listen(event: str, duration_secs: float, **kwargs: Any) -> None:
    del kwargs
    if event.startswith(_COMPILING):
        _add(time.perf_counter() - duration_secs)


jax.monitoring.register_event_duration_secs_listener(_listen)
