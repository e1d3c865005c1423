"""The decode step: one pure function of one prompt, read top to bottom as the algorithm.

    forward     the model's log p for the next token of every particle
    step        the sampler weighs, resamples and draws            (samplers/)
    reorder     cache and tokens follow their ancestors, if any particle forked
    record      the drawn tokens are written

The engine scans it over steps and vmaps it over prompts. Letters: N particles, M the population
(N of it running, see ``samplers.base.Particles``), T capacity in generated tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jax_power_smc.core.prng import StepUniforms
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

    sampler: Any
    stop_table: jax.Array | None = None


class PromptInputs(NamedTuple):
    """What stays the same over the steps of one prompt.

    Attributes:
      context: the model's shared context of the prompt.
      target: the prompt's target.
      key: the prompt's key (``prng.prompt_keys``); the engine makes each step's uniform
        numbers from it, the step itself takes them as an argument.
      stop: where the prompt's stop rule begins and ends in the table; None without a table.
    """

    context: Any
    target: TargetArrays
    key: jax.Array
    stop: "StopStates | None" = None


class DecodeState(NamedTuple):
    """What evolves over the steps of one prompt; its structure never changes.

    Attributes:
      particles: weights, log p, flags.
      tokens: [M, T] int32.
      token: [N] int32, the last token of each running row.
      cache: the model's cache, leaves lead with N.
      stop_state: [M] int32, of the stop rule's automaton.
      step: [] int32, t, the index of the next token.
    """

    particles: Particles
    tokens: jax.Array
    token: jax.Array
    cache: Any
    stop_state: jax.Array
    step: jax.Array


class StepInfo(NamedTuple):
    """What one step of one prompt was seen to do.

    Attributes:
      ess: [], effective sample size; N where nothing ran.
      resampled: [] bool.
      forks: [] int32, running rows that took over another one's past.
      parent: [M] int32.
      bad_logits: [] bool, the model gave a NaN, +inf or only -inf.
    """

    ess: jax.Array
    resampled: jax.Array
    forks: jax.Array
    parent: jax.Array
    bad_logits: jax.Array


# Says whether a predicate [] holds for any prompt of the batch. Under vmap it must give an
# unbatched value, or the conditional on it would turn into a select that runs both branches.
AnyPrompt = Callable[[jax.Array], jax.Array]


def any_in_batch(predicate: jax.Array) -> jax.Array:
    """``AnyPrompt`` inside ``vmap(..., axis_name="prompts")``."""
    return jax.lax.pmax(predicate.astype(jnp.int32), "prompts") > 0


def this_prompt(predicate: jax.Array) -> jax.Array:
    """``AnyPrompt`` for a single prompt that is not vmapped."""
    return predicate


def begin(
    model: LanguageModel,
    capacity: int,
    params: Any,
    shared: SharedInputs,
    prompt: PromptInputs,
    logits: jax.Array,
    uniforms: StepUniforms,
    any_prompt: AnyPrompt,
) -> tuple[DecodeState, StepInfo]:
    """Step 0: the first token of every particle, from the logits [V] of the prefill."""
    sampler: Kernel = shared.sampler
    num, size = sampler.num_particles, sampler.population_size
    state = DecodeState(
        particles=sampler.start(weight_dtype(logits)),
        tokens=jnp.full((size, capacity), PAD_ID, jnp.int32),
        token=jnp.full((num,), PAD_ID, jnp.int32),
        cache=None,
        stop_state=jnp.broadcast_to(
            jnp.int32(0) if prompt.stop is None else prompt.stop.start, (size,)
        ),
        step=jnp.zeros((), jnp.int32),
    )
    logits = jnp.broadcast_to(logits[None, :], (num, logits.shape[0]))
    clock = jnp.zeros((), jnp.int32)
    state, info = _propagate(
        model, shared, prompt, state, None, logits, uniforms, clock, any_prompt
    )
    return state._replace(cache=model.init_cache(params, num, capacity)), info


def decode_step(
    model: LanguageModel,
    params: Any,
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
      shared: what all prompts share, the sampler among it.
      prompt: what stays the same for this prompt.
      state: what evolves.
      uniforms: all the randomness of this step.
      clock: [] int32, the entry of the cache that is written; unbatched.
      any_prompt: see ``AnyPrompt``.
    """
    logits, cache = model.decode(
        params, prompt.context, state.cache, state.token, state.step - 1, clock
    )
    return _propagate(model, shared, prompt, state, cache, logits, uniforms, clock, any_prompt)


def finish(
    shared: SharedInputs, prompt: PromptInputs, state: DecodeState, uniforms: jax.Array
) -> FinalWeights:
    """Final weights of one prompt, and the particle drawn with ``uniforms`` [2]."""
    dtype = state.particles.log_weight.dtype
    sampler: Kernel = with_dtype(shared.sampler, dtype)
    return sampler.finish(with_dtype(prompt.target, dtype), state.particles, uniforms)


def is_bad(logits: Logits) -> jax.Array:
    """[] bool: some row of logits [N, V] is not a valid distribution."""
    # The sampler asks for the same normaliser, so it is computed once.
    return jnp.any(normalise(logits).is_bad)


def vocab_sharding(model: Any) -> VocabSharding:
    """How the last axis of a model's logits is sharded."""
    sharding: VocabSharding = getattr(model, "vocabulary", UNSHARDED)
    return sharding


def is_running(particles: Particles, target: TargetArrays, step: jax.Array) -> jax.Array:
    """[] bool: some particle of positive weight has a token to draw at this step."""
    alive = particles.log_weight > -jnp.inf
    return jnp.any(alive & ~particles.ended) & (step < target.cap)


def _propagate(
    model: LanguageModel,
    shared: SharedInputs,
    prompt: PromptInputs,
    state: DecodeState,
    cache: Any,
    logits: jax.Array,
    uniforms: StepUniforms,
    clock: jax.Array,
    any_prompt: AnyPrompt,
) -> tuple[DecodeState, StepInfo]:
    """From the logits [N, V] of the next token to the next state; no cache (None) at step 0."""
    dtype, step = state.particles.log_weight.dtype, state.step
    sampler: Kernel = with_dtype(shared.sampler, dtype)
    target = with_dtype(prompt.target, dtype)
    num = sampler.num_particles
    chex.assert_shape(logits, (num, None))
    scores = Logits(logits.astype(dtype), vocab_sharding(model))
    stop = stop_of(shared, prompt)
    ends = ending_tokens(target, stop, state.stop_state[:num], scores.sharding)
    if stop is None:
        ends = ends[:1]  # the same for all particles
    result = sampler.step(target, state.particles, scores, ends, uniforms, step)
    # A finished prompt is frozen: what its neighbours still need must not change it.
    running = is_running(state.particles, target, step)
    bad = running & is_bad(scores)
    result = _freeze_unless(running, state, result)

    moves = result.parent != jnp.arange(sampler.population_size, dtype=jnp.int32)
    forks = jnp.sum(moves[:num], dtype=jnp.int32)
    cache, tokens = jax.lax.cond(
        any_prompt(jnp.any(moves)),
        lambda: (
            move_cache(model, cache, result.parent[:num], step - 1, clock),
            take_ancestors(state.tokens, result.parent),
        ),
        lambda: (cache, state.tokens),
    )
    token = jnp.where(result.active, result.token, jnp.int32(PAD_ID))
    column = jnp.minimum(step, tokens.shape[1] - 1)
    present = jax.lax.dynamic_slice_in_dim(tokens, column, 1, axis=1)
    written = jnp.where(result.active[:, None], token[:, None], present)
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, written, column, axis=1)

    stop_state = next_stop_state(stop, state.stop_state[result.parent], token, result.active)
    state = DecodeState(result.particles, tokens, token[:num], cache, stop_state, step + 1)
    return state, StepInfo(result.ess, result.resampled, forks, result.parent, bad)


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


def with_dtype(tree: Any, dtype: jnp.dtype) -> Any:
    """The real scalars of a target or sampler in the dtype of the weights."""

    def cast(x: jax.Array) -> jax.Array:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)
