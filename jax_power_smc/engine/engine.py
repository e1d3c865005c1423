"""Prompts that come one by one: ``Engine`` and ``stream`` yield each result as it finishes.

    engine = psmc.Engine(model, params, sampler=psmc.PowerSMC(16),
                         max_prompt_tokens=512, max_new_tokens=1024)
    print(engine.plan)
    engine.warmup()
    for done in engine.stream(requests, key=jax.random.key(0)):
        print(done.index, done.error or done.result.texts(tokenizer)[0][0])

Every request has its own target and cap; the sampler is the engine's.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Self

import jax
from jax.sharding import Mesh

from jax_power_smc.core import checks, prng
from jax_power_smc.core.forks import refuse_forked
from jax_power_smc.core.mesh import mesh_of, no_ambient_mesh
from jax_power_smc.core.types import Params
from jax_power_smc.engine import slot_plan
from jax_power_smc.engine.buckets import power_of_two
from jax_power_smc.engine.mh_chains import ChainScheduler
from jax_power_smc.engine.request import ActiveRequest
from jax_power_smc.engine.scheduler import Scheduler
from jax_power_smc.engine.stats import EngineStats
from jax_power_smc.engine.stream import Stream, StreamRequest
from jax_power_smc.engine.validation import check_prompt, check_sampler, check_target
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.samplers import Sampler
from jax_power_smc.targets.regex_dfa import LARGEST_AUTOMATON


class BaseEngine:
    """What ``Engine`` and ``sample`` share: slots planned for a sampler, and what decodes in them.

    The arguments are those of ``Engine``, already checked, and any sampler will do.
    """

    @no_ambient_mesh()
    def __init__(
        self,
        model: LanguageModel,
        params: Params,
        *,
        sampler: Sampler,
        max_prompt_tokens: int,
        max_new_tokens: int,
        slots: int | None,
        tokenizer: Any,
        memory_limit: int | None,
        num_requests: int | None,
        stop_states: int,
        mesh: Mesh | None,
        rows: int | None = None,
        capacity: int | None = None,
        prompt_bucket: int | None = None,
    ) -> None:
        refuse_forked()
        self.model, self.params, self.sampler = model, params, sampler
        self.tokenizer = tokenizer
        self.mesh = mesh_of(params) if mesh is None else mesh
        self._sizes, self.plan = slot_plan.plan_slots(
            model,
            params,
            sampler,
            prompt_tokens=max_prompt_tokens,
            new_tokens=max_new_tokens,
            wanted=slot_plan.MAX_PARTICLES if num_requests is None else power_of_two(num_requests),
            slots=slots,
            memory_limit=memory_limit,
            mesh=self.mesh,
            stop_states=stop_states,
            rows=rows,
            capacity=capacity,
            prompt_bucket=prompt_bucket,
        )

    def scheduler(self, key: jax.Array) -> Scheduler | ChainScheduler:
        """Empty slots for one run."""
        refuse_forked()
        make: Any = ChainScheduler if self.sampler.runs_as_chains else Scheduler
        return make(
            self.model,
            self.params,
            self.sampler,
            key,
            self._sizes,
            self.tokenizer,
            mesh=self.mesh,
        )


class Engine(BaseEngine):
    """A language model with a sampler, and prompt slots that are kept full.

    What is compiled for a model is kept as long as the model is, and shared with equal models.

    Args:
      model, params: the language model.
      sampler: ``WithoutReplacement``, ``PowerSMC`` or ``Ancestral``.
      max_prompt_tokens: S, the length of the longest prompt that is accepted.
      max_new_tokens: the largest cap that is accepted.
      slots: P, prompts decoded together; default as many as ``MAX_PARTICLES`` particles and the
        memory of the device allow.
      rows: R, rows of the model's cache on each device, one for each distinct prefix; default as
        many as the prompts may need and the memory allows. If prompts need more, the later ones
        wait; one that needs more by itself fails.
      capacity: positions of a row; default what the longest prompt and the cap need.
      prompt_bucket: prompts are padded at least to this length; default 64. With slots, rows,
        capacity and this given, no shape depends on the load.
      tokenizer: for targets with a stop rule, see ``sample``.
      memory_limit: bytes that may be used on the device; default what it has.
      num_requests: how many will come, if that is known; then there are no more slots by default.
      mesh: devices with the axes "data" and "model"; default those on whose mesh the parameters
        are, or else one device.

    Attributes:
      plan: how many slots and rows there are, and how much memory they take;
        ``print(engine.plan)``.
      stats: what the rows were used for in the current or last stream (``EngineStats``).

    Raises:
      ValueError: for a value outside its range, or if not even one slot fits; before any work.
      RuntimeError: here and in its methods, in a process that was forked while JAX was in use.
    """

    def __init__(
        self,
        model: LanguageModel,
        params: Params,
        *,
        sampler: Sampler,
        max_prompt_tokens: int,
        max_new_tokens: int,
        slots: int | None = None,
        tokenizer: Any = None,
        memory_limit: int | None = None,
        num_requests: int | None = None,
        mesh: Mesh | None = None,
        rows: int | None = None,
        capacity: int | None = None,
        prompt_bucket: int | None = None,
    ) -> None:
        check_sampler(sampler)
        if sampler.runs_as_chains:
            raise ValueError(
                f"sampler is {type(sampler).__name__}, whose chains all follow one schedule; use "
                "psmc.sample for it. Allowed are WithoutReplacement, PowerSMC and Ancestral."
            )

        def count(name: str, value: Any) -> int | None:
            return None if value is None else checks.integer(name, value, at_least=1)

        super().__init__(
            model,
            params,
            sampler=sampler,
            max_prompt_tokens=checks.integer("max_prompt_tokens", max_prompt_tokens, at_least=1),
            max_new_tokens=checks.integer("max_new_tokens", max_new_tokens, at_least=1),
            slots=count("slots", slots),
            tokenizer=tokenizer,
            memory_limit=memory_limit,
            num_requests=count("num_requests", num_requests),
            # Room for any one rule; how many are in use at a time shows when requests come.
            stop_states=0 if tokenizer is None else LARGEST_AUTOMATON,
            mesh=mesh,
            rows=count("rows", rows),
            capacity=count("capacity", capacity),
            prompt_bucket=count("prompt_bucket", prompt_bucket),
        )
        self.stats = EngineStats()
        # Weak: a stream that is no longer referenced, as after a break out of its loop, has ended,
        # and its memory must be freed.
        self._current: weakref.ref[Stream] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the current stream, if any; another one may then be started."""
        current = self._running()
        if current is not None:
            current.close()

    def _running(self) -> Stream | None:
        return None if self._current is None else self._current()

    def warmup(self) -> float:
        """Compiles what a stream of targets with one set of end tokens and no restriction will run.

        Restrictions are a minimum length, "forced_eos", a truncation, and a stop rule. If the
        number of rows follows the load, as by default on a CPU, up to some 90 programs are compiled
        for as many rows as one prompt may need, or all of them typically do. Larger tables, and
        small programs that jump over a size, are compiled when they are needed.

        Returns:
          Seconds of compiling.
        """
        return self._slots(prng.seed_key(0)).warmup()

    def stream(
        self,
        requests: Iterable[StreamRequest | None],
        *,
        key: jax.Array,
        until: Callable[[], bool] = lambda: False,
    ) -> Stream:
        """Samples for requests as they come, and yields each as it finishes.

        An earlier stream of this engine that was left, say by an exception, is ended.

        Args:
          requests: read as slots become free. It may be an endless generator; a None in it means
            that nothing is waiting at the moment.
          key: a key of ``jax.random.key``.
          until: asked before every chunk of steps. Once it says True the stream ends; what is still
            running is lost.

        Returns:
          An iterator of ``Finished``; dropping or closing it ends the stream. A request that
          cannot be served, or fails, is yielded with its ``error`` and does not stop the others.
          If reading ``requests`` raises, what had been read is finished and yielded first.

        Raises:
          ValueError: for a key of the wrong kind, or while another thread, or the reading of
            another stream's requests, is inside a stream of this engine.
        """
        key = checks.key(key)
        if not isinstance(requests, Iterable) or isinstance(requests, str):
            raise ValueError(f"requests is {requests!r}; it must be an iterable of StreamRequest.")
        earlier = self._running()
        if earlier is not None:
            earlier.end()
        scheduler = self._slots(key)

        def admit(index: int, request: Any) -> ActiveRequest:
            active = self._admit(index, request)
            scheduler.check(active.target)
            return active

        self.stats = scheduler.stats
        stream = Stream(scheduler, self.sampler, requests, admit, until, self._release)
        self._current = weakref.ref(stream)
        return stream

    def _slots(self, key: jax.Array) -> Scheduler:
        scheduler = self.scheduler(key)
        assert isinstance(scheduler, Scheduler)
        return scheduler

    def _release(self, stream: Stream) -> None:
        """Called by a stream that has ended."""
        if self._running() is stream:
            self._current = None

    def _admit(self, index: int, request: Any) -> ActiveRequest:
        """The request as the scheduler takes it; ValueError if this engine cannot serve it."""
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


def stream(
    requests: Iterable[StreamRequest | None],
    model: LanguageModel,
    params: Params,
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
      max_prompt_tokens, max_new_tokens: as for ``Engine``; default the largest in the list.

    Returns:
      An iterator of ``Finished``, see ``Engine.stream``.

    Raises:
      ValueError: as for ``Engine``; or if ``requests`` is not a list and a size is missing.
    """
    if max_prompt_tokens is None or max_new_tokens is None:
        if not isinstance(requests, list | tuple):
            raise ValueError(
                "requests is not a list, so its sizes are not known: pass max_prompt_tokens and "
                "max_new_tokens."
            )
        # Invalid requests are refused one by one, later.
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
