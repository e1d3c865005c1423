"""P prompt slots and a row table in the memory of each device, and the programs that run on them.

Rows live on the device that their prompt's slot is on; every device's table has the same number of
rows and the same capacity, which the fullest one sets.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jax_power_smc.core import prng
from jax_power_smc.core.mesh import REPLICATED
from jax_power_smc.core.types import Params
from jax_power_smc.engine import executables, programs, table_size
from jax_power_smc.engine.buckets import Sizes, pad_prompts
from jax_power_smc.engine.layout import layout_of
from jax_power_smc.engine.model_cache import ModelCache
from jax_power_smc.engine.programs import EnteringRows, FinishedPrompts, Snapshot
from jax_power_smc.engine.request import ActiveRequest
from jax_power_smc.engine.slot_allocator import Group, SlotAllocator
from jax_power_smc.engine.state import (
    DecodeState,
    PromptInputs,
    PromptState,
    SharedInputs,
    no_draw,
)
from jax_power_smc.engine.step import Record
from jax_power_smc.engine.target_batch import TargetBatch
from jax_power_smc.engine.timing import preparing
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.samplers import Kernel
from jax_power_smc.smc.weights import weight_dtype
from jax_power_smc.targets.power import PowerTarget


class Prefix(NamedTuple):
    """A sequence that gets a row.

    Attributes:
      place: of its prompt in the group.
      tokens: [L], prompt and generated tokens.
      stop_state: of the stop rule's automaton after them.
      is_cached: whether the cache must hold the last token too: that of a stalled prompt does.
      members: [N] bool, the particles that have this prefix; None for all that run.
    """

    place: int
    tokens: np.ndarray
    stop_state: int = 0
    is_cached: bool = False
    members: np.ndarray | None = None


class DeviceRows:
    """See the module's docstring; the arguments are those of ``Scheduler``.

    Attributes:
      allocator: which slots are handled together.
      targets: the targets of all prompts in the slots.
      num_rows, capacity: R of each device, and positions of a row; 0 before the first prompt.
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
        self.dtype = _weight_dtype(model, params)
        self.params = layout.put(params, layout.params(params))
        self.sampler: Kernel = layout.put(sampler.traced(), REPLICATED)
        self.key, self.sizes = key, sizes
        self.allocator = SlotAllocator(sizes.slots, sizes.group, layout.data_shards)
        self._tokenizer = tokenizer
        self._fresh = jax.device_get(sampler.start(self.dtype))
        no_draw_ = jax.device_get(no_draw(1, sampler.population_size, self.dtype))
        self._no_draw = jax.tree.map(lambda x: x[0], no_draw_)
        self.clear()

    def clear(self) -> None:
        """Gives up whatever is in the slots, also after a program has failed."""
        self._inputs: PromptInputs | None = None
        self._state: DecodeState | None = None
        vocab_size, most = self.model.vocab_size, self.sizes.stop_states
        self.targets = TargetBatch(vocab_size, self._tokenizer, most, self.layout)
        self.num_rows = self.capacity = 0

    def block_until_ready(self) -> None:
        """Waits for everything that was handed to the devices."""
        jax.block_until_ready(self._state)

    # --- Programs ---

    def resize(self, num_rows: int, capacity: int) -> None:
        """Gives the tables another size, or makes them."""
        if (num_rows, capacity) == (self.num_rows, self.capacity):
            return
        if self._state is not None and num_rows != self.num_rows and capacity != self.capacity:
            # One after the other: there would be a program for every combination.
            self.resize(num_rows, self.capacity)
        fewer = num_rows < self.num_rows
        self.num_rows, self.capacity = num_rows, capacity
        sizes = {"num_rows": num_rows, "capacity": capacity}
        if self._state is None:
            static = {**sizes, "num_slots": self.allocator.slots_per_shard, "dtype": self.dtype}
            self._state = self._call(programs.start, static, self.params, self.sampler)
        else:
            if fewer:
                static = {"num_rows": num_rows}
                self._state = self._call(table_size.compact, static, self._state)
            self._state = self._call(table_size.resize, sizes, self.params, self._state)

    def enter(
        self, requests: dict[int, ActiveRequest], prefixes: Sequence[Prefix], group: Group
    ) -> None:
        """Prefills prefixes and puts them, and the prompts that they belong to, into the slots.

        Args:
          requests: by their place in the group.
          prefixes: of these requests, which must fit into the free rows. Those of one device may be
            more than its places in the group: then there are several calls of the programs.
          group: the slots.
        """
        per_shard = self.sizes.group // self.layout.data_shards
        while prefixes:
            taken: dict[int, int] = {}  # place of a row -> index of the prefix
            count = [0] * self.layout.data_shards
            later = []
            for number, prefix in enumerate(prefixes):
                shard = prefix.place // per_shard
                if count[shard] == per_shard:
                    later.append(prefix)
                    continue
                taken[shard * per_shard + count[shard]] = number
                count[shard] += 1
            self._enter(requests, {row: prefixes[i] for row, i in taken.items()}, group)
            prefixes = later

    def decode_chunk(self, row_limit: int) -> tuple[Record, Snapshot]:
        """A chunk of steps of all slots: what was recorded, and how the prompts stand."""
        assert self._inputs is not None and self._state is not None
        # The target of a request that waits for rows may have been placed already.
        self._inputs = self.targets.widen(self._inputs)
        inputs, ticks = self._inputs, {"num_ticks": self.sizes.chunk}
        static = {"population": self.sampler.population_size, "dtype": self.dtype, **ticks}
        numbers = self._call(programs.uniforms, static, inputs.key, self._state.prompts.step)
        args = self.params, self._shared(), inputs, self._state, numbers, np.int32(row_limit)
        self._state, records, snapshot = self._call(programs.decode_chunk, ticks, *args)
        return records, snapshot

    def finalize(self, prompts: PromptState, group: Group) -> FinishedPrompts:
        """Final weights and choices of the slots of a group, [G, ...], from the prompts' states."""
        index = self.allocator.index(group, otherwise=0)
        shared = self._shared()._replace(stop_table=None)
        return self._call(programs.finalize, {}, shared, self._inputs, prompts, index)

    def suspend(self, unwanted: np.ndarray) -> None:
        """Takes the rows of the prompts in the slots where [P] bool."""
        assert self._state is not None
        prompts, rows = self._state
        row_of, owner = self._call(programs.suspend, {}, prompts.row_of, rows.owner, unwanted)
        self._state = DecodeState(prompts._replace(row_of=row_of), rows._replace(owner=owner))

    def cancel(self, unwanted: np.ndarray) -> None:
        """Ends the prompts of the slots where [P] bool."""
        assert self._inputs is not None
        target = self._inputs.target
        cap = self._call(programs.cancel, {}, target.cap, unwanted)
        self._inputs = self._inputs._replace(target=target._replace(cap=cap))
        self.suspend(unwanted)

    def reset(self) -> None:
        """Clears the rows whose logits were invalid, so that they can be used again."""
        assert self._state is not None
        static = {"capacity": self.capacity}
        rows = self._call(table_size.reset, static, self.params, self._state.rows)
        self._state = self._state._replace(rows=rows)

    def warmup(self, most: int) -> None:
        """Runs the programs of up to ``most`` rows, if no target restricts anything.

        Of the small ones that resize a table, those from one size to the next, if they are not
        too many.
        """
        target, every = PowerTarget(1.0), np.ones((self.sizes.slots,), bool)
        buckets, group = self.sizes.prompt_buckets(), {0: 0}
        ladder, capacities, small = self.sizes.ahead(most)
        for capacity in capacities:
            for rows in ladder:
                if self.capacity != capacity:
                    self.clear()
                    self.targets.place(target, ())
                self.resize(rows, capacity)
                for bucket in buckets if rows == ladder[0] else buckets[:1]:
                    if bucket <= capacity:
                        prompt = np.zeros((bucket // 2 + 1,), np.int32)
                        request = ActiveRequest(prompt, 0, target, 1)
                        self.enter({0: request}, [Prefix(0, prompt)], group)
                        self.cancel(every)
                _, snapshot = self.decode_chunk(rows)
            for rows in reversed(ladder[:-1] if small else ()):
                self.resize(rows, capacity)
        self.finalize(snapshot.prompts, group)
        ways = [[*capacities, *reversed(capacities[:-1])]] if small else []
        if len(self.sizes.rows) == 1 and len(capacities) < 7:
            ways = [list(pair) for pair in itertools.permutations(capacities, 2)]
        for rows, way in itertools.product(ladder, ways):
            self.clear()
            for capacity in way:
                self.resize(rows, capacity)
        self.clear()

    def _call(self, function: programs.Program, static: dict[str, Any], *args: Any) -> Any:
        if function in _OF_MODEL:
            static = {**static, "model": self.model}
        return executables.call(function, static, args, self.layout)

    # --- Their arguments ---

    def _shared(self) -> SharedInputs:
        return SharedInputs(self.sampler, self.targets.end_sets, self.targets.table)

    @preparing()
    def _enter(
        self, requests: dict[int, ActiveRequest], taken: dict[int, Prefix], group: Group
    ) -> None:
        """Prefixes by their place among the rows of one call."""
        size = self.sizes.group
        per_shard = size // self.layout.data_shards
        nothing = np.zeros((1,), np.int32)
        sequences = [taken[row].tokens if row in taken else nothing for row in range(size)]
        bucket = self.sizes.prompt_bucket(max(map(len, sequences)))
        tokens, lengths = pad_prompts(sequences, size, bucket)
        more = np.array([row in taken and taken[row].is_cached for row in range(size)], np.int32)
        static = {"capacity": bucket, "block": self.sizes.prefill_block(bucket)}
        prefilled = self._call(programs.prefill, static, self.params, tokens, lengths + more)
        local = self.allocator.index(group, otherwise=self.allocator.slots_per_shard)
        slot = np.full((size,), self.allocator.slots_per_shard, np.int32)
        for row, prefix in taken.items():
            slot[row] = local[prefix.place]
        states = [taken[row].stop_state if row in taken else 0 for row in range(size)]
        # In host memory, like all that is handed to a program.
        last: dict[str, Any] = {
            "token": tokens[np.arange(size), lengths - 1],
            "position": lengths - np.int32(1),
            "stop_state": np.array(states, np.int32),
        }
        rows = EnteringRows(slot=slot, **last)  # type: ignore[arg-type]
        idle = ActiveRequest(nothing, 0, next(iter(requests.values())).target, 0)
        placed = [requests.get(place, idle) for place in range(size)]
        each = [self._prompt_state(placed[p], p, taken, per_shard) for p in range(size)]
        prompts: PromptState = jax.tree.map(lambda *xs: np.stack(xs), *each)
        inputs = self._prompt_inputs(placed)
        self._inputs = self._widened(inputs)
        self._inputs, self._state = self._call(
            programs.insert, {}, self._inputs, self._state, inputs, prompts, local, rows, prefilled
        )

    def _prompt_state(
        self, request: ActiveRequest, place: int, taken: dict[int, Prefix], per_shard: int
    ) -> Any:
        """The state of one prompt that enters; ``row_of`` names places of this call's rows."""
        mine = [row for row, prefix in taken.items() if prefix.place == place]
        nowhere = np.full((self.sampler.num_particles,), per_shard, np.int32)
        if request.suspended is None:
            start = self._fresh
            runs = (start.log_weight > -np.inf) & ~start.ended
            where = mine[0] % per_shard if mine else per_shard
            row_of: Any = np.where(runs[: len(nowhere)], np.int32(where), nowhere)
            zero, no = np.int32(0), np.bool_(False)
            return PromptState(start, row_of, zero, no, self._no_draw)  # type: ignore[arg-type]
        for row in mine:
            nowhere[taken[row].members] = row % per_shard
        return request.suspended.state._replace(row_of=nowhere)  # type: ignore[arg-type]

    def _prompt_inputs(self, placed: Sequence[ActiveRequest]) -> PromptInputs:
        keys = self.key
        if any(request.key is not None for request in placed):
            keys = jnp.stack([self.key if r.key is None else r.key for r in placed])
        target, end_set, stop = self.targets.arrays(
            [(r.target, r.cap) for r in placed], len(placed)
        )
        made = prng.prompt_keys(keys, [request.prompt_id for request in placed])
        order = np.array([request.order for request in placed], np.int32)
        return PromptInputs(target, end_set, made, order, stop)  # type: ignore[arg-type]

    def _widened(self, entering: PromptInputs) -> PromptInputs:
        """The inputs of all slots in the structure of those that enter."""
        if self._inputs is not None:
            return self.targets.widen(self._inputs)
        shape = self.sizes.slots

        def idle(x: Any) -> Any:
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                return jnp.broadcast_to(x[:1], (shape,))
            return np.zeros((shape, *x.shape[1:]), x.dtype)

        return jax.tree.map(idle, entering)


_OF_MODEL = {
    *(programs.start, programs.prefill, programs.insert),
    *(programs.decode_chunk, table_size.compact, table_size.resize, table_size.reset),
}


# Tracing a model takes long enough to be noticed.
_WEIGHT_DTYPES: ModelCache[jnp.dtype] = ModelCache(lambda: 100)


def _weight_dtype(model: LanguageModel, params: Params) -> jnp.dtype:
    """The dtype of weights and log p with this model's logits."""
    one = jax.ShapeDtypeStruct((1,), jnp.int32)

    def logits(params: Params, position: jax.Array) -> jax.Array:
        cache = model.init_cache(params, 1, 1)
        return model.extend(params, cache, position[:, None], position, position)[0]

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    leaves, structure = jax.tree.flatten(shapes)
    key = (structure, *((x.shape, x.dtype) for x in leaves), jax.config.read("jax_enable_x64"))
    return _WEIGHT_DTYPES.get(model, key, lambda: weight_dtype(jax.eval_shape(logits, shapes, one)))
