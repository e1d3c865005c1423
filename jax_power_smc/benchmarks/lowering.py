"""The engine's programs lowered from shapes alone, for devices that need not be there.

Letters: P prompt slots, G prompts prefilled together, S their padded length, R rows, T capacity.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jax_power_smc.core import prng
from jax_power_smc.engine import executables, program_specs, programs, table_size
from jax_power_smc.engine.layout import Layout, layout_of
from jax_power_smc.engine.state import PromptInputs, SharedInputs
from jax_power_smc.models.transformer.transformer import TransformerLM
from jax_power_smc.samplers import Kernel
from jax_power_smc.targets.power import PowerTarget

# The programs, each a method of ``Programs``.
NAMES = ("decode_chunk", "prefill", "insert", "compact", "resize")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a device has.

    Attributes:
      prompts, rows, capacity: P, R, T.
      group, prompt_tokens: G and S, of a prefill.
      steps: of a chunk.
    """

    prompts: int
    rows: int
    capacity: int
    group: int = 1
    prompt_tokens: int = 512
    steps: int = 16


class Programs:
    """Lowers each program for the devices of a mesh, or for the default device without one.

    Args:
      model: as the caller of an engine has it.
      mesh: where the programs run.
      sampler: any that has slots.
      sizes: of one device.
    """

    def __init__(
        self, model: TransformerLM, mesh: Mesh | None, sampler: Kernel, sizes: Sizes
    ) -> None:
        self.layout: Layout = layout_of(model, mesh)
        self.sizes = sizes
        self.params = nnx.state(model.abstract_module())
        self._vocab, self._static = model.vocab_size, {"model": self.layout.model}
        self._sampler = jax.eval_shape(sampler.traced)
        self._shards = self.layout.data_shards
        self.state = self._result(
            programs.start,
            (self.params, self._sampler),
            num_slots=sizes.prompts,
            num_rows=sizes.rows,
            capacity=sizes.capacity,
            dtype=jnp.dtype(jnp.float32),
        )

    @property
    def cache(self) -> Any:
        """The cache of one device."""
        return self._local_cache(self.sizes.rows, self.sizes.capacity)

    def local_params(self) -> dict[str, Any]:
        """Dotted name -> the shape of one device's part of a parameter."""
        flat = nnx.to_flat_state(self.layout.local(self.params))
        return {".".join(map(str, path)): leaf.get_value() for path, leaf in flat}

    def decode_chunk(self) -> Any:
        """Steps of all prompts."""
        ends: Any = jax.ShapeDtypeStruct((1, self._vocab), jnp.bool_)
        shared, inputs = SharedInputs(self._sampler, ends), self._inputs(self.sizes.prompts)
        particles, ticks = self.state.prompts.particles.log_weight, {"num_ticks": self.sizes.steps}
        static = {"population": particles.shape[1], "dtype": particles.dtype, **ticks}
        key_and_step = inputs.key, self.state.prompts.step
        numbers = executables.results(programs.uniforms, static, key_and_step, self.layout)
        args = (self.params, shared, inputs, self.state, numbers, _scalar())
        return self._lower(programs.decode_chunk, args, **ticks)

    def prefill(self) -> Any:
        """Prompts read into a cache of their own."""
        return self._lower(programs.prefill, self._prefill_args(), capacity=self._prefill_capacity)

    def insert(self) -> Any:
        """These put into free slots and rows."""
        group = self.sizes.group * self._shards
        prefilled = self._result(
            programs.prefill, self._prefill_args(), capacity=self._prefill_capacity
        )
        each: Any = jax.ShapeDtypeStruct((group,), jnp.int32)
        rows = programs.EnteringRows(each, each, each, each)
        prompts = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((group, *x.shape[1:]), x.dtype), self.state.prompts
        )
        inputs = self._inputs(self.sizes.prompts), self.state, self._inputs(self.sizes.group)
        return self._lower(programs.insert, (*inputs, prompts, each, rows, prefilled))

    def compact(self) -> Any:
        """Rows moved to the first half of the table."""
        return self._lower(table_size.compact, (self.state,), num_rows=self.sizes.rows // 2)

    def resize(self) -> Any:
        """The first half of the table alone."""
        sizes = {"num_rows": self.sizes.rows // 2, "capacity": self.sizes.capacity}
        return self._lower(table_size.resize, (self.params, self.state), **sizes)

    def lower(self, name: str) -> Any:
        """The program of one of ``NAMES``."""
        return getattr(self, name)()

    @property
    def _prefill_capacity(self) -> int:
        return min(self.sizes.prompt_tokens, self.sizes.capacity)

    def _prefill_args(self) -> tuple[Any, ...]:
        group = self.sizes.group * self._shards
        tokens = jax.ShapeDtypeStruct((group, self.sizes.prompt_tokens), jnp.int32)
        return self.params, tokens, jax.ShapeDtypeStruct((group,), jnp.int32)

    def _inputs(self, prompts: int) -> PromptInputs:
        """What prompts of plain targets bring."""
        none = jnp.zeros((), jnp.int32)
        target: Any = PowerTarget(4.0, (0,)).arrays(self._vocab, self.sizes.capacity)
        target = target._replace(ends=None, forced=None, min_new_tokens=None)
        own = PromptInputs(target, none, prng.prompt_keys(prng.seed_key(0), [0])[0], none)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((prompts * self._shards, *x.shape), x.dtype), own
        )

    def _local_cache(self, rows: int, capacity: int) -> Any:
        return jax.eval_shape(
            lambda params: self.layout.model.init_cache(params, rows, capacity), self.params
        )

    def _result(self, program: programs.Program, args: Any, **static: Any) -> Any:
        return executables.results(program, self._static | static, args, self.layout)

    def _lower(self, program: programs.Program, args: Any, **static: Any) -> Any:
        specs = program_specs.SPECS[program](self.layout, args)
        return self.layout.lower(program, self._static | static, args, specs)


def _scalar() -> Any:
    return jax.ShapeDtypeStruct((), jnp.int32)
