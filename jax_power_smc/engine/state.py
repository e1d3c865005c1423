"""What the decode step carries: prompts with their particles, and the row table.

A row is a sequence in the model's cache: a prompt and what was generated after it. A prompt needs
one row for each distinct prefix among its running particles, and particles point to rows:

    particle   0 1 2 3 4 5        row_of   7 7 2 7 2 9        three rows for six particles

The rows of all prompts of a device form one table. Letters: P prompt slots, R rows, N particles, M
the population (``samplers.base.Particles``), V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_power_smc.core.types import Cache
from jax_power_smc.core.vocab_sharding import UNSHARDED, VocabSharding
from jax_power_smc.samplers.base import Kernel, Particles
from jax_power_smc.targets.power import TargetArrays
from jax_power_smc.targets.stop_arrays import StopStates

# Written after the end of a sequence. Lengths, not this id, say where a sequence ends.
PAD_ID = 0


class SharedInputs(NamedTuple):
    """What all prompts share.

    Attributes:
      sampler: the sampler, with its numbers traced.
      end_sets: [E, V] bool, the different sets of end tokens.
      stop_table: [states, V] int16, the states of all stop rules (``StopArrays``); None if no
        prompt has one.
    """

    sampler: Kernel
    end_sets: jax.Array
    stop_table: jax.Array | None = None


class PromptInputs(NamedTuple):
    """What stays the same over the steps of P prompts.

    Attributes:
      target: leaves [P]; without the end tokens.
      end_set: [P] int32, which of the end sets is the prompt's.
      key: [P] (``prng.prompt_keys``).
      order: [P] int32, of arrival; earlier prompts get rows first.
      stop: where the prompt's stop rule begins and ends in the table; None without a table.
    """

    target: TargetArrays
    end_set: jax.Array
    key: jax.Array
    order: jax.Array
    stop: StopStates | None = None


class Draw(NamedTuple):
    """What a step of P prompts decided, see ``samplers.base.StepResult``.

    Attributes:
      parent, token, log_prob, active: [P, M].
      ess, resampled: [P].
      bad_logits: [P] bool, the model returned a NaN, +inf or only -inf for some particle.
    """

    parent: jax.Array
    token: jax.Array
    log_prob: jax.Array
    active: jax.Array
    ess: jax.Array
    resampled: jax.Array
    bad_logits: jax.Array


class PromptState(NamedTuple):
    """What evolves over the steps of P prompts.

    Attributes:
      particles: leaves [P, M] or [P].
      row_of: [P, N] int32, the row of each running particle's prefix; R for a particle without one.
      step: [P] int32, t, the index of the token to come.
      stalled: [P] bool: the tokens of step t are drawn, ``particles`` and ``draw`` have them, but
        there were not enough rows for the new prefixes.
      draw: of step t while stalled; meaningless otherwise.
    """

    particles: Particles
    row_of: jax.Array
    step: jax.Array
    stalled: jax.Array
    draw: Draw


class RowTable(NamedTuple):
    """R rows of the model's cache.

    Attributes:
      owner: [R] int32, the prompt slot that a row belongs to; P for a free row.
      token: [R] int32, the last token of the sequence, which the cache does not hold yet (only that
        of a stalled prompt does).
      position: [R] int32, its position.
      stop_state: [R] int32, of the stop rule's automaton after that token.
      spoiled: [R] bool, rows whose logits were invalid; they are not used before they are reset.
      cache: the model's cache.
    """

    owner: jax.Array
    token: jax.Array
    position: jax.Array
    stop_state: jax.Array
    spoiled: jax.Array
    cache: Cache


class DecodeState(NamedTuple):
    """Everything that evolves over the steps; its structure never changes."""

    prompts: PromptState
    rows: RowTable


def no_draw(num_prompts: int, population_size: int, dtype: jnp.dtype) -> Draw:
    """A placeholder for a ``Draw``."""
    each, one = (num_prompts, population_size), (num_prompts,)
    return Draw(
        parent=jnp.zeros(each, jnp.int32),
        token=jnp.full(each, PAD_ID, jnp.int32),
        log_prob=jnp.zeros(each, dtype),
        active=jnp.zeros(each, bool),
        ess=jnp.zeros(one, dtype),
        resampled=jnp.zeros(one, bool),
        bad_logits=jnp.zeros(one, bool),
    )


def is_running(particles: Particles, target: TargetArrays, step: jax.Array) -> jax.Array:
    """Some particle of positive weight has a token to draw at this step: [] of one prompt, or [P].

    Leaves of ``particles`` [..., M].
    """
    alive = particles.log_weight > -jnp.inf
    return jnp.any(alive & ~particles.ended, axis=-1) & (step < target.cap)


def vocab_sharding(model: Any) -> VocabSharding:
    """How the last axis of a model's logits is sharded."""
    sharding: VocabSharding = getattr(model, "vocabulary", UNSHARDED)
    return sharding


def with_dtype(tree: Any, dtype: jnp.dtype) -> Any:
    """The real scalars of a target or sampler in the dtype of the weights."""

    def cast(x: jax.Array) -> jax.Array:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)
