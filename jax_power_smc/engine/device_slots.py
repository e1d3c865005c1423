"""P prompt slots in the memory of the devices, and the programs that run on them.

Prompts that enter at different times share the clock that says which entry of their caches is
written: it counts around the capacity (``models.transformer.kv_cache``).

Two things grow on the way, both in powers of two so that few programs are compiled: the prompt
half of the slots, to the longest bucket so far, and the generated half, to the age of the oldest
sequence that is still running.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jax_power_smc.core import prng
from jax_power_smc.core.mesh import PER_DEVICE, REPLICATED
from jax_power_smc.core.types import Cache, Params
from jax_power_smc.engine import batching, executables, programs
from jax_power_smc.engine.buckets import Sizes, pad_prompts
from jax_power_smc.engine.decode import DecodeState, PromptInputs, SharedInputs, StepInfo
from jax_power_smc.engine.layout import layout_of
from jax_power_smc.engine.programs import FinishedPrompts
from jax_power_smc.engine.request import ActiveRequest
from jax_power_smc.engine.slot_allocator import Group, SlotAllocator
from jax_power_smc.engine.target_batch import TargetBatch
from jax_power_smc.engine.timing import preparing
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.samplers import Kernel
from jax_power_smc.targets.power import PowerTarget


class DeviceSlots:
    """See the module's docstring; the arguments are those of ``Scheduler``.

    Attributes:
      allocator: which slots are handled together.
      targets: the targets of all prompts in the slots.
      clock: decode steps so far.
    """

    def __init__(
        self,
        model: LanguageModel,
        params: Params,
        sampler: Kernel,
        key: jax.Array,
        sizes: Sizes,
        tokenizer: Any,
        mesh: Mesh | None,
    ) -> None:
        self.layout = layout = layout_of(model, mesh)
        self.model = layout.model
        self.params = layout.put(params, layout.params(params))
        self.sampler: Kernel = layout.put(sampler.traced(), REPLICATED)
        self.key, self.sizes = key, sizes
        self.allocator = SlotAllocator(sizes.slots, sizes.group, layout.data_shards)
        self._tokenizer = tokenizer
        self.clear()

    def clear(self) -> None:
        """Gives up whatever is in the slots, also after a program has failed."""
        self._prompts: PromptInputs | None = None
        self._state: DecodeState | None = None
        vocab_size, most = self.model.vocab_size, self.sizes.stop_states
        self.targets = TargetBatch(vocab_size, self._tokenizer, most, self.layout)
        self.clock = 0
        # The entry of the caches that the next step writes.
        self._entry = 0

    def block_until_ready(self) -> None:
        """Waits for everything that was handed to the devices."""
        jax.block_until_ready(self._state)

    # --- Programs ---

    def prefill(self, requests: dict[int, ActiveRequest], group: Group) -> StepInfo:
        """Prefills prompts, by their place in the group, and inserts them into its slots.

        Returns:
          What was observed at step 0, [R, 1, ...].
        """
        longest = max(len(request.prompt) for request in requests.values())
        static, args = self._prefill_arguments(requests, self.sizes.prompt_bucket(longest))
        prompts, state, info = self._call(programs.prefill, static, *args)
        self._insert(prompts, state, group)
        return jax.tree.map(lambda x: x[:, None], info)

    def decode_chunk(self, entries: int) -> tuple[StepInfo, jax.Array]:
        """A chunk of steps of all slots, with caches that hold at least ``entries`` tokens.

        Returns:
          What was observed, [P, steps, ...]; and whether each prompt is still running, [P] bool.
        """
        assert self._prompts is not None
        self._resize_cache(entries)
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
        self.clock += chunk
        self._entry = (self._entry + chunk) % self._capacity
        return info, running

    def finalize(self, group: Group) -> FinishedPrompts:
        """Final weights and sequences of the slots of a group, [R, ...]."""
        assert self._prompts is not None and self._state is not None
        return self._call(
            programs.finalize,
            {},
            SharedInputs(self.sampler),
            self._prompts._replace(context=None),
            self._state._replace(cache=None),
            self.allocator.index(group, otherwise=0),
        )

    def cancel(self, unwanted: np.ndarray) -> None:
        """Ends the prompts of the slots where [P] bool."""
        assert self._prompts is not None
        target = self._prompts.target
        cap = self._call(programs.cancel, {}, target.cap, unwanted)
        self._prompts = self._prompts._replace(target=target._replace(cap=cap))

    def warmup(self) -> None:
        """Compiles what prompts of all sizes need, if no target has a truncation or a stop rule."""
        sizes = self.sizes
        plain = ActiveRequest([0], 0, PowerTarget(1.0), 1)
        index = jax.ShapeDtypeStruct((sizes.group,), jnp.int32)
        entry = jax.ShapeDtypeStruct((), jnp.int32)
        entries = jax.ShapeDtypeStruct((sizes.chunk,), jnp.int32)
        step = {"model": self.model}
        shared = SharedInputs(self.sampler)
        caches = {
            capacity: jax.eval_shape(functools.partial(self._empty_cache, capacity))
            for capacity in sorted({self._cache_capacity(c) for c in sizes.cache_buckets()})
        }
        for bucket in sizes.prompt_buckets():
            static, args = self._prefill_arguments({0: plain}, bucket)
            self._compile(programs.prefill, static, *args)
            prompts, state, _ = executables.results(programs.prefill, static, args, self.layout)
            entered = prompts, state
            slots = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((self._slots_of(x), *x.shape[1:]), x.dtype), entered
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

    def _call(self, function: programs.Program, static: dict[str, Any], *args: Any) -> Any:
        return executables.call(function, static, args, self.layout)

    def _compile(self, function: programs.Program, static: dict[str, Any], *args: Any) -> None:
        executables.executable(function, static, args, self.layout)

    # --- Their arguments ---

    @preparing()
    def _prefill_arguments(
        self, requests: dict[int, ActiveRequest], bucket: int
    ) -> tuple[dict[str, Any], tuple[Any, ...]]:
        """The arguments of ``programs.prefill``, static and traced."""
        size, some = self.sizes.group, next(iter(requests.values()))
        idle = ActiveRequest([0], 0, some.target, 0)  # with cap 0 it draws nothing
        placed = [requests.get(place, idle) for place in range(size)]
        tokens, lengths = pad_prompts([request.prompt for request in placed], size, bucket)
        ids = [request.prompt_id for request in placed]
        keys = self.key
        if any(request.key is not None for request in placed):
            keys = jnp.stack([self.key if r.key is None else r.key for r in placed])
        targets, stop = self.targets.arrays([(r.target, r.cap) for r in placed], size)
        prompts = PromptInputs(None, targets, prng.prompt_keys(keys, ids), stop)
        return (
            {"model": self.model, "capacity": self.sizes.token_capacity},
            (self.params, self._shared(), prompts, tokens, lengths),
        )

    def _shared(self) -> SharedInputs:
        return SharedInputs(self.sampler, self.targets.table)

    @preparing()
    def _insert(self, prompts: PromptInputs, state: DecodeState, group: Group) -> None:
        """Puts prefilled prompts into a group's slots, which are made or widened if need be."""
        entered = prompts, state
        if self._prompts is None or self._state is None:
            specs = self.layout.prompts(), self.layout.state()
            slots = self.layout.zeros(functools.partial(self._idle_slots, entered), specs)
            self._capacity = self._cache_capacity(1)
            cache = self.layout.zeros(
                functools.partial(self._empty_cache, self._capacity), PER_DEVICE
            )
        else:
            slots = self.targets.widen(self._prompts), self._state._replace(cache=None)
            cache = self._state.cache
        widest = jax.tree.map(
            lambda x, y: tuple(map(max, x.shape[1:], y.shape[1:])), slots, entered
        )
        slots, entered = (jax.tree.map(batching.fit, tree, widest) for tree in (slots, entered))
        index = self.allocator.index(group, otherwise=self.allocator.slots_per_shard)
        self._prompts, state = self._call(programs.insert, {}, slots, entered, index)
        self._state = state._replace(cache=cache)

    def _resize_cache(self, entries: int) -> None:
        """Gives the caches room for so many tokens, and not much more."""
        assert self._state is not None
        capacity = self._cache_capacity(entries)
        if capacity != self._capacity:
            last = (self._entry - 1) % self._capacity
            cache = self._call(
                programs.resize_cache,
                {"model": self.model, "capacity": capacity},
                self._state.cache,
                np.int32(last),
            )
            self._state, self._capacity = self._state._replace(cache=cache), capacity
            self._entry = (last + 1) % capacity

    def _idle_slots(self, entered: Any) -> Any:
        """Empty slots shaped like what enters: all of a state but the cache."""
        return jax.tree.map(lambda x: batching.idle(x, self._slots_of(x)), entered)

    def _slots_of(self, entered: Any) -> int:
        """The leading axis of all slots for what enters: P, or P m of what is ``PER_DEVICE``."""
        return entered.shape[0] * self.sizes.slots // self.sizes.group

    def _empty_cache(self, capacity: int) -> Cache:
        slots = self.sizes.slots * self.layout.model_shards
        sizes = slots, self.sampler.num_particles, capacity
        return programs.empty_cache(self.model, self.params, *sizes)

    def _cache_capacity(self, entries: int) -> int:
        if not hasattr(self.model, "grow"):
            return self.sizes.token_capacity
        return self.sizes.cache_bucket(entries)
