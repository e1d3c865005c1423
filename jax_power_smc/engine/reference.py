"""The decode step: one pure function of one prompt, which reads top to bottom as the algorithm.

    forward                  the model's log p of every particle's next token (docs/math.md, eq. 2)
    weigh, resample, draw    the sampler's own work and order (``samplers``; eqs. 11 to 24)
    reorder                  cache and tokens follow each particle's parent
    record                   the drawn tokens are written

The engine scans it over steps and vmaps it over prompts. Letters: N particles, M the population
(N of it running, see ``samplers.base.Particles``), T capacity in generated tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jax_power_smc.core.prng import StepUniforms
from jax_power_smc.core.types import Cache, Context, Params
from jax_power_smc.core.vocab_sharding import UNSHARDED, Logits, VocabSharding
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.models.cache_moves import move_cache, take_ancestors
from jax_power_smc.samplers.base import FinalWeights, Kernel, Particles, StepResult
from jax_power_smc.samplers.proposal import normalise
from jax_power_smc.smc.weights import weight_dtype
from jax_power_smc.targets.power import TargetArrays
from jax_power_smc.targets.stop_arrays import StopArrays, StopStates, ending_tokens, next_stop_state

# Written after the end of a sequence. Lengths, not this id, say where a sequence ends.
PAD_ID = 0


class SharedInputs(NamedTuple):
    """What all prompts of a batch share; vmap does not map over it.

    Attributes:
      sampler: the sampler, with its numbers traced.
      stop_table: [states, V] int16, the states of all stop rules (``StopArrays``); None if no
        prompt has one.
    """

    sampler: Kernel
    stop_table: jax.Array | None = None


class PromptInputs(NamedTuple):
    """What stays the same over the steps of one prompt.

    Attributes:
      context: the model's shared context of the prompt.
      target: the prompt's target.
      key: the prompt's key (``prng.prompt_keys``). The engine makes each step's uniform numbers
        from it; the step itself takes them as an argument.
      stop: where the prompt's stop rule begins and ends in the table; None without a table.
    """

    context: Context
    target: TargetArrays
    key: jax.Array
    stop: StopStates | None = None


class DecodeState(NamedTuple):
    """What evolves over the steps of one prompt; its structure never changes.

    Attributes:
      particles: weights, log p, flags; leaves [M] or [].
      tokens: [M, T] int32.
      token: [N] int32, the last token of each running particle.
      cache: the model's cache, leaves lead with N.
      stop_state: [M] int32, of the stop rule's automaton.
      step: [] int32, t, the index of the next token.
    """

    particles: Particles
    tokens: jax.Array
    token: jax.Array
    cache: Cache
    stop_state: jax.Array
    step: jax.Array


class StepInfo(NamedTuple):
    """What was observed in one step of one prompt.

    Attributes:
      ess: [], effective sample size; N if the prompt had finished.
      resampled: [] bool.
      forks: [] int32, running particles that continue another one's past.
      parent: [M] int32.
      bad_logits: [] bool, the model returned a NaN, +inf or only -inf.
    """

    ess: jax.Array
    resampled: jax.Array
    forks: jax.Array
    parent: jax.Array
    bad_logits: jax.Array


# Whether a predicate [] holds for any prompt of the batch. Under vmap it must return an unbatched
# value, or the conditional on it would turn into a select that runs both branches.
AnyPrompt = Callable[[jax.Array], jax.Array]


def any_in_batch(predicate: jax.Array) -> jax.Array:
    """``AnyPrompt`` inside ``vmap(..., axis_name="prompts")``."""
    return jax.lax.pmax(predicate.astype(jnp.int32), "prompts") > 0


def this_prompt(predicate: jax.Array) -> jax.Array:
    """``AnyPrompt`` for a single prompt that is not vmapped."""
    return predicate


# --- The algorithm ----------------------------------------------------------------------------


def begin(
    model: LanguageModel,
    capacity: int,
    params: Params,
    shared: SharedInputs,
    prompt: PromptInputs,
    logits: jax.Array,
    uniforms: StepUniforms,
    any_prompt: AnyPrompt,
) -> tuple[DecodeState, StepInfo]:
    """Step 0: the first token of every particle, from the logits [V] of the prefill."""
    num, size = shared.sampler.num_particles, shared.sampler.population_size
    start = jnp.int32(0) if prompt.stop is None else prompt.stop.start
    zero = jnp.zeros((), jnp.int32)
    state = DecodeState(
        particles=shared.sampler.start(weight_dtype(logits)),
        tokens=jnp.full((size, capacity), PAD_ID, jnp.int32),
        token=jnp.full((num,), PAD_ID, jnp.int32),
        cache=None,
        stop_state=jnp.broadcast_to(start, (size,)),
        step=zero,
    )
    logits = jnp.broadcast_to(logits[None, :], (num, logits.shape[0]))
    state, info = _advance(model, shared, prompt, state, logits, uniforms, zero, any_prompt)
    return state._replace(cache=model.init_cache(params, num, capacity)), info


def decode_step(
    model: LanguageModel,
    params: Params,
    shared: SharedInputs,
    prompt: PromptInputs,
    state: DecodeState,
    uniforms: StepUniforms,
    clock: jax.Array,
    any_prompt: AnyPrompt,
) -> tuple[DecodeState, StepInfo]:
    """One step t >= 1 of one prompt.

    Args:
      model: static.
      params: the model's parameters.
      shared: the sampler, and what else all prompts share.
      prompt: what stays the same for this prompt.
      state: what evolves.
      uniforms: all the randomness of this step.
      clock: [] int32, the entry of the cache that is written; unbatched.
      any_prompt: see ``AnyPrompt``.
    """
    # Forward.
    logits, cache = model.decode(
        params, prompt.context, state.cache, state.token, state.step - 1, clock
    )
    state = state._replace(cache=cache)
    return _advance(model, shared, prompt, state, logits, uniforms, clock, any_prompt)


def _advance(
    model: LanguageModel,
    shared: SharedInputs,
    prompt: PromptInputs,
    state: DecodeState,
    logits: jax.Array,
    uniforms: StepUniforms,
    clock: jax.Array,
    any_prompt: AnyPrompt,
) -> tuple[DecodeState, StepInfo]:
    """The step after the forward pass: logits [N, V]; at t = 0 there is no cache (None)."""
    step, dtype = state.step, state.particles.log_weight.dtype
    sampler: Kernel = with_dtype(shared.sampler, dtype)
    target: TargetArrays = with_dtype(prompt.target, dtype)
    num, own = sampler.num_particles, jnp.arange(sampler.population_size, dtype=jnp.int32)
    chex.assert_shape(logits, (num, None))
    scores = Logits(logits.astype(dtype), vocab_sharding(model))
    stop = stop_of(shared, prompt)
    ends = ending_tokens(target, stop, state.stop_state[:num], scores.sharding)
    if stop is None:
        ends = ends[:1]  # the same for all particles

    # Weigh, resample, draw.
    result = sampler.step(target, state.particles, scores, ends, uniforms, step)
    # A finished prompt is frozen: steps that its neighbours still need must not change it.
    running = is_running(state.particles, target, step)
    result = _freeze_unless(running, state, result)

    # Reorder, if any particle of any prompt continues another one's past.
    moves = result.parent != own
    cache, tokens = jax.lax.cond(
        any_prompt(jnp.any(moves)),
        lambda: (
            move_cache(model, state.cache, result.parent[:num], step - 1, clock),
            take_ancestors(state.tokens, result.parent),
        ),
        lambda: (state.cache, state.tokens),
    )
    stop_state = state.stop_state[result.parent]

    # Record.
    token = jnp.where(result.active, result.token, jnp.int32(PAD_ID))
    tokens = _write_column(tokens, step, token, result.active)
    stop_state = next_stop_state(stop, stop_state, token, result.active)
    info = StepInfo(
        ess=result.ess,
        resampled=result.resampled,
        forks=jnp.sum(moves[:num], dtype=jnp.int32),
        parent=result.parent,
        bad_logits=running & is_bad(scores),
    )
    return DecodeState(result.particles, tokens, token[:num], cache, stop_state, step + 1), info


def finish(
    shared: SharedInputs, prompt: PromptInputs, state: DecodeState, uniforms: jax.Array
) -> FinalWeights:
    """Final weights of one prompt, and the particle drawn with ``uniforms`` [2]."""
    particles = state.particles
    dtype = particles.log_weight.dtype
    sampler: Kernel = with_dtype(shared.sampler, dtype)
    return sampler.finish(with_dtype(prompt.target, dtype), particles, uniforms)


# --- Its parts --------------------------------------------------------------------------------


def is_running(particles: Particles, target: TargetArrays, step: jax.Array) -> jax.Array:
    """[] bool: some particle of positive weight has a token to draw at this step."""
    alive = particles.log_weight > -jnp.inf
    return jnp.any(alive & ~particles.ended) & (step < target.cap)


def is_bad(logits: Logits) -> jax.Array:
    """[] bool: logits [N, V] of some particle are not a valid distribution."""
    # The sampler uses the same normaliser, so it is computed once.
    return jnp.any(normalise(logits).is_bad)


def vocab_sharding(model: Any) -> VocabSharding:
    """How the last axis of a model's logits is sharded."""
    sharding: VocabSharding = getattr(model, "vocabulary", UNSHARDED)
    return sharding


def stop_of(shared: SharedInputs, prompt: PromptInputs) -> StopArrays | None:
    """The stop rule of one prompt."""
    if shared.stop_table is None or prompt.stop is None:
        return None
    return StopArrays(shared.stop_table, prompt.stop)


def _freeze_unless(running: jax.Array, state: DecodeState, result: StepResult) -> StepResult:
    frozen = StepResult(
        particles=state.particles,
        parent=jnp.arange(result.parent.shape[0], dtype=jnp.int32),
        token=jnp.full_like(result.token, PAD_ID),
        active=jnp.zeros_like(result.active),
        ess=jnp.full_like(result.ess, state.token.shape[0]),
        resampled=jnp.zeros_like(result.resampled),
    )
    return jax.tree.map(lambda a, b: jnp.where(running, a, b), result, frozen)


def _write_column(
    tokens: jax.Array, step: jax.Array, token: jax.Array, active: jax.Array
) -> jax.Array:
    """tokens [M, T] with token [M] in column ``step`` where active [M]."""
    column = jnp.minimum(step, tokens.shape[1] - 1)
    present = jax.lax.dynamic_slice_in_dim(tokens, column, 1, axis=1)
    written = jnp.where(active[:, None], token[:, None], present)
    return jax.lax.dynamic_update_slice_in_dim(tokens, written, column, axis=1)


def with_dtype(tree: Any, dtype: jnp.dtype) -> Any:
    """The real scalars of a target or sampler in the dtype of the weights."""

    def cast(x: jax.Array) -> jax.Array:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)
