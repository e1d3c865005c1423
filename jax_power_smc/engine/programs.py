"""The engine's programs on its prompt slots.

    prefill       prefill and step 0 of a group of prompts
    insert        puts them into free slots
    decode_chunk  a number of decode steps of all slots, or nothing if all are done
    finalize      final weights and choices of a group of slots
    cancel        ends prompts that are no longer wanted
    resize_cache  gives the caches another capacity
    write_states  writes the states of a stop rule into the table

Each is written for the prompts of one device; on a mesh every data shard runs it for its own.

Letters: P slots, R prompts that enter or leave together, S padded prompt length.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jax_power_smc.core import prng
from jax_power_smc.core.mesh import DATA_SHARDED, PER_DEVICE, REPLICATED
from jax_power_smc.core.types import Cache, Params
from jax_power_smc.engine import decode
from jax_power_smc.engine.batching import over_prompts
from jax_power_smc.engine.decode import DecodeState, PromptInputs, SharedInputs, StepInfo
from jax_power_smc.engine.layout import Layout, Specs
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.samplers import FinalWeights, Kernel, Particles
from jax_power_smc.smc import weights

# A function of arrays, and of static keyword arguments such as the model. ``executables`` compiles
# it anew for every executable: ``jax.jit`` of the function itself would keep models and what was
# compiled for them as long as the process runs.
Program: TypeAlias = Callable[..., Any]


class FinishedPrompts(NamedTuple):
    """The outcome of R finished prompts.

    Attributes:
      final: final weights and choices, [R, N].
      particles: the populations, [R, M].
      tokens: [R, M, T] int32.
    """

    final: FinalWeights
    particles: Particles
    tokens: jax.Array


def prefill(
    params: Params,
    shared: SharedInputs,
    prompts: PromptInputs,
    tokens: jax.Array,
    lengths: jax.Array,
    *,
    model: LanguageModel,
    capacity: int,
) -> tuple[PromptInputs, DecodeState, StepInfo]:
    """Prefill and step 0: tokens [R, S], lengths [R]; no prompt has a context yet.

    ``capacity`` is that of the token buffers. The states that are returned have no cache yet.
    """

    def one(any_prompt, params, shared, prompt, tokens, length):  # type: ignore[no-untyped-def]
        logits, context = model.prefill(params, tokens, length)
        uniforms = prng.step_uniforms(
            prompt.key,
            jnp.zeros((), jnp.int32),
            shared.sampler.population_size,
            weights.weight_dtype(logits),
        )
        state, info = decode.begin(
            model, capacity, params, shared, prompt, logits, uniforms, any_prompt
        )
        return prompt._replace(context=context), state._replace(cache=None), info

    return over_prompts(one, (None, None, 0, 0, 0))(params, shared, prompts, tokens, lengths)


def empty_cache(
    model: LanguageModel, params: Params, num_prompts: int, num_particles: int, capacity: int
) -> Cache:
    """The caches of P prompts before the first token, leaves [P, N, ...]."""
    shapes = jax.eval_shape(
        functools.partial(model.init_cache, num_particles=num_particles, capacity=capacity), params
    )
    return jax.tree.map(lambda x: jnp.zeros((num_prompts, *x.shape), x.dtype), shapes)


def insert(slots: Any, entered: Any, index: jax.Array) -> Any:
    """The slots [P, ...] with those of ``index`` [R] int32 replaced; P and beyond means none."""
    return jax.tree.map(lambda x, y: x.at[index].set(y, mode="drop"), slots, entered)


def decode_chunk(
    params: Params,
    shared: SharedInputs,
    prompts: PromptInputs,
    state: DecodeState,
    clocks: jax.Array,
    *,
    model: LanguageModel,
) -> tuple[DecodeState, StepInfo, jax.Array]:
    """A step of P prompts at each of ``clocks`` [steps] int32; nothing if all are done.

    Returns:
      The state; what was observed, [P, steps, ...]; and whether each prompt is still running [P].
    """
    sampler: Kernel = shared.sampler

    # The loop is inside the vmap, so that a batch of one has no axis of size 1 in its carry.
    def one(any_prompt, params, shared, prompt, state, clocks):  # type: ignore[no-untyped-def]
        def body(state: DecodeState, clock: jax.Array) -> tuple[DecodeState, StepInfo]:
            uniforms = prng.step_uniforms(
                prompt.key, state.step, sampler.population_size, state.particles.log_weight.dtype
            )
            return decode.decode_step(
                model, params, shared, prompt, state, uniforms, clock, any_prompt
            )

        return jax.lax.scan(body, state, clocks)

    def go(state: DecodeState) -> tuple[DecodeState, StepInfo]:
        chunk = over_prompts(one, (None, None, 0, 0, None))
        return chunk(params, shared, prompts, state, clocks)

    def idle(state: DecodeState) -> tuple[DecodeState, StepInfo]:
        shape, size = (state.step.shape[0], clocks.shape[0]), sampler.population_size
        return state, StepInfo(
            ess=jnp.full(shape, sampler.num_particles, state.particles.log_weight.dtype),
            resampled=jnp.zeros(shape, bool),
            forks=jnp.zeros(shape, jnp.int32),
            parent=jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), (*shape, size)),
            bad_logits=jnp.zeros(shape, bool),
        )

    def running(state: DecodeState) -> jax.Array:
        return jax.vmap(decode.is_running)(state.particles, prompts.target, state.step)

    state, info = jax.lax.cond(jnp.any(running(state)), go, idle, state)
    return state, info, running(state)


def write_states(table: jax.Array, states: jax.Array, first: jax.Array) -> jax.Array:
    """A table [S, V] with ``states`` [n, V] written from ``first`` [] on, in place."""
    return jax.lax.dynamic_update_slice_in_dim(table, states, first, axis=0)


def finalize(
    shared: SharedInputs, prompts: PromptInputs, state: DecodeState, index: jax.Array
) -> FinishedPrompts:
    """Final weights, choices and sequences of the slots ``index`` [R] int32; no cache is read."""
    prompts = prompts._replace(context=None)
    prompts, state = jax.tree.map(lambda x: x[index], (prompts, state._replace(cache=None)))

    def one(shared: SharedInputs, prompt: PromptInputs, state: DecodeState) -> FinalWeights:
        uniforms = prng.final_uniforms(prompt.key, state.particles.log_weight.dtype)
        return decode.finish(shared, prompt, state, uniforms)

    final = jax.vmap(one, in_axes=(None, 0, 0))(shared, prompts, state)
    return FinishedPrompts(final, state.particles, state.tokens)


def cancel(cap: jax.Array, unwanted: jax.Array) -> jax.Array:
    """The caps [P], 0 for unwanted prompts [P] bool, which then take no further step."""
    return jnp.where(unwanted, jnp.zeros_like(cap), cap)


def resize_cache(cache: Cache, clock: jax.Array, *, model: Any, capacity: int) -> Cache:
    """The caches of P prompts with another capacity; ``clock`` [] is the entry written last."""
    return jax.vmap(lambda cache: model.grow(cache, capacity, clock))(cache)


# --- On a mesh --------------------------------------------------------------------------------


def _prefill_specs(layout: Layout, args: Any) -> Specs:
    inputs = (layout.params(args[0]), REPLICATED, layout.prompts(), DATA_SHARDED, DATA_SHARDED)
    return Specs(inputs, (layout.prompts(), layout.state(), DATA_SHARDED), (False, False, True))


def _insert_specs(layout: Layout, args: Any) -> Specs:
    del args
    slots = layout.prompts(), layout.state()
    return Specs((slots, slots, DATA_SHARDED), slots, False, (0,))


def _decode_chunk_specs(layout: Layout, args: Any) -> Specs:
    state = layout.state()
    inputs = (layout.params(args[0]), REPLICATED, layout.prompts(), state, REPLICATED)
    return Specs(inputs, (state, DATA_SHARDED, DATA_SHARDED), (False, True, True), (3,))


def _finalize_specs(layout: Layout, args: Any) -> Specs:
    del args
    return Specs((REPLICATED, layout.prompts(), layout.state(), DATA_SHARDED), DATA_SHARDED, True)


# How the arguments and results of each program are sharded; ``mh_chains`` adds its own.
SPECS: dict[Program, Callable[[Layout, Any], Specs]] = {
    prefill: _prefill_specs,
    insert: _insert_specs,
    decode_chunk: _decode_chunk_specs,
    write_states: lambda layout, args: Specs(
        (REPLICATED, REPLICATED, REPLICATED), REPLICATED, False, (0,)
    ),
    finalize: _finalize_specs,
    cancel: lambda layout, args: Specs((DATA_SHARDED, DATA_SHARDED), DATA_SHARDED, False),
    resize_cache: lambda layout, args: Specs((PER_DEVICE, REPLICATED), PER_DEVICE, False),
}
