"""P prompt slots on the device, and the host's loop that keeps them full.

A chunk of steps runs for all slots; prompts that are done are harvested; waiting ones are
prefilled, take step 0 and are inserted where a slot is free. Prompts that entered at different
times share the clock that says where their caches are written: it counts around the capacity
(``models.ring``).

The host never waits for the chunk that it has just handed out: it looks at the one before, while
this one runs. So a prompt that ends leaves its slot at most one chunk late, and the device always
has something to do.

What grows on the way: the prompt half of the slots to the longest bucket seen, the generated half
to the oldest sequence that still runs, both in powers of two, so that few programs are compiled.
"""

import collections
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jax_power_smc.core import prng
from jax_power_smc.core.mesh import PER_DEVICE, REPLICATED, no_ambient_mesh
from jax_power_smc.engine import batching, executables, programs, timing
from jax_power_smc.engine.buckets import Sizes, TokenIds, pad_prompts
from jax_power_smc.engine.decode import DecodeState, PromptInputs, SharedInputs, StepInfo
from jax_power_smc.engine.layout import layout_of
from jax_power_smc.engine.programs import FinishedPrompts
from jax_power_smc.engine.slot_allocator import SlotAllocator
from jax_power_smc.engine.target_batch import TargetBatch
from jax_power_smc.engine.timing import PhaseTimer, ReadyTimes, preparing
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.samplers import Kernel
from jax_power_smc.targets.power import PowerTarget


@dataclasses.dataclass(eq=False)
class ActiveRequest:
    """One prompt on its way through the slots.

    Attributes:
      prompt: token ids [S].
      prompt_id: for the randomness.
      target: what to sample from.
      cap: T.
      key: of its run, if that is not the slots'.
      cancelled: nobody wants the result any more; may be set at any time.
      error: why there is none; set beforehand it keeps the prompt out of the slots.
      left: what it left behind, leaves [1, ...] in host memory; None until it is through.
      seen: what was observed, leaves [1, steps, ...].
    """

    prompt: TokenIds
    prompt_id: int
    target: PowerTarget
    cap: int
    key: jax.Array | None = None
    cancelled: bool = False
    error: Exception | None = None
    left: FinishedPrompts | None = None
    seen: StepInfo | None = None
    # While it runs: the clock of its step 1, and what was seen, with its row there.
    clock: int = 0
    parts: list[tuple["_Seen", int]] = dataclasses.field(default_factory=list)

    @property
    def is_wanted(self) -> bool:
        """Whether there is something to decode."""
        return not self.cancelled and self.error is None


class _Seen:
    """What was observed of some prompts [rows, steps, ...], on its way to the host."""

    def __init__(self, observed: StepInfo) -> None:
        self._observed = observed
        _copy_to_host(observed)

    def of(self, row: int) -> StepInfo:
        self._observed = jax.device_get(self._observed)
        return jax.tree.map(lambda x: x[row : row + 1], self._observed)


class Scheduler:
    """Decodes prompts as they come; see the module's docstring.

    Args:
      model, params: the language model.
      sampler: how the particles take their steps.
      key: the key of the run.
      sizes: shapes; slots and group are multiples of the mesh's "data" rows.
      tokenizer: for stop rules.
      looks_late: chunks that are handed out beyond the one that is looked at.
      mesh: devices, of which each "data" row has an equal part of the slots; None for one device.

    Attributes:
      seconds: by phase, since the beginning. What enters while others decode counts as decoding.
    """

    @no_ambient_mesh()
    def __init__(
        self,
        model: LanguageModel,
        params: Any,
        sampler: Kernel,
        key: jax.Array,
        sizes: Sizes,
        tokenizer: Any = None,
        lookahead: int = 1,
        mesh: Mesh | None = None,
    ) -> None:
        self.layout = layout = layout_of(model, mesh)
        self.model = layout.model
        self.params = layout.put(params, layout.params(params))
        self.sampler: Kernel = layout.put(sampler.traced(), REPLICATED)
        self.key, self.sizes, self.lookahead = key, sizes, lookahead
        self.slot_allocator = SlotAllocator(sizes.slots, sizes.group, layout.rows)
        self._phases, self._ready = PhaseTimer(), ReadyTimes()
        self.seconds = self._phases.seconds
        self._tokenizer = tokenizer
        self._clear()

    def _clear(self) -> None:
        self._occupants: list[ActiveRequest | None] = [None] * self.sizes.slots
        self._prompts: PromptInputs | None = None
        self._state: DecodeState | None = None
        vocab_size, most = self.model.vocab_size, self.sizes.stop_states
        self._targets = TargetBatch(vocab_size, self._tokenizer, most, self.layout)
        # Those that came when the table of stop rules had no room.
        self._held: list[ActiveRequest] = []
        # Steps so far, and the entry of the caches that the next one writes.
        self._clock = self._entry = 0
        # Chunks that were handed out and not looked at: who ran in them, and who still does.
        self._unseen: collections.deque[tuple[list[ActiveRequest | None], jax.Array]] = (
            collections.deque()
        )
        self._leaving: collections.deque[tuple[dict[int, ActiveRequest], FinishedPrompts]] = (
            collections.deque()
        )

    def check(self, target: PowerTarget) -> None:
        """Raises ValueError for a target that cannot be served, see ``TargetBatch``."""
        self._targets.check(target)

    @no_ambient_mesh()
    def warmup(self) -> float:
        """Compiles what prompts of all sizes need, if no target has a truncation or a stop rule.

        Returns:
          Seconds of compiling.
        """
        before, sizes = timing.compile_seconds(), self.sizes
        plain = ActiveRequest([0], 0, PowerTarget(1.0), 1)
        index = jax.ShapeDtypeStruct((sizes.group,), jnp.int32)
        entry = jax.ShapeDtypeStruct((), jnp.int32)
        entries = jax.ShapeDtypeStruct((sizes.chunk,), jnp.int32)
        step = {"model": self.model}
        shared = SharedInputs(self.sampler)
        caches = {
            capacity: jax.eval_shape(functools.partial(self._new_cache, capacity))
            for capacity in sorted({self._cache_capacity(c) for c in sizes.cache_buckets()})
        }
        for bucket in sizes.prompt_buckets():
            static, args = self._entering({0: plain}, bucket)
            self._compile(programs.prefill, static, *args)
            prompts, state, _ = executables.results(programs.prefill, static, args, self.layout)
            entered = prompts, state
            slots = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((self._rows(x), *x.shape[1:]), x.dtype), entered
            )
            self._compile(programs.insert, {}, slots, entered, index)
            prompts, state = slots
            for cache in caches.values():
                args = self.params, shared, prompts, state._replace(cache=cache), entries
                self._compile(programs.decode_chunk, step, *args)
        self._compile(programs.finalize, {}, shared, prompts._replace(context=None), state, index)
        for small, large in itertools.pairwise(caches):
            static = {"model": self.model, "capacity": large}
            self._compile(programs.resize_cache, static, caches[small], entry)
        compiling = timing.compile_seconds() - before
        self.seconds["compile"] += compiling
        return compiling

    # --- The host's loop ---

    def run(
        self, waiting: Iterable[ActiveRequest | None], until: Callable[[], bool] = lambda: False
    ) -> Generator[ActiveRequest]:
        """Yields every prompt when it is through, whatever became of it.

        ``until`` is asked after every chunk, and ends it all at once: what still runs is lost.

        ``waiting`` is read when slots are free; a None there says that nothing waits at the
        moment. If reading it raises, all that has entered is finished and yielded before the error
        is raised again.
        """
        queue: Iterator[ActiveRequest | None] = iter(waiting)
        broken: Exception | None = None
        open_end = True
        while (open_end or self._held or any(self._occupants) or self._leaving) and not self._ends(
            until
        ):
            arrivals, self._held = self._held, []
            try:
                while open_end and len(arrivals) < self._occupants.count(None):
                    work = next(queue, _END)
                    open_end = work is not _END
                    if work is _END or work is None:
                        break
                    arrivals.append(work)
            except Exception as error:
                broken, open_end = error, False
            if not arrivals and not any(self._occupants) and not self._leaving and open_end:
                time.sleep(_NOTHING_WAITS)
            yield from self._turn(arrivals)
        if broken is not None:
            raise broken

    def _ends(self, until: Callable[[], bool]) -> bool:
        """What ``until`` says; several processes that ask each other wait for their devices."""
        self._resume()
        ends = until()
        self._phases.book("decode")
        return ends

    @no_ambient_mesh()
    def _turn(self, arrivals: list[ActiveRequest]) -> list[ActiveRequest]:
        """One round: enter, hand out a chunk, look at an earlier one. Returns who is through."""
        self._resume()
        through = [work for work in arrivals if not work.is_wanted]
        entering = [work for work in arrivals if work.is_wanted]
        try:
            idle = not any(self._occupants)
            entering, self._held = self._with_room(entering)
            free = [slot for slot, work in enumerate(self._occupants) if work is None]
            goes = dict(zip(self.slot_allocator.round_robin(free), entering, strict=False))
            for group in self.slot_allocator.groups(list(goes)):
                self._enter({place: goes[slot] for place, slot in group.items()}, group)
            if idle and entering:
                jax.block_until_ready(self._state)
                self._phases.book("prefill")
            through += self._drop_cancelled()
            if any(self._occupants):
                self._hand_out()
            # The harvest of a round ago lies behind the chunk of a round ago.
            ready = len(self._leaving)
            self._look()
            for _ in range(ready if self.lookahead else len(self._leaving)):
                through += self._receive(*self._leaving[0])
                self._leaving.popleft()
        except jax.errors.JaxRuntimeError as error:
            # The slots are lost with the program that failed, and who was in them. Who waits is
            # not: the next one enters empty slots.
            lost = [
                *filter(None, self._occupants),
                *(w for ws, _ in self._leaving for w in ws.values()),
            ]
            for work in dict.fromkeys([*lost, *entering]):
                if work not in through:
                    work.error = error
                    through.append(work)
            self._clear()
        self._phases.book("decode")
        return through

    def _with_room(
        self, entering: list[ActiveRequest]
    ) -> tuple[list[ActiveRequest], list[ActiveRequest]]:
        """Those whose targets can be placed, and those that wait for others to leave."""
        in_use = {work.target.stop for work in self._occupants if work is not None}
        for number, work in enumerate(entering):
            if not self._targets.place(work.target, in_use):
                return entering[:number], entering[number:]
            in_use.add(work.target.stop)
        return entering, []

    def _call(self, function: Any, static: dict[str, Any], *args: Any) -> Any:
        return executables.call(function, static, args, self.layout)

    def _compile(self, function: Any, static: dict[str, Any], *args: Any) -> Any:
        return executables.executable(function, static, args, self.layout)

    def _resume(self) -> None:
        """The clock goes on; while the device decoded, it ran, whatever the caller did."""
        self._phases.resume("decode", until=self._ready.last())

    # --- One round ---

    def _enter(self, works: dict[int, ActiveRequest], group: dict[int, int]) -> None:
        """Prefills prompts, by place in their group, and puts them into its slots."""
        longest = max(len(work.prompt) for work in works.values())
        static, args = self._entering(works, self.sizes.prompt_bucket(longest))
        prompts, state, info = self._call(programs.prefill, static, *args)
        self._insert(prompts, state, group)
        seen = _Seen(jax.tree.map(lambda x: x[:, None], info))
        for place, work in works.items():
            self._occupants[group[place]] = work
            work.clock, work.parts = self._clock, [(seen, place)]

    @preparing()
    def _entering(
        self, works: dict[int, ActiveRequest], bucket: int
    ) -> tuple[dict[str, Any], tuple[Any, ...]]:
        """The arguments of ``programs.prefill``, static and traced."""
        size, some = self.sizes.group, next(iter(works.values()))
        nobody = ActiveRequest([0], 0, some.target, 0)  # has cap 0 and draws nothing
        placed = [works.get(place, nobody) for place in range(size)]
        tokens, lengths = pad_prompts([work.prompt for work in placed], size, bucket)
        ids = [work.prompt_id for work in placed]
        keys = self.key
        if any(work.key is not None for work in placed):
            keys = jnp.stack([self.key if work.key is None else work.key for work in placed])
        targets, stop = self._targets.arrays([(work.target, work.cap) for work in placed], size)
        prompts = PromptInputs(None, targets, prng.prompt_keys(keys, ids), stop)
        return (
            {"model": self.model, "capacity": self.sizes.token_capacity},
            (self.params, self._shared(), prompts, tokens, lengths),
        )

    def _shared(self) -> SharedInputs:
        return SharedInputs(self.sampler, self._targets.table)

    @preparing()
    def _insert(self, prompts: PromptInputs, state: DecodeState, group: dict[int, int]) -> None:
        """Puts what has entered into the group's slots; makes or widens the slots if need be."""
        entered = prompts, state
        if self._prompts is None or self._state is None:
            specs = self.layout.prompts(), self.layout.state()
            slots = self.layout.zeros(functools.partial(self._new_slots, entered), specs)
            self._capacity = self._cache_capacity(1)
            cache = self.layout.zeros(
                functools.partial(self._new_cache, self._capacity), PER_DEVICE
            )
        else:
            slots = self._targets.widen(self._prompts), self._state._replace(cache=None)
            cache = self._state.cache
        widest = jax.tree.map(
            lambda x, y: tuple(map(max, x.shape[1:], y.shape[1:])), slots, entered
        )
        slots, entered = (jax.tree.map(batching.fit, tree, widest) for tree in (slots, entered))
        index = self.slot_allocator.index(group, otherwise=self.slot_allocator.per_row)
        self._prompts, state = self._call(programs.insert, {}, slots, entered, index)
        self._state = state._replace(cache=cache)

    def _hand_out(self) -> None:
        """Hands a chunk of steps to the device."""
        assert self._prompts is not None and self._state is not None
        self._fit_cache()
        chunk = self.sizes.chunk
        self._state, info, running = self._call(
            programs.decode_chunk,
            {"model": self.model},
            self.params,
            self._shared(),
            self._prompts,
            self._state,
            (self._entry + np.arange(chunk, dtype=np.int32)) % np.int32(self._capacity),
        )
        self._clock += chunk
        self._entry = (self._entry + chunk) % self._capacity
        self._ready.watch(running)
        _copy_to_host(running)
        self._unseen.append((list(self._occupants), running))
        seen = _Seen(info)
        for slot, work in enumerate(self._occupants):
            if work is not None:
                work.parts.append((seen, slot))

    def _fit_cache(self) -> None:
        """Gives the cache room for the next chunk of the oldest sequence, and not much more."""
        assert self._state is not None
        end = self._clock + self.sizes.chunk
        entries = max(min(end - w.clock, w.cap - 1) for w in self._occupants if w is not None)
        capacity = self._cache_capacity(entries)
        if capacity != self._capacity:
            cache = self._call(
                programs.resize_cache,
                {"model": self.model, "capacity": capacity},
                self._state.cache,
                np.int32(last := (self._entry - 1) % self._capacity),
            )
            self._state, self._capacity = self._state._replace(cache=cache), capacity
            self._entry = (last + 1) % capacity

    def _new_slots(self, entered: Any) -> Any:
        """Slots that nobody is in, shaped like what enters: all of a state but the cache."""
        return jax.tree.map(lambda x: batching.idle(x, self._rows(x)), entered)

    def _rows(self, entered: Any) -> int:
        """Rows of all slots for what enters: P, or P m of what each device has of its own."""
        return entered.shape[0] * self.sizes.slots // self.sizes.group

    def _new_cache(self, capacity: int) -> Any:
        slots = self.sizes.slots * self.layout.group
        sizes = slots, self.sampler.num_particles, capacity
        return programs.empty_cache(self.model, self.params, *sizes)

    def _cache_capacity(self, entries: int) -> int:
        if not hasattr(self.model, "grow"):
            return self.sizes.token_capacity
        return self.sizes.cache_bucket(entries)

    def _look(self) -> None:
        """Harvests the slots whose prompts are known to be done."""
        done: dict[int, ActiveRequest] = {}
        while len(self._unseen) > self.lookahead:
            occupants, running = self._unseen.popleft()
            for slot, still in enumerate(np.asarray(running).tolist()):
                work = occupants[slot]
                if work is not None and work is self._occupants[slot] and not still:
                    done[slot] = work
        # The cap needs no look: the chunk that reaches it has been handed out.
        for slot, work in enumerate(self._occupants):
            if work is not None and self._clock - work.clock >= work.cap - 1:
                done[slot] = work
        for group in self.slot_allocator.groups(sorted(done)):
            self._finalize({place: done[slot] for place, slot in group.items()}, group)

    def _finalize(self, done: dict[int, ActiveRequest], group: dict[int, int]) -> None:
        assert self._prompts is not None and self._state is not None
        left = self._call(
            programs.finalize,
            {},
            SharedInputs(self.sampler),
            self._prompts._replace(context=None),
            self._state._replace(cache=None),
            self.slot_allocator.index(group, otherwise=0),
        )
        _copy_to_host(left)
        for slot in group.values():
            self._occupants[slot] = None
        self._leaving.append((done, left))

    def _receive(
        self, works: dict[int, ActiveRequest], left: FinishedPrompts
    ) -> list[ActiveRequest]:
        """Waits for what the prompts left behind, by their place in the group."""
        left = jax.device_get(left)
        for place, work in works.items():
            work.left = jax.tree.map(lambda x, row=place: x[row : row + 1], left)
            parts = [seen.of(place) for seen, place in work.parts]
            work.seen = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *parts)
            work.parts = []
        return list(works.values())

    def _drop_cancelled(self) -> list[ActiveRequest]:
        """Frees the slots of prompts that nobody wants any more."""
        unwanted = np.array([w is not None and w.cancelled for w in self._occupants])
        if not unwanted.any():
            return []
        assert self._prompts is not None
        target = self._prompts.target
        cap = self._call(programs.cancel, {}, target.cap, unwanted)
        self._prompts = self._prompts._replace(target=target._replace(cap=cap))
        dropped = [w for w in self._occupants if w is not None and w.cancelled]
        self._occupants = [None if w is None or w.cancelled else w for w in self._occupants]
        return dropped


_END: Any = object()
# Seconds until an empty engine asks again for prompts.
_NOTHING_WAITS = 1e-3


def _copy_to_host(tree: Any) -> None:
    """Starts the transfer; whoever needs it waits for it then."""
    for x in jax.tree.leaves(tree):
        x.copy_to_host_async()
