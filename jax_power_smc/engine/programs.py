"""The engine's programs on its prompt slots and its row table.

    start         empty slots and an empty row table
    prefill       reads a group of prompts, or of prefixes, into a cache of its own
    insert        puts prompts into free slots and their rows into free rows
    uniforms      the randomness of a chunk
    decode_chunk  a number of decode steps of all slots; fewer if all prompts are done or stalled
    finalize      final weights and choices of a group of slots
    suspend       takes prompts' rows away; ``insert`` puts them back
    cancel        ends prompts that are no longer wanted
    write_states  writes the states of a stop rule into the table

Those that change the table's size are in ``table_size``. Each is written for the prompts of one
device; on a mesh every data shard runs it for its own (``program_specs``).

Letters: P slots, G prompts or prefixes that enter or leave together, S their padded length, R rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jax_power_smc.core import prng
from jax_power_smc.core.prng import StepUniforms
from jax_power_smc.core.top_k import true_indices
from jax_power_smc.core.types import Cache, Params
from jax_power_smc.engine.state import (
    DecodeState,
    PromptInputs,
    PromptState,
    RowTable,
    SharedInputs,
    is_running,
    no_draw,
    with_dtype,
)
from jax_power_smc.engine.step import Record, decode_step
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.models.cache_moves import insert_rows, release_rows
from jax_power_smc.samplers import FinalWeights, Kernel, Particles

# A function of arrays, and of static keyword arguments such as the model. ``executables`` compiles
# it anew for every executable: ``jax.jit`` of the function itself would keep models and what was
# compiled for them as long as the process runs.
Program: TypeAlias = Callable[..., Any]


class EnteringRows(NamedTuple):
    """G prefixes that were prefilled, all but their last token each.

    Attributes:
      slot: [G] int32, whose prefix it is; P for a place that stays empty.
      token: [G] int32, the last token.
      position: [G] int32, its position.
      stop_state: [G] int32, after that token.
    """

    slot: jax.Array
    token: jax.Array
    position: jax.Array
    stop_state: jax.Array


class Snapshot(NamedTuple):
    """How the prompts of a device stand after a chunk; for the host.

    Attributes:
      prompts: their states, [P, ...]: a copy, from which they can be resumed.
      stop_state: [P, N] int32, that of each particle's row.
      running: [P] bool.
      num_ticks: [1] int32, steps that were run.
      stuck: [1] bool, prompts that have rows are running, and none took the last step.
      in_use: [1] int32, rows that are in use, or spoiled.
      longest: [1] int32, positions of the longest row, its last token included.
      spoiled: [1] bool, whether any row is.
      row_steps: [1] int32, live rows summed over the steps.
      stalls: [1] int32, prompts that stalled, summed over the steps.
    """

    prompts: PromptState
    stop_state: jax.Array
    running: jax.Array
    num_ticks: jax.Array
    stuck: jax.Array
    in_use: jax.Array
    longest: jax.Array
    spoiled: jax.Array
    row_steps: jax.Array
    stalls: jax.Array


class FinishedPrompts(NamedTuple):
    """The outcome of G finished prompts.

    Attributes:
      final: final weights and choices, [G, N].
      particles: the populations, [G, M].
    """

    final: FinalWeights
    particles: Particles


def start(
    params: Params,
    sampler: Kernel,
    *,
    model: LanguageModel,
    num_slots: int,
    num_rows: int,
    capacity: int,
    dtype: jnp.dtype,
) -> DecodeState:
    """P idle slots and R free rows."""
    particles = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (num_slots, *x.shape)), sampler.start(dtype)
    )
    none = jnp.zeros((num_rows,), jnp.int32)
    return DecodeState(
        PromptState(
            particles=particles._replace(ended=jnp.ones_like(particles.ended)),
            row_of=jnp.full((num_slots, sampler.num_particles), num_rows, jnp.int32),
            step=jnp.zeros((num_slots,), jnp.int32),
            stalled=jnp.zeros((num_slots,), bool),
            draw=no_draw(num_slots, sampler.population_size, dtype),
        ),
        RowTable(
            owner=jnp.full((num_rows,), num_slots, jnp.int32),
            token=none,
            position=none,
            stop_state=none,
            spoiled=jnp.zeros((num_rows,), bool),
            cache=model.init_cache(params, num_rows, capacity),
        ),
    )


def prefill(
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    *,
    model: LanguageModel,
    capacity: int,
    block: int | None = None,
) -> Cache:
    """A cache [G] of all but the last token of each sequence: tokens [G, S], lengths [G].

    If S is more than ``block``, that many tokens are read at a time, so that temporary arrays are
    no larger for what a prompt has generated than for a prompt.
    """
    group, columns = tokens.shape
    cache = model.init_cache(params, group, capacity)
    count = jnp.maximum(lengths - 1, 0)
    # The logits are not used, so the head is compiled away.
    if block is None or columns <= block:
        return model.extend(params, cache, tokens, jnp.zeros_like(count), count)[1]
    blocks = -(-columns // block)
    tokens = jnp.pad(tokens, ((0, 0), (0, blocks * block - columns)))

    def read(index: jax.Array, cache: Cache) -> Cache:
        first = index * block
        piece = jax.lax.dynamic_slice_in_dim(tokens, first, block, axis=1)
        position = jnp.minimum(count, first)
        return model.extend(params, cache, piece, position, jnp.minimum(count - position, block))[1]

    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(blocks), read, cache)


def insert(
    inputs: PromptInputs,
    state: DecodeState,
    entering: PromptInputs,
    prompts: PromptState,
    slots: jax.Array,
    rows: EnteringRows,
    prefilled: Cache,
    *,
    model: LanguageModel,
) -> tuple[PromptInputs, DecodeState]:
    """Puts prompts into slots, and prefixes into rows that are free.

    There must be enough free rows. A prompt with more prefixes than places takes several calls,
    in which each time its own ``row_of`` names the places of the prefixes in that call.

    Args:
      inputs, state: of all slots; ``state`` is donated.
      entering, prompts: of those that enter, [G, ...]. ``row_of`` holds places in ``rows``, G for
        particles without a row or with one that another call brings.
      slots: [G] int32, P and beyond means none.
      rows, prefilled: the prefixes, and their cache.
    """
    num_slots, num_rows = state.prompts.row_of.shape[0], state.rows.owner.shape[0]
    group = rows.slot.shape[0]
    table = state.rows
    is_free = (table.owner >= num_slots) & ~table.spoiled
    free = true_indices(is_free, group, fill_value=num_rows)
    where = jnp.where(rows.slot < num_slots, free, num_rows)

    def put(x: jax.Array, y: jax.Array, at: jax.Array) -> jax.Array:
        return x.at[at].set(y, mode="drop")

    inputs = jax.tree.map(lambda x, y: put(x, y, slots), inputs, entering)
    brought = prompts.row_of < group
    row_of = jnp.where(brought, where[jnp.minimum(prompts.row_of, group - 1)], num_rows)
    # What an earlier call has brought stays.
    before = state.prompts.row_of[jnp.minimum(slots, num_slots - 1)]
    fresh = jnp.all(before >= num_rows, axis=1, keepdims=True)
    row_of = jnp.where(brought | fresh, row_of, before)
    entered = jax.tree.map(
        lambda x, y: put(x, y, slots), state.prompts, prompts._replace(row_of=row_of)
    )
    cache = insert_rows(model, release_rows(model, table.cache, is_free), where, prefilled)
    table = RowTable(
        owner=put(table.owner, rows.slot, where),
        token=put(table.token, rows.token, where),
        position=put(table.position, rows.position, where),
        stop_state=put(table.stop_state, rows.stop_state, where),
        spoiled=table.spoiled,
        cache=cache,
    )
    return inputs, DecodeState(entered, table)


def uniforms(
    key: jax.Array, step: jax.Array, *, population: int, dtype: jnp.dtype, num_ticks: int
) -> StepUniforms:
    """The numbers for the next ``num_ticks`` steps of every prompt, [P, num_ticks, M].

    A program of its own, since it does not depend on the size of the row table. Inside the chunk it
    would be a fifth of the time to compile (tiny-reasoner, N = 16, R = 128, two CPU cores: 0.9 of 5
    seconds), and be computed step by step.

    Args:
      key: [P], of the prompts.
      step: [P] int32, their next steps.
      population, dtype: M, and the dtype of weights.
      num_ticks: of the chunk.
    """

    def of_prompt(key: jax.Array, step: jax.Array) -> StepUniforms:
        steps = step + jnp.arange(num_ticks, dtype=jnp.int32)
        return jax.vmap(lambda step: prng.step_uniforms(key, step, population, dtype))(steps)

    return jax.vmap(of_prompt)(key, step)


def decode_chunk(
    params: Params,
    shared: SharedInputs,
    inputs: PromptInputs,
    state: DecodeState,
    numbers: StepUniforms,
    row_limit: jax.Array,
    *,
    model: LanguageModel,
    num_ticks: int,
) -> tuple[DecodeState, Record, Snapshot]:
    """At most ``num_ticks`` steps; it ends early when all prompts are done or stalled.

    ``numbers`` are those of ``uniforms``, from the prompts' present steps on.

    Returns:
      The state; what was recorded, [P, num_ticks, ...]; and how the prompts stand.
    """
    slots, num_rows = state.prompts.row_of.shape[0], state.rows.owner.shape[0]
    population = shared.sampler.population_size
    dtype, first = state.prompts.particles.log_weight.dtype, state.prompts.step

    def running(state: DecodeState) -> jax.Array:
        return is_running(state.prompts.particles, inputs.target, state.prompts.step)

    def step(state: DecodeState) -> tuple[DecodeState, Record]:
        # By steps, not by ticks: a prompt that stalls in a tick takes no step.
        at = state.prompts.step - first
        now = jax.tree.map(lambda x: x[jnp.arange(slots, dtype=jnp.int32), at], numbers)
        return decode_step(model, params, shared, inputs, state, now, row_limit)

    none = jnp.zeros((slots,), jnp.int32)
    nothing = Record(none - 1, *no_draw(slots, population, dtype), num_rows=none, copies=none)
    records: Record = jax.tree.map(lambda x: jnp.repeat(x[:, None], num_ticks, axis=1), nothing)
    zero = jnp.zeros((), jnp.int32)
    Carry: TypeAlias = tuple[DecodeState, Record, jax.Array, jax.Array, jax.Array, jax.Array]

    def has_rows(state: DecodeState) -> jax.Array:
        return jnp.any(state.prompts.row_of < num_rows, axis=1)

    def go_on(carry: Carry) -> jax.Array:
        state, _, tick, moving, _, _ = carry
        return (tick < num_ticks) & moving & jnp.any(running(state) & has_rows(state))

    def body(carry: Carry) -> Carry:
        state, records, tick, _, row_steps, stalls = carry
        live = jnp.sum(state.rows.owner < slots, dtype=jnp.int32)
        state, record = step(state)
        records = jax.tree.map(
            lambda xs, x: jax.lax.dynamic_update_index_in_dim(xs, x, tick, axis=1),
            records,
            record,
        )
        stalled = jnp.sum(state.prompts.stalled & has_rows(state), dtype=jnp.int32)
        # If no prompt took this step, the next one would find everything as it was.
        moving = jnp.any(record.step >= 0)
        return state, records, tick + 1, moving, row_steps + live, stalls + stalled

    start = (state, records, zero, jnp.ones((), bool), zero, zero)
    state, records, tick, moving, row_steps, stalls = jax.lax.while_loop(go_on, body, start)
    owned = state.rows.owner < slots
    spoiled = state.rows.spoiled
    snapshot = Snapshot(
        prompts=state.prompts,
        stop_state=state.rows.stop_state[jnp.minimum(state.prompts.row_of, num_rows - 1)],
        running=running(state),
        num_ticks=tick[None],
        stuck=(~moving & jnp.any(running(state) & has_rows(state)))[None],
        in_use=jnp.sum(owned | spoiled, dtype=jnp.int32)[None],
        longest=jnp.max(jnp.where(owned, state.rows.position + 1, 0))[None],
        spoiled=jnp.any(spoiled)[None],
        row_steps=row_steps[None],
        stalls=stalls[None],
    )
    return state, records, snapshot


def finalize(
    shared: SharedInputs, inputs: PromptInputs, prompts: PromptState, index: jax.Array
) -> FinishedPrompts:
    """Final weights and choices of the slots ``index`` [G] int32."""
    inputs, prompts = jax.tree.map(lambda x: x[index], (inputs, prompts))
    dtype = prompts.particles.log_weight.dtype
    sampler: Kernel = with_dtype(shared.sampler, dtype)
    uniforms = jax.vmap(lambda key: prng.final_uniforms(key, dtype))(inputs.key)
    target = with_dtype(inputs.target, dtype)
    final = jax.vmap(sampler.finish)(target, prompts.particles, uniforms)
    return FinishedPrompts(final, prompts.particles)


def suspend(
    row_of: jax.Array, owner: jax.Array, unwanted: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Takes the rows of the prompts where [P] bool: ``row_of`` [P, N], ``owner`` [R]."""
    slots, rows = row_of.shape[0], owner.shape[0]
    taken = (owner < slots) & unwanted[jnp.minimum(owner, slots - 1)]
    return jnp.where(unwanted[:, None], rows, row_of), jnp.where(taken, slots, owner)


def cancel(cap: jax.Array, unwanted: jax.Array) -> jax.Array:
    """The caps [P], 0 for unwanted prompts [P] bool, which then take no further step."""
    return jnp.where(unwanted, jnp.zeros_like(cap), cap)


def write_states(table: jax.Array, states: jax.Array, first: jax.Array) -> jax.Array:
    """A table [S, V] with ``states`` [n, V] written from ``first`` [] on, in place."""
    return jax.lax.dynamic_update_slice_in_dim(table, states, first, axis=0)
