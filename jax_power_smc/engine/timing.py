"""Where the seconds of a run go: each phase without the compiling during it.

JAX compiles not only the engine's programs but also every small array operation when it is first
used. The first run in a process pays for those, so they must not count as decoding: the costs of
samplers are compared.
"""

import contextlib
import functools
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
        """Discards the time until now."""
        self._began, self._compiled = time.perf_counter(), compile_seconds()

    def resume(self, phase: str, until: float) -> None:
        """Counts the time until now, which was the caller's, for a phase that ran meanwhile.

        Args:
          phase: what was running.
          until: when it ended, by ``time.perf_counter``. What the caller compiled does not count.
        """
        self.seconds[phase] += max(min(time.perf_counter(), until) - self._began, 0.0)
        self.start()

    def book(self, phase: str) -> None:
        """Counts the time since the last call for a phase, except what was compiled."""
        now, compiled = time.perf_counter(), compile_seconds()
        compiling = compiled - self._compiled
        self.seconds["compile"] += compiling
        self.seconds[phase] += max(now - self._began - compiling, 0.0)
        self._began, self._compiled = now, compiled


class ReadyTimes:
    """When arrays became ready while the host did something else."""

    def __init__(self) -> None:
        self._pool = futures.ThreadPoolExecutor(1)
        self._last: futures.Future[float] | None = None

    def watch(self, x: jax.Array) -> None:
        """Watches the next array; they become ready in this order."""
        self._last = self._pool.submit(_ready_time, x)

    def last(self) -> float:
        """When the last one became ready, by ``time.perf_counter``; infinity if it is not yet."""
        if self._last is None:
            return -math.inf
        return self._last.result() if self._last.done() else math.inf


def _ready_time(x: jax.Array) -> float:
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # raised again where it is read
        jax.block_until_ready(x)
    return time.perf_counter()


def compile_seconds() -> float:
    """Seconds that this thread has compiled, since the first call in the process."""
    _listen()
    return _thread.seconds


@contextlib.contextmanager
def preparing() -> Iterator[None]:
    """Counts everything inside as compiling if anything is compiled there.

    For code that only hands out work: the first time takes longer than what JAX itself reports as
    compiling.
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
    """Adds the span from ``began`` until now, which replaces those inside it: tracing can nest."""
    spans, now = _thread.spans, time.perf_counter()
    while spans and spans[-1][0] >= began:
        begin, end = spans.pop()
        _thread.seconds -= end - begin
    if spans:
        began = max(began, spans[-1][1])
    spans.append((began, now))
    _thread.seconds += now - began


@functools.cache
def _listen() -> None:
    """Has JAX report what it compiles, from the first use on.

    There is one listener for the process, and it stays: it costs next to nothing, and it serves all
    engines and threads, of which none knows whether it is the last.
    """
    jax.monitoring.register_event_duration_secs_listener(_on_event)


def _on_event(event: str, duration_secs: float, **kwargs: Any) -> None:
    del kwargs
    if event.startswith(_COMPILING):
        _add(time.perf_counter() - duration_secs)
