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
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jax_power_smc import engine
from jax_power_smc.admission import (
    check_key,
    check_prompt,
    check_prompt_ids,
    check_sampler,
    check_target,
)
from jax_power_smc.buckets import power_of_two
from jax_power_smc.collect import collect
from jax_power_smc.language_model import LanguageModel
from jax_power_smc.mesh import mesh_of
from jax_power_smc.result import SampleResult
from jax_power_smc.samplers import MetropolisHastings, Sampler, checks
from jax_power_smc.slots import Slots, Work
from jax_power_smc.target import PowerTarget


@dataclasses.dataclass(frozen=True)
class StreamRequest:
    """One prompt of a stream.

    Attributes:
      prompt: token ids.
      target: what to sample from.
      max_new_tokens: T, the cap.
      prompt_id: a non-negative integer for its randomness; default its place in the stream.
      key: a key of ``jax.random.key``, if it shall not be the stream's.
      tag: anything; comes back with the result.
    """

    prompt: Sequence[int]
    target: PowerTarget
    max_new_tokens: int
    prompt_id: int | None = None
    key: jax.Array | None = None
    tag: Any = None


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
        checks.integer("max_prompt_tokens", max_prompt_tokens, at_least=1)
        checks.integer("max_new_tokens", max_new_tokens, at_least=1)
        if slots is not None:
            checks.integer("slots", slots, at_least=1)
        if num_requests is not None:
            checks.integer("num_requests", num_requests, at_least=1)
        self.model, self.params, self.sampler = model, params, sampler
        self.tokenizer = tokenizer
        self.mesh = mesh_of(params) if mesh is None else mesh
        self._sizes, self.plan = engine.plan_slots(
            model,
            params,
            sampler,
            prompt_tokens=max_prompt_tokens,
            new_tokens=max_new_tokens,
            wanted=engine.MAX_ROWS if num_requests is None else power_of_two(num_requests),
            slots=slots,
            memory_limit=memory_limit,
            mesh=self.mesh,
        )
        self._current: Stream | None = None

    def warmup(self) -> float:
        """Compiles what a stream of targets without truncations and stop rules will run.

        Returns:
          Seconds of compiling.
        """
        key = jax.random.key(0)
        return self.make_slots(key).warmup()

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
          An iterator of ``Finished``. A request that cannot be served, or fails, is yielded with
          its ``error`` and stops no other one. If reading ``requests`` raises, what had been read
          is finished and yielded first.

        Raises:
          ValueError: for a key of the wrong kind, or while another stream of this engine runs.
        """
        check_key(key)
        if not isinstance(requests, Iterable) or isinstance(requests, str):
            raise ValueError(f"requests is {requests!r}; it must be an iterable of StreamRequest.")
        if self._current is not None:
            raise ValueError("another stream of this engine runs; finish or close() it first.")
        self._current = Stream(self, requests, key, until)
        return self._current

    def release(self, stream: "Stream") -> None:
        """Called by a stream that has ended."""
        if self._current is stream:
            self._current = None

    def make_slots(self, key: jax.Array) -> Slots:
        """Empty slots for one stream."""
        sampler = self.sampler
        return Slots(
            self.model,
            self.params,
            sampler,
            key,
            self._sizes,
            self.tokenizer,
            mesh=self.mesh,
        )

    def work(self, index: int, request: Any) -> Work:
        """The request as slots take it.

        Raises:
          ValueError: for a request that this engine cannot serve.
        """
        if not isinstance(request, StreamRequest):
            raise ValueError(f"request {index} is {request!r}; it must be a StreamRequest.")
        cap, sizes = request.max_new_tokens, self._sizes
        checks.integer("max_new_tokens", cap, at_least=1)
        if cap > sizes.new_tokens:
            raise ValueError(
                f"max_new_tokens is {cap}; this engine was made for at most {sizes.new_tokens}."
            )
        check_target(request.target)
        request.target.check(self.model.vocab_size, cap)
        check_prompt(index, request.prompt, self.model, cap)
        if len(request.prompt) > sizes.prompt_tokens:
            raise ValueError(
                f"prompt {index} has {len(request.prompt)} tokens; this engine was made for at "
                f"most {sizes.prompt_tokens} (max_prompt_tokens)."
            )
        prompt_id = index if request.prompt_id is None else request.prompt_id
        check_prompt_ids([prompt_id], 1)
        if request.key is not None:
            check_key(request.key)
        return Work(request.prompt, prompt_id, request.target, cap, request.key)


class Stream:
    """Results as they finish; see ``Engine.stream``. Closing it frees the engine.

    Attributes:
      seconds: by phase, so far.
    """

    def __init__(
        self,
        owner: Engine,
        requests: Iterable[StreamRequest | None],
        key: jax.Array,
        until: Callable[[], bool],
    ) -> None:
        self._engine, self._until = owner, until
        self._slots = owner.make_slots(key)
        self._known: dict[int, tuple[Work, Any]] = {}
        self._index: dict[Work, int] = {}
        self._cancelled: set[int] = set()
        self._results = self._run(requests)

    @property
    def seconds(self) -> dict[str, float]:
        """By phase, so far."""
        return dict(self._slots.seconds)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Finished:
        return next(self._results)

    def cancel(self, index: int) -> None:
        """Gives up the request at this place of the stream, wherever it is; others go on.

        It is yielded with an ``error`` that says so, or as it is if it has finished already.
        """
        checks.integer("index", index, at_least=0)
        self._cancelled.add(index)
        if index in self._known:
            self._known[index][0].cancelled = True

    def close(self) -> None:
        """Drops what has not been yielded; the engine may then start another stream."""
        self._results.close()
        # Closing a generator that has not begun runs nothing of it.
        self._engine.release(self)

    def _run(self, requests: Iterable[StreamRequest | None]) -> Generator[Finished]:
        try:
            for work in self._slots.run(self._arrivals(requests), self._until):
                yield self._finished(work)
        finally:
            self._engine.release(self)

    def _arrivals(self, requests: Iterable[StreamRequest | None]) -> Iterator[Work | None]:
        index = 0
        for request in requests:
            if request is None:
                yield None
                continue
            try:
                work = self._engine.work(index, request)
                self._slots.admit(work.target)
            except ValueError as error:
                work = Work([], index, PowerTarget(1.0), 0, error=error)
            work.cancelled = index in self._cancelled
            self._known[index], self._index[work] = (work, request), index
            index += 1
            yield work

    def _finished(self, work: Work) -> Finished:
        index = self._index.pop(work)
        _, request = self._known.pop(index)
        result, error = None, None
        if work.error is not None:
            error = " ".join(str(work.error).split())
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
        lengths = [len(r.prompt) for r in good if isinstance(r.prompt, Sequence)]
        caps = [r.max_new_tokens for r in good if isinstance(r.max_new_tokens, int)]
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
