"""The decode step: one pure function of one prompt, read top to bottom as the algorithm.

    forward     the model's log p for the next token of every particle
    advance     the sampler weighs, resamples and draws            (samplers/)
    reorder     cache rows and tokens follow their ancestors, if anyone forked
    record      the drawn tokens are written

The engine scans it over steps and vmaps it over prompts. Letters: N particles, M rows of sequences
(N of them running, see ``samplers.base.Particles``), T capacity in generated tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc.language_model import LanguageModel, move_cache, take_ancestors
from jax_power_smc.proposal import normalise
from jax_power_smc.randomness import StepUniforms
from jax_power_smc.samplers.base import Outcome, Particles, Rule, Selection
from jax_power_smc.stop import StopRule, compile_stop
from jax_power_smc.target import TargetArrays
from jax_power_smc.vocabulary import WHOLE, Vocabulary

# Written after the end of a sequence. Lengths, not this id, say where a sequence ends.
PAD_ID = 0


class Request(NamedTuple):
    """What stays the same over the steps of one prompt.

    Attributes:
      context: the model's shared context of the prompt.
      target: the prompt's target.
      numbers: the sampler's traced scalars.
      key: the prompt's key (``randomness.prompt_keys``); the engine makes each step's uniform
        numbers from it, the step itself takes them as an argument.
      stop: the stop rule; None if no prompt has one.
    """

    context: Any
    target: TargetArrays
    numbers: Any
    key: jax.Array
    stop: "StopArrays | None" = None


class StopArrays(NamedTuple):
    """A stop rule as the step looks it up (``stop.StopTable``).

    Attributes:
      next_state: [states, V] int16, the state after a token; one table for all prompts, in which
        each rule has states of its own. Whole on every device, whatever the vocabulary is. None
        where nobody looks anything up.
      start: [] int32, the state before the first token.
      final: [] int16, the state in which the match is complete; -1 if there is no rule.
    """

    next_state: jax.Array
    start: jax.Array
    final: jax.Array


class Carry(NamedTuple):
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


class Observed(NamedTuple):
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
    rule: Rule,
    capacity: int,
    params: Any,
    request: Request,
    logits: jax.Array,
    uniforms: StepUniforms,
    any_prompt: AnyPrompt,
) -> tuple[Carry, Observed]:
    """Step 0: the first token of every particle, from the logits [V] of the prefill."""
    num = rule.num_particles
    dtype = weight_dtype(logits)
    carry = Carry(
        particles=rule.start(dtype),
        tokens=jnp.full((rule.num_rows, capacity), PAD_ID, jnp.int32),
        token=jnp.full((num,), PAD_ID, jnp.int32),
        cache=None,
        stop_state=jnp.broadcast_to(
            jnp.int32(0) if request.stop is None else request.stop.start, (rule.num_rows,)
        ),
        step=jnp.zeros((), jnp.int32),
    )
    logits = jnp.broadcast_to(logits[None, :], (num, logits.shape[0]))
    clock = jnp.zeros((), jnp.int32)
    carry, observed = _propagate(
        model, rule, request, carry, None, logits, uniforms, clock, any_prompt
    )
    return carry._replace(cache=model.init_cache(params, num, capacity)), observed


def decode_step(
    model: LanguageModel,
    rule: Rule,
    params: Any,
    request: Request,
    carry: Carry,
    uniforms: StepUniforms,
    clock: jax.Array,
    any_prompt: AnyPrompt,
) -> tuple[Carry, Observed]:
    """One step t >= 1 of one prompt.

    Args:
      model, rule: static.
      params: the model's parameters.
      request: what stays the same.
      carry: what evolves.
      uniforms: all the randomness of this step.
      clock: [] int32, the entry of the cache that is written; unbatched.
      any_prompt: see ``AnyPrompt``.
    """
    logits, cache = model.decode(
        params, request.context, carry.cache, carry.token, carry.step - 1, clock
    )
    return _propagate(model, rule, request, carry, cache, logits, uniforms, clock, any_prompt)


def finish(rule: Rule, request: Request, carry: Carry, uniforms: jax.Array) -> Outcome:
    """Final weights of one prompt, and the particle drawn with ``uniforms`` [2].

    The evidence travels as ``hide_none`` says.
    """
    request = _with_dtype(request, carry.particles.log_weight.dtype)
    return hide_none(rule.finish(request.numbers, request.target, carry.particles, uniforms))


def hide_none(outcome: Outcome) -> Outcome:
    """The outcome with +inf, which is no evidence, for the NaN of a sampler that has none.

    JAX_DEBUG_NANS takes a NaN that leaves a program for a fault. ``show_none`` puts it back.
    """
    evidence = outcome.log_evidence
    return outcome._replace(
        log_evidence=jnp.where(jnp.isnan(evidence), jnp.full_like(evidence, jnp.inf), evidence)
    )


def show_none(log_evidence: jax.Array | np.ndarray) -> np.ndarray:
    """[P], what came from the device through ``hide_none``; on the host."""
    hidden = np.asarray(log_evidence)
    return np.where(np.isposinf(hidden), np.asarray(np.nan, hidden.dtype), hidden)


def weight_dtype(logits: jax.Array) -> jnp.dtype:
    """Weights and log p are at least float32, and float64 only if the model's logits are."""
    return jnp.dtype(jnp.float64 if logits.dtype == jnp.float64 else jnp.float32)


def is_bad(logits: jax.Array, vocabulary: Vocabulary) -> jax.Array:
    """[] bool: some row of logits [N, V] makes no log probabilities."""
    # The sampler asks for the same normaliser, so it is computed once.
    return jnp.any(normalise(logits, vocabulary).is_bad)


def is_running(particles: Particles, target: TargetArrays, step: jax.Array) -> jax.Array:
    """[] bool: some particle of positive weight has a token to draw at this step."""
    alive = particles.log_weight > -jnp.inf
    return jnp.any(alive & ~particles.ended) & (step < target.cap)


def _propagate(
    model: LanguageModel,
    rule: Rule,
    request: Request,
    carry: Carry,
    cache: Any,
    logits: jax.Array,
    uniforms: StepUniforms,
    clock: jax.Array,
    any_prompt: AnyPrompt,
) -> tuple[Carry, Observed]:
    """From the logits [N, V] of the next token to the next carry; no cache (None) at step 0."""
    num, step = rule.num_particles, carry.step
    chex.assert_shape(logits, (num, None))
    dtype = carry.particles.log_weight.dtype
    logits = logits.astype(dtype)
    request = _with_dtype(request, dtype)
    ends = ending_tokens(request.target, request.stop, carry.stop_state[:num], rule.vocabulary)
    if request.stop is None:
        ends = ends[:1]  # the same for all rows
    chosen = rule.advance(
        request.numbers, request.target, carry.particles, logits, ends, uniforms, step
    )
    # A prompt that is done is frozen: what its neighbours still need must not change it.
    running = is_running(carry.particles, request.target, step)
    bad = running & is_bad(logits, rule.vocabulary)
    chosen = _freeze_unless(running, carry, chosen)

    moves = chosen.parent != jnp.arange(rule.num_rows, dtype=jnp.int32)
    forks = jnp.sum(moves[:num], dtype=jnp.int32)
    cache, tokens = jax.lax.cond(
        any_prompt(jnp.any(moves)),
        lambda: (
            move_cache(model, cache, chosen.parent[:num], step - 1, clock),
            take_ancestors(carry.tokens, chosen.parent),
        ),
        lambda: (cache, carry.tokens),
    )
    token = jnp.where(chosen.active, chosen.token, jnp.int32(PAD_ID))
    column = jnp.minimum(step, tokens.shape[1] - 1)
    present = jax.lax.dynamic_slice_in_dim(tokens, column, 1, axis=1)
    written = jnp.where(chosen.active[:, None], token[:, None], present)
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, written, column, axis=1)

    stop_state = next_stop_state(
        request.stop, carry.stop_state[chosen.parent], token, chosen.active
    )
    carry = Carry(chosen.particles, tokens, token[:num], cache, stop_state, step + 1)
    return carry, Observed(chosen.ess, chosen.resampled, forks, chosen.parent, bad)


def stop_arrays(rule: StopRule | None, tokenizer: Any, vocab_size: int) -> StopArrays | None:
    """The device form of a stop rule.

    Args:
      rule: the rule, or None.
      tokenizer: a tokenizer, or the bytes of every token (None for a special one).
      vocab_size: V of the model.

    Raises:
      ValueError: if there is a rule and no tokenizer, or one whose tokens cannot be read.
    """
    if rule is None:
        return None
    table = compile_stop(rule, tokenizer, vocab_size)
    (final,) = np.flatnonzero(table.accepting)
    return StopArrays(
        jnp.asarray(table.next_state),
        start=jnp.zeros((), jnp.int32),
        final=jnp.asarray(final, table.next_state.dtype),
    )


def ending_tokens(
    target: TargetArrays,
    stop: StopArrays | None,
    state: jax.Array,
    vocabulary: Vocabulary = WHOLE,
) -> jax.Array:
    """[N, V] bool: tokens that would end each sequence, whose automaton is in state [N]."""
    ends = jnp.broadcast_to(target.ends[None, :], (state.shape[0], target.ends.shape[0]))
    if stop is None:
        return ends
    return ends | (vocabulary.part(stop.next_state)[state] == stop.final)


def next_stop_state(
    stop: StopArrays | None, state: jax.Array, token: jax.Array, active: jax.Array
) -> jax.Array:
    """The automaton's state [M] after the token [M] of the active rows."""
    if stop is None:
        return state
    return jnp.where(active, stop.next_state[state, token].astype(jnp.int32), state)


def _freeze_unless(running: jax.Array, carry: Carry, chosen: Selection) -> Selection:
    own = jnp.arange(chosen.parent.shape[0], dtype=jnp.int32)
    still = Selection(
        particles=carry.particles,
        parent=own,
        token=jnp.full_like(chosen.token, PAD_ID),
        active=jnp.zeros_like(chosen.active),
        ess=jnp.full_like(chosen.ess, carry.token.shape[0]),
        resampled=jnp.zeros_like(chosen.resampled),
    )
    return jax.tree.map(lambda a, b: jnp.where(running, a, b), chosen, still)


def _with_dtype(request: Request, dtype: jnp.dtype) -> Request:
    """The request's real scalars in the dtype of the weights."""

    def cast(x: jax.Array) -> jax.Array:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return request._replace(
        target=jax.tree.map(cast, request.target), numbers=jax.tree.map(cast, request.numbers)
    )
