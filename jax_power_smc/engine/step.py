"""The decode step by rows, for all prompts of a device. It reads top to bottom as the algorithm.

    forward    the model's logits of every distinct prefix (docs/math.md, eq. 2)
    tables     what the sampler needs of them, once per prefix
    advance    each prompt weighs, resamples or selects, and draws (``samplers``; eqs. 11 to 24)
    seat       equal prefixes share a row; a prompt that does not get all its rows stalls
    move       rows are copied for new prefixes
    record     what was decided, from which the host reads the tokens

``engine.reference`` is the same algorithm with a row per particle: its specification, and what the
tests compare it with. Letters: P prompt slots, R rows, N particles, M the population, V vocabulary.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jax_power_smc.core.prng import StepUniforms
from jax_power_smc.core.top_k import true_indices
from jax_power_smc.core.types import Params
from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.engine import rows as row_table
from jax_power_smc.engine.state import (
    DecodeState,
    Draw,
    PromptInputs,
    PromptState,
    RowTable,
    SharedInputs,
    is_running,
    vocab_sharding,
    with_dtype,
)
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.models.cache_moves import move_rows
from jax_power_smc.samplers.base import Kernel, RowTargets
from jax_power_smc.targets.power import TargetArrays, support


class Record(NamedTuple):
    """What one step of P prompts decided, once it is seated; [P, ...].

    Attributes:
      step: [P] int32, the step's index t; -1 for a prompt that took no step.
      parent, token, log_prob, active: [P, M], see ``Draw``.
      ess, resampled, bad_logits: [P].
      num_rows: [P] int32, the prompt's rows after the step.
      copies: [P] int32, rows that were copied.
    """

    step: jax.Array
    parent: jax.Array
    token: jax.Array
    log_prob: jax.Array
    active: jax.Array
    ess: jax.Array
    resampled: jax.Array
    bad_logits: jax.Array
    num_rows: jax.Array
    copies: jax.Array


def decode_step(
    model: LanguageModel,
    params: Params,
    shared: SharedInputs,
    inputs: PromptInputs,
    state: DecodeState,
    uniforms: StepUniforms,
    row_limit: jax.Array,
) -> tuple[DecodeState, Record]:
    """One step of every prompt that runs and has its rows.

    Args:
      model: static.
      params: the model's parameters.
      shared: the sampler, and what else all prompts share.
      inputs: what stays the same for each prompt.
      state: what evolves.
      uniforms: all the randomness of the step, [P, M].
      row_limit: [] int32, as many rows may be in use; more only if they are already.
    """
    prompts, rows = state
    num_rows, slots = rows.owner.shape[0], prompts.row_of.shape[0]
    dtype = prompts.particles.log_weight.dtype
    sampler: Kernel = with_dtype(shared.sampler, dtype)
    target: TargetArrays = with_dtype(inputs.target, dtype)
    # A prompt without rows is suspended, or has finished.
    holds = jnp.zeros((slots,), jnp.int32).at[rows.owner].add(1, mode="drop")
    draws = is_running(prompts.particles, target, prompts.step) & ~prompts.stalled & (holds > 0)
    owner = jnp.minimum(rows.owner, slots - 1)
    live_rows = (rows.owner < slots) & draws[owner]

    # Forward.
    logits, cache = model.extend(
        params, rows.cache, rows.token[:, None], rows.position, live_rows.astype(jnp.int32)
    )
    chex.assert_shape(logits, (num_rows, 1, None))
    # Written once: recomputing them for every reader would be a pass over the head each.
    logits = jax.lax.optimization_barrier(logits[:, 0].astype(dtype))

    # Tables.
    scores = Logits(logits, vocab_sharding(model))
    targets = _row_targets(sampler, shared, inputs, target, rows, owner, prompts.step, scores)
    tables = sampler.tables(scores, targets)
    spoiled = rows.spoiled | (live_rows & tables.is_bad)

    # Advance.
    row = jnp.minimum(prompts.row_of, num_rows - 1)
    result = jax.vmap(sampler.advance, in_axes=(0, 0, 0, None, 0, 0))(
        target, prompts.particles, row, tables, uniforms, prompts.step
    )
    has_row = prompts.row_of < num_rows
    decided = Draw(
        *(result.parent, result.token, result.log_prob, result.active),
        *(result.ess, result.resampled),
        bad_logits=jnp.any(has_row & tables.is_bad[row], axis=1),
    )
    particles = _where(draws, result.particles, prompts.particles)
    draw: Draw = _where(draws, decided, prompts.draw)
    ready = draws | (prompts.stalled & (holds > 0))

    # Seat.
    count = prompts.row_of.shape[1]
    live = (
        draw.active[:, :count]
        & ~particles.ended[:, :count]
        & (particles.log_weight[:, :count] > -jnp.inf)
        & (ready & (prompts.step + 1 < target.cap))[:, None]
    )
    row = jnp.take_along_axis(row, draw.parent[:, :count], axis=1)
    token = draw.token[:, :count]
    prefixes = row_table.distinct_prefixes(
        live, row, token, num_rows, scores.vocab_size, sampler.all_distinct
    )
    wants = jnp.sum(prefixes.keeps | prefixes.copies, axis=1, dtype=jnp.int32)
    # A row that is spoiled now is given back below, but cannot be handed out.
    in_use = jnp.sum(holds, dtype=jnp.int32) + jnp.sum(spoiled, dtype=jnp.int32)
    num_free = jnp.minimum(row_limit, num_rows) - in_use
    proceeds = row_table.may_proceed(inputs.order, holds, wants, num_free)
    keeps, copies = (x & proceeds[:, None] for x in (prefixes.keeps, prefixes.copies))
    stays = jnp.zeros((num_rows,), bool).at[jnp.where(keeps, row, num_rows)].set(True, mode="drop")
    stays = (rows.owner < slots) & (stays | ~proceeds[owner])
    new_row = row_table.hand_out(copies.reshape(-1), ~stays & ~spoiled).reshape(copies.shape)
    seat = jnp.where(keeps, row, new_row)
    row_of = jnp.where(live, seat.reshape(-1)[prefixes.leader], num_rows)
    row_of = jnp.where(proceeds[:, None], row_of, prompts.row_of)

    # Move: sources stay, and destinations were free, so the order does not matter.
    number = jnp.sum(copies, dtype=jnp.int32)
    at = true_indices(copies.reshape(-1), num_rows, fill_value=0)
    source = row.reshape(-1)[at]
    cache = move_rows(
        model, cache, source, new_row.reshape(-1)[at], rows.position[source] + 1, number
    )

    # The rows of the prefixes that were seated.
    def write(x: jax.Array, values: jax.Array) -> jax.Array:
        return x.at[seat].set(values, mode="drop")

    stop_state = rows.stop_state[row]
    if shared.stop_table is not None:
        stop_state = shared.stop_table[stop_state, token].astype(jnp.int32)
    slot = jnp.arange(slots, dtype=jnp.int32)[:, None]
    rows = RowTable(
        owner=write(jnp.where(stays, rows.owner, slots), jnp.broadcast_to(slot, seat.shape)),
        token=write(rows.token, token),
        position=write(rows.position, rows.position[row] + 1),
        stop_state=write(rows.stop_state, stop_state),
        spoiled=spoiled,
        cache=cache,
    )

    # Record.
    steps = ready & proceeds
    record = Record(
        jnp.where(steps, prompts.step, -1),
        *draw,
        num_rows=wants,
        copies=jnp.sum(copies, axis=1, dtype=jnp.int32),
    )
    prompts = PromptState(
        particles=particles,
        row_of=row_of,
        step=prompts.step + steps.astype(jnp.int32),
        stalled=jnp.where(ready, ~proceeds, prompts.stalled),
        draw=draw,
    )
    return DecodeState(prompts, rows), record


def _row_targets(
    sampler: Kernel,
    shared: SharedInputs,
    inputs: PromptInputs,
    target: TargetArrays,
    rows: RowTable,
    owner: jax.Array,
    step: jax.Array,
    logits: Logits,
) -> RowTargets:
    """What the prompts at ``owner`` [R] ask of the next token of their rows."""
    ends = shared.end_sets
    if ends.shape[0] > 1:
        ends = ends[inputs.end_set[owner]]
    if shared.stop_table is not None:
        assert inputs.stop is not None
        after = logits.sharding.local_slice(shared.stop_table)[rows.stop_state]
        ends = ends | (after == inputs.stop.final[owner][:, None])
    of_row = jax.tree.map(lambda x: x[owner], target)
    return RowTargets(
        exponent=jax.vmap(sampler.exponent)(of_row, step[owner]),
        ends=ends,
        allowed=support(logits, of_row, ends, step[owner]),
    )


def _where(which: jax.Array, new: Any, old: Any) -> Any:
    """Leaves [P, ...]: the new ones of the prompts where [P] bool."""

    def select(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(which.reshape(-1, *(1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(select, new, old)
