"""The requests of a stream, and its results as they finish."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jax_power_smc.core import checks
from jax_power_smc.core.forks import refuse_forked
from jax_power_smc.core.types import TokenIds
from jax_power_smc.engine.collect import collect
from jax_power_smc.engine.request import ActiveRequest
from jax_power_smc.engine.scheduler import Scheduler
from jax_power_smc.results.result import SampleResult
from jax_power_smc.samplers import Sampler
from jax_power_smc.targets.power import PowerTarget


@dataclasses.dataclass(frozen=True)
class StreamRequest:
    """One prompt of a stream.

    Attributes:
      prompt: token ids, of which a copy is taken, so that a buffer may be used again.
      target: what to sample from.
      max_new_tokens: T, the cap.
      prompt_id: a non-negative integer for its randomness; default its index in the stream.
      key: a key of ``jax.random.key``; default the stream's.
      tag: anything; comes back with the result.
    """

    prompt: TokenIds
    target: PowerTarget
    max_new_tokens: int
    prompt_id: int | None = None
    key: jax.Array | None = None
    tag: Any = None

    def __post_init__(self) -> None:
        # What is not a list of numbers is refused when the request's turn comes.
        if isinstance(self.prompt, list):
            checks.settle(self, prompt=self.prompt.copy())
        elif not isinstance(self.prompt, str) and (ids := checks.as_array(self.prompt)) is not None:
            checks.settle(self, prompt=ids.copy())


@dataclasses.dataclass(frozen=True)
class Finished:
    """What became of one prompt of a stream.

    Attributes:
      index: its index in the stream, from 0.
      request: as it was given.
      result: a ``SampleResult`` of one prompt, or None.
      error: a sentence that says why there is no result, or None.
    """

    index: int
    request: Any
    result: SampleResult | None
    error: str | None


class _Arrivals:
    """The requests that have been read, and which of them are not finished.

    Args:
      admit: index and request -> the request as the scheduler takes it, or an exception.
    """

    def __init__(self, admit: Callable[[int, Any], ActiveRequest]) -> None:
        self._admit = admit
        self._active: dict[int, tuple[ActiveRequest, Any]] = {}
        self._index: dict[ActiveRequest, int] = {}
        self._cancelled: set[int] = set()

    def read(self, requests: Iterable[StreamRequest | None]) -> Iterator[ActiveRequest | None]:
        """Requests as the scheduler takes them; one that cannot be served has an error."""
        index = 0
        for request in requests:
            if request is None:
                yield None
                continue
            try:
                active = self._admit(index, request)
            # Whatever is wrong with one request, the others are served.
            except Exception as error:
                nothing = np.zeros((1,), np.int32)
                active = ActiveRequest(nothing, 0, PowerTarget(1.0), 0, error=error)
            active.cancelled = index in self._cancelled
            self._active[index], self._index[active] = (active, request), index
            index += 1
            yield active

    def cancel(self, index: int) -> None:
        """Cancels a request, also one that has not been read yet."""
        self._cancelled.add(index)
        if index in self._active:
            self._active[index][0].cancelled = True

    def pop(self, active: ActiveRequest) -> tuple[int, Any]:
        """Forgets a finished request; returns its index and the request as it was given."""
        index = self._index.pop(active)
        return index, self._active.pop(index)[1]


class Stream:
    """Results as they finish; see ``Engine.stream``. Closing or dropping it frees the engine."""

    # Nothing that a stream holds may hold the stream: it must die with the caller's reference.
    def __init__(
        self,
        scheduler: Scheduler,
        sampler: Sampler,
        requests: Iterable[StreamRequest | None],
        admit: Callable[[int, Any], ActiveRequest],
        until: Callable[[], bool],
        release: Callable[["Stream"], None],
    ) -> None:
        self._scheduler, self._sampler, self._release = scheduler, sampler, release
        self._arrivals = _Arrivals(admit)
        count = len(requests) if isinstance(requests, list | tuple) else None
        self._finished = scheduler.run(self._arrivals.read(requests), until, count)
        self._is_replaced = False

    @property
    def seconds(self) -> dict[str, float]:
        """By phase, so far."""
        return dict(self._scheduler.seconds)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Finished:
        refuse_forked()
        if self._is_replaced:
            raise ValueError("this stream was ended by a later one of its engine.")
        try:
            active = next(self._finished)
        except BaseException:
            self._release(self)
            raise
        return self._result(active)

    def cancel(self, index: int) -> None:
        """Cancels the request at this index of the stream, whether it waits or is running.

        It is yielded with an ``error`` that says so, or with its result if it is finished already.
        """
        self._arrivals.cancel(checks.integer("index", index, at_least=0))

    def close(self) -> None:
        """Drops what has not been yielded; the engine may then start another stream."""
        self._finished.close()
        self._release(self)

    def end(self) -> None:
        """Closes the stream for another one of its engine; whoever still reads it is told.

        Raises:
          ValueError: if it is at work, in another thread or further up.
        """
        try:
            self.close()
        except ValueError:  # of a generator that is executing
            raise ValueError("another stream of this engine is at work; wait for it.") from None
        self._is_replaced = True

    def _result(self, active: ActiveRequest) -> Finished:
        index, request = self._arrivals.pop(active)
        result, error = None, None
        if active.error is not None:
            error = " ".join(str(active.error).split()) or type(active.error).__name__
        elif active.outcome is None:
            error = "cancelled."
        else:
            result = collect(self._sampler, [active], self.seconds)
        return Finished(index, request, result, error)
