"""Prompts that come one by one: ``Engine`` and ``stream`` yield each result as it finishes.

    engine = psmc.Engine(model, params, sampler=psmc.PowerSMC(16),
                         max_prompt_tokens=512, max_new_tokens=1024)
    print(engine.plan)
    engine.warmup()
    for done in engine.stream(requests, key=jax.random.key(0)):
        print(done.index, done.error or done.result.texts(tokenizer)[0][0])

Every request has a target and a cap of its own; the sampler is the engine's.
"""

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh

from jax_power_smc.core import checks, prng
from jax_power_smc.core.mesh import mesh_of, no_ambient_mesh
from jax_power_smc.engine import sample
from jax_power_smc.engine.buckets import TokenIds, power_of_two
from jax_power_smc.engine.collect import collect
from jax_power_smc.engine.scheduler import ActiveRequest, Scheduler
from jax_power_smc.engine.validation import check_prompt, check_sampler, check_target
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.results.result import SampleResult
from jax_power_smc.samplers import MetropolisHastings, Sampler
from jax_power_smc.targets.power import PowerTarget
from jax_power_smc.targets.regex_dfa import LARGEST_AUTOMATON


@dataclasses.dataclass(frozen=True)
class StreamRequest:
    """One prompt of a stream.

    Attributes:
      prompt: token ids; a list or an array is copied, so that it may be changed or used again.
      target: what to sample from.
      max_new_tokens: T, the cap.
      prompt_id: a non-negative integer for its randomness; default its place in the stream.
      key: a key of ``jax.random.key``, if it shall not be the stream's.
      tag: anything; comes back with the result.
    """

    prompt: TokenIds
    target: PowerTarget
    max_new_tokens: int
    prompt_id: int | None = None
    key: jax.Array | None = None
    tag: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.prompt, list | np.ndarray):
            checks.settle(self, prompt=self.prompt.copy())


@dataclasses.dataclass(frozen=True)
class Finished:
    """What became of one prompt of a stream.

    Attributes:
      index: its place in the stream, from 0.
      request: as it was given.
      result: a ``SampleResult`` of one prompt, or None.
      error: a sentence that says why there is no result, or None.
    """

    index: int
    request: Any
    result: SampleResult | None
    error: str | None


class Engine:
    """A language model with a sampler, and prompt slots that are kept full.

    Args:
      model, params: the language model.
      sampler: ``WithoutReplacement``, ``PowerSMC`` or ``Ancestral``.
      max_prompt_tokens: S, of the longest prompt that will be taken.
      max_new_tokens: the largest cap that will be taken.
      slots: P, prompts decoded together; default as many as ``MAX_ROWS`` particles and the memory
        of the device allow.
      tokenizer: for targets with a stop rule, see ``sample``.
      memory_limit: bytes that may be used on the device; default what it has.
      num_requests: how many will come, if that is known: no more slots are made by default.
      mesh: devices with the axes "data" and "model"; default those on whose mesh the parameters
        lie, or else one device.

    Attributes:
      plan: what was planned, and for how much memory; ``print(engine.plan)`` says it.

    Raises:
      ValueError: for a value outside its range, or if not even one slot fits; before any work.
    """

    @no_ambient_mesh()
    def __init__(
        self,
        model: LanguageModel,
        params: Any,
        *,
        sampler: Sampler,
        max_prompt_tokens: int,
        max_new_tokens: int,
        slots: int | None = None,
        tokenizer: Any = None,
        memory_limit: int | None = None,
        num_requests: int | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        check_sampler(sampler)
        if isinstance(sampler, MetropolisHastings):
            raise ValueError(
                "sampler is MetropolisHastings, whose chains all follow one schedule; use "
                "psmc.sample for it. Allowed are WithoutReplacement, PowerSMC and Ancestral."
            )
        max_prompt_tokens = checks.integer("max_prompt_tokens", max_prompt_tokens, at_least=1)
        max_new_tokens = checks.integer("max_new_tokens", max_new_tokens, at_least=1)
        if slots is not None:
            slots = checks.integer("slots", slots, at_least=1)
        if num_requests is not None:
            num_requests = checks.integer("num_requests", num_requests, at_least=1)
        self.model, self.params, self.sampler = model, params, sampler
        self.tokenizer = tokenizer
        self.mesh = mesh_of(params) if mesh is None else mesh
        self._sizes, self.plan = sample.plan_slots(
            model,
            params,
            sampler,
            prompt_tokens=max_prompt_tokens,
            new_tokens=max_new_tokens,
            wanted=sample.MAX_ROWS if num_requests is None else power_of_two(num_requests),
            slots=slots,
            memory_limit=memory_limit,
            mesh=self.mesh,
            # Any one stop rule; how many at a time is seen when they come.
            stop_states=0 if tokenizer is None else LARGEST_AUTOMATON,
        )
        # Weak: a stream that nobody holds any more, as after a break out of its loop, has ended.
        self._current: weakref.ref[Stream] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the stream that runs, if any; another one may then be started."""
        current = self._running()
        if current is not None:
            current.close()

    def _running(self) -> "Stream | None":
        return None if self._current is None else self._current()

    def warmup(self) -> float:
        """Compiles what a stream of targets without truncations and stop rules will run.

        Returns:
          Seconds of compiling.
        """
        return self.make_slots(prng.seed_key(0)).warmup()

    def stream(
        self,
        requests: Iterable[StreamRequest | None],
        *,
        key: jax.Array,
        until: Callable[[], bool] = lambda: False,
    ) -> "Stream":
        """Samples for requests as they come, and yields each as it finishes.

        Args:
          requests: read as slots become free. It may be a generator without end; a None in it says
            that nothing waits at the moment.
          key: a key of ``jax.random.key``.
          until: asked after every chunk of steps. Once it says True the stream ends; what still
            runs then is lost.

        Returns:
          An iterator of ``Finished``; to drop it, or to close it, ends the stream. A request that
          cannot be served, or fails, is yielded with its ``error`` and stops no other one. If
          reading ``requests`` raises, what had been read is finished and yielded first.

        Raises:
          ValueError: for a key of the wrong kind, or while another stream of this engine runs.
        """
        key = checks.key(key)
        if not isinstance(requests, Iterable) or isinstance(requests, str):
            raise ValueError(f"requests is {requests!r}; it must be an iterable of StreamRequest.")
        if self._running() is not None:
            raise ValueError("another stream of this engine runs; finish or close() it first.")
        stream = Stream(self, requests, key, until)
        self._current = weakref.ref(stream)
        return stream

    def release(self, stream: "Stream") -> None:
        """Called by a stream that has ended."""
        if self._running() is stream:
            self._current = None

    def make_slots(self, key: jax.Array) -> Scheduler:
        """Empty slots for one stream."""
        sampler = self.sampler
        return Scheduler(
            self.model,
            self.params,
            sampler,
            key,
            self._sizes,
            self.tokenizer,
            mesh=self.mesh,
        )

    def work(self, index: int, request: Any) -> ActiveRequest:
        """The request as slots take it.

        Raises:
          ValueError: for a request that this engine cannot serve.
        """
        if not isinstance(request, StreamRequest):
            raise ValueError(f"request {index} is {request!r}; it must be a StreamRequest.")
        sizes = self._sizes
        cap = checks.integer("max_new_tokens", request.max_new_tokens, at_least=1)
        if cap > sizes.new_tokens:
            raise ValueError(
                f"max_new_tokens is {cap}; this engine was made for at most {sizes.new_tokens}."
            )
        check_target(request.target)
        request.target.check(self.model.vocab_size, cap)
        prompt = check_prompt(index, request.prompt, self.model, cap)
        if len(prompt) > sizes.prompt_tokens:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens; this engine was made for at "
                f"most {sizes.prompt_tokens} (max_prompt_tokens)."
            )
        given = index if request.prompt_id is None else request.prompt_id
        (prompt_id,) = checks.prompt_ids([given], 1)
        key = None if request.key is None else checks.key(request.key)
        return ActiveRequest(prompt, prompt_id, request.target, cap, key)


class _Arrivals:
    """The requests of a stream as slots take them, and which of them are under way."""

    def __init__(self, owner: Engine, slots: Scheduler) -> None:
        self._engine, self._slots = owner, slots
        self._known: dict[int, tuple[ActiveRequest, Any]] = {}
        self._index: dict[ActiveRequest, int] = {}
        self._cancelled: set[int] = set()

    def read(self, requests: Iterable[StreamRequest | None]) -> Iterator[ActiveRequest | None]:
        """The work of every request; one that cannot be served has its error from the beginning."""
        index = 0
        for request in requests:
            if request is None:
                yield None
                continue
            try:
                work = self._engine.work(index, request)
                self._slots.check(work.target)
            # Whatever is odd about one request, the others are served.
            except Exception as error:
                work = ActiveRequest(np.zeros((1,), np.int32), 0, PowerTarget(1.0), 0, error=error)
            work.cancelled = index in self._cancelled
            self._known[index], self._index[work] = (work, request), index
            index += 1
            yield work

    def cancel(self, index: int) -> None:
        """Gives up a request, also one that has not been read yet."""
        self._cancelled.add(index)
        if index in self._known:
            self._known[index][0].cancelled = True

    def take(self, work: ActiveRequest) -> tuple[int, Any]:
        """The index and the request of work that is through, which is then forgotten."""
        index = self._index.pop(work)
        return index, self._known.pop(index)[1]


class Stream:
    """Results as they finish; see ``Engine.stream``. Closing or dropping it frees the engine.

    Attributes:
      seconds: by phase, so far.
    """

    # Nothing that a stream holds may hold the stream: it must go with its last reference.
    def __init__(
        self,
        owner: Engine,
        requests: Iterable[StreamRequest | None],
        key: jax.Array,
        until: Callable[[], bool],
    ) -> None:
        self._engine = owner
        self._slots = owner.make_slots(key)
        self._arrivals = _Arrivals(owner, self._slots)
        self._through = self._slots.run(self._arrivals.read(requests), until)

    @property
    def seconds(self) -> dict[str, float]:
        """By phase, so far."""
        return dict(self._slots.seconds)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Finished:
        try:
            work = next(self._through)
        except BaseException:
            self._engine.release(self)
            raise
        return self._finished(work)

    def cancel(self, index: int) -> None:
        """Gives up the request at this place of the stream, wherever it is; others go on.

        It is yielded with an ``error`` that says so, or as it is if it has finished already.
        """
        self._arrivals.cancel(checks.integer("index", index, at_least=0))

    def close(self) -> None:
        """Drops what has not been yielded; the engine may then start another stream."""
        self._through.close()
        self._engine.release(self)

    def _finished(self, work: ActiveRequest) -> Finished:
        index, request = self._arrivals.take(work)
        result, error = None, None
        if work.error is not None:
            error = " ".join(str(work.error).split()) or type(work.error).__name__
        elif work.left is None or work.seen is None:
            error = "cancelled."
        else:
            result = collect(
                self._engine.sampler, work.target, work.cap, [work.left], [work.seen], self.seconds
            )
        return Finished(index, request, result, error)


def stream(
    requests: Iterable[StreamRequest | None],
    model: LanguageModel,
    params: Any,
    *,
    key: jax.Array,
    sampler: Sampler,
    max_prompt_tokens: int | None = None,
    max_new_tokens: int | None = None,
    **options: Any,
) -> Stream:
    """One stream of an ``Engine`` made for it: yields each result as it finishes.

    Args:
      requests: a list of ``StreamRequest``, or anything else that yields them.
      model, params, sampler, options: as for ``Engine``.
      key: a key of ``jax.random.key``.
      max_prompt_tokens, max_new_tokens: as for ``Engine``; by default those of the list.

    Returns:
      An iterator of ``Finished``, see ``Engine.stream``.

    Raises:
      ValueError: as for ``Engine``; or if ``requests`` is no list and a size is missing.
    """
    if max_prompt_tokens is None or max_new_tokens is None:
        if not isinstance(requests, list | tuple):
            raise ValueError(
                "requests is not a list, so its sizes are not known: pass max_prompt_tokens and "
                "max_new_tokens."
            )
        # What cannot be served is refused one by one, later.
        good = [r for r in requests if isinstance(r, StreamRequest)]
        lengths = [checks.length(r.prompt) for r in good]
        caps = [checks.as_integer(r.max_new_tokens) or 0 for r in good]
        max_prompt_tokens = max_prompt_tokens or max([1, *lengths])
        max_new_tokens = max_new_tokens or max([1, *caps])
    made = Engine(
        model,
        params,
        sampler=sampler,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        **options,
    )
    return made.stream(requests, key=key)
