"""Metropolis-Hastings chains through a language model: one move, and a batch of prompts.

A move continues the current sequences from the cut on, in the cache that they already have: the
keys and values before the cut stay, and the token before the cut is decoded again, which rewrites
its own entry and gives the logits at the cut. So one token drawn is one token through the model.
What is rejected is undone by taking the old rows of the cache.

This needs one thing of a model beyond ``LanguageModel``'s words: ``decode`` must be able to go
*back* to an earlier step. A cache that is addressed by the clock, and that never reads entries
of later steps, can.

The cut and the horizon are the same for all chains of all prompts (see ``draw_cut``), so the inner
loop runs over the same steps for everyone. The schedule is known beforehand: the host hands out
all its entries without waiting for the device, unless somebody may want to stop it.

Letters: P prompts, N chains, T capacity in generated tokens, S padded prompt length, V vocabulary.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jax_power_smc.core import prng
from jax_power_smc.core.mesh import DATA, DATA_SHARDED, MODEL, PER_DEVICE, REPLICATED
from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.engine import batching, decode, executables, programs
from jax_power_smc.engine.buckets import TokenIds, pad_prompts
from jax_power_smc.engine.decode import AnyPrompt
from jax_power_smc.engine.layout import Layout, Specs, layout_of
from jax_power_smc.engine.timing import PhaseTimer, preparing
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.results.diagnostics import diagnose
from jax_power_smc.results.result import SampleInfo, SampleResult
from jax_power_smc.samplers import metropolis_hastings as mh
from jax_power_smc.samplers.base import FinalWeights
from jax_power_smc.samplers.metropolis_hastings import Chains, Entry, MetropolisHastings
from jax_power_smc.smc import weights
from jax_power_smc.targets import stop_arrays
from jax_power_smc.targets.power import PowerTarget, TargetArrays
from jax_power_smc.targets.stop_arrays import StopArrays


class Stopped(Exception):  # noqa: N818, no error: the caller asked for it
    """Sampling was given up because ``until`` said so."""


class Prompt(NamedTuple):
    """What stays the same over the moves of one prompt.

    Attributes:
      context: the model's shared context of the prompt.
      logits: [V], of the first generated token.
      target: the prompt's target.
      key: the prompt's key (``prng.prompt_keys``).
    """

    context: Any
    logits: jax.Array
    target: TargetArrays
    key: jax.Array


class State(NamedTuple):
    """What evolves over the moves of one prompt.

    Attributes:
      chains: the sequences.
      cache: the model's cache, leaves lead with N.
      drawn: [] int32, tokens drawn by all chains: the model's work in tokens.
      proposed: [] int32, moves of all chains that drew at least one token; growths do not count.
      accepted: [] int32, those that were accepted.
      bad_logits: [] bool, the model gave a NaN, +inf or only -inf.
    """

    chains: Chains
    cache: Any
    drawn: jax.Array
    proposed: jax.Array
    accepted: jax.Array
    bad_logits: jax.Array


class MoveUniforms(NamedTuple):
    """Uniform numbers in [0, 1) of one move of one prompt.

    Attributes:
      token: step t [] -> [N, 2], for the tokens of that step.
      accept: [N], for the decisions.
    """

    token: Callable[[jax.Array], jax.Array]
    accept: jax.Array


def move_uniforms(key: jax.Array, entry: Entry, num_chains: int, dtype: Any) -> MoveUniforms:
    """The numbers of one entry of the schedule, from the prompt's key."""
    key = jax.random.fold_in(key, entry.index)

    def at(step: jax.Array) -> prng.StepUniforms:
        return prng.step_uniforms(key, step, num_chains, dtype)

    # No token is drawn at the horizon, so its numbers are free.
    return MoveUniforms(token=lambda step: at(step).token, accept=at(entry.horizon).resample)


def begin(
    model: LanguageModel, params: Any, logits: jax.Array, num_chains: int, capacity: int
) -> State:
    """N chains at the empty sequence of one prompt, whose prefill gave the logits [V]."""
    zero = jnp.zeros((), jnp.int32)
    chains = mh.start(num_chains, capacity, weights.weight_dtype(logits))
    cache = model.init_cache(params, num_chains, capacity)
    sound = jnp.zeros((), bool)
    return State(chains, cache, drawn=zero, proposed=zero, accepted=zero, bad_logits=sound)


class _Proposal(NamedTuple):
    """What evolves within a move: ``State`` without what is counted over moves.

    Attributes:
      chains, cache, drawn, bad_logits: as in ``State``.
      going: [N] bool, chains that still draw.
      step: [] int32, t, unbatched.
      any_going: [] bool, over all prompts of the batch, unbatched.
    """

    chains: Chains
    cache: Any
    drawn: jax.Array
    bad_logits: jax.Array
    going: jax.Array
    step: jax.Array
    any_going: jax.Array


def move(
    model: LanguageModel,
    params: Any,
    stop: StopArrays | None,
    prompt: Prompt,
    state: State,
    entry: Entry,
    cut: jax.Array,
    uniforms: MoveUniforms,
    any_prompt: AnyPrompt,
) -> State:
    """One entry of the schedule for one prompt: redraw from the cut on, accept or take back.

    Args:
      model: static.
      params: the model's parameters.
      stop: the table of the stop rule, or None.
      prompt: what stays the same.
      state: what evolves.
      entry: unbatched, like the cut: conditions on them would else become selects on the cache.
      cut: [] int32, from ``draw_cut``.
      uniforms: all the randomness but the cut.
      any_prompt: see ``decode.AnyPrompt``.
    """
    target = decode.with_dtype(prompt.target, state.chains.log_s.dtype)
    prefix, going = mh.truncate(state.chains, cut)
    # Idle rows of a batch have cap 0.
    going = going & (cut < target.cap)

    def body(now: _Proposal) -> _Proposal:
        # At t = 0 there is no token before; what is decoded is not looked at, and its entry of the
        # cache is written again at t = 1.
        last = jnp.maximum(now.step - 1, 0)
        token = jax.lax.dynamic_slice_in_dim(now.chains.tokens, last, 1, axis=1)[:, 0]
        logits, cache = model.decode(params, prompt.context, now.cache, token, last, last)
        logits = jnp.where(now.step == 0, prompt.logits[None, :], logits)
        scores = Logits(logits.astype(now.chains.log_s.dtype), decode.vocab_sharding(model))

        before = jax.lax.dynamic_slice_in_dim(now.chains.stop_state, now.step, 1, axis=1)[:, 0]
        ends = stop_arrays.ending_tokens(target, stop, before, scores.sharding)
        if stop is None:
            ends = ends[:1]  # the same for all chains
        chains, token, drew = mh.extend(
            target,
            now.chains,
            now.going,
            scores,
            ends,
            uniforms.token(now.step),
            now.step,
        )
        after = stop_arrays.next_stop_state(stop, before, token, drew)
        chains = chains._replace(
            stop_state=jax.lax.dynamic_update_slice_in_dim(
                chains.stop_state, after[:, None], now.step + 1, axis=1
            )
        )
        going = drew & ~chains.finished
        return _Proposal(
            chains=chains,
            cache=cache,
            drawn=now.drawn + jnp.sum(drew, dtype=jnp.int32),
            bad_logits=now.bad_logits | (jnp.any(now.going) & decode.is_bad(scores)),
            going=going,
            step=now.step + 1,
            any_going=any_prompt(jnp.any(going)),
        )

    new = jax.lax.while_loop(
        lambda now: now.any_going & (now.step < entry.horizon),
        body,
        _Proposal(
            chains=prefix,
            cache=state.cache,
            drawn=state.drawn,
            bad_logits=state.bad_logits,
            going=going,
            step=cut,
            any_going=any_prompt(jnp.any(going)),
        ),
    )
    accept = entry.grow | mh.accepts(state.chains, new.chains, cut, uniforms.accept)
    chains, cache = mh.choose(accept, (new.chains, new.cache), (state.chains, state.cache))
    counts = going & ~entry.grow
    return State(
        chains=chains,
        cache=cache,
        drawn=new.drawn,
        bad_logits=new.bad_logits,
        proposed=state.proposed + jnp.sum(counts, dtype=jnp.int32),
        accepted=state.accepted + jnp.sum(counts & accept, dtype=jnp.int32),
    )


# --- The three programs on a batch of prompts -------------------------------------------------


@functools.partial(jax.jit, static_argnames=("model", "num_chains", "capacity"))
def start_batch(
    params: Any,
    prompts: jax.Array,
    lengths: jax.Array,
    targets: TargetArrays,
    keys: jax.Array,
    *,
    model: LanguageModel,
    num_chains: int,
    capacity: int,
) -> tuple[Prompt, State]:
    """Prefill: prompts [P, S], lengths [P]."""

    def one(any_prompt, params, prompt, length, target, key):  # type: ignore[no-untyped-def]
        logits, context = model.prefill(params, prompt, length)
        state = begin(model, params, logits, num_chains, capacity)
        return Prompt(context, logits, target, key), state

    return batching.over_prompts(one, (None, 0, 0, 0, 0))(params, prompts, lengths, targets, keys)


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("state",))
def move_batch(
    params: Any,
    key: jax.Array,
    stop: StopArrays | None,
    prompts: Prompt,
    state: State,
    entry: Entry,
    *,
    model: LanguageModel,
) -> State:
    """One entry of the schedule for P prompts; ``key`` is that of the run."""

    def one(any_prompt, params, stop, prompt, state, entry, cut):  # type: ignore[no-untyped-def]
        num, dtype = state.chains.length.shape[0], state.chains.log_s.dtype
        uniforms = move_uniforms(prompt.key, entry, num, dtype)
        return move(model, params, stop, prompt, state, entry, cut, uniforms, any_prompt)

    return batching.over_prompts(one, (None, None, 0, 0, None, None))(
        params, stop, prompts, state, entry, mh.draw_cut(key, entry)
    )


@jax.jit
def finish_batch(prompts: Prompt, state: State) -> tuple[State, FinalWeights]:
    """Weights and choices of P prompts, and the state, which has no cache any more."""

    def one(key: jax.Array, chains: Chains) -> FinalWeights:
        return mh.finish(chains, prng.final_uniforms(key, chains.log_s.dtype))

    return state, jax.vmap(one)(prompts.key, state.chains)


def _specs(layout: Layout) -> tuple[Prompt, State]:
    """How prompts and states lie on a mesh."""
    logits = PartitionSpec(DATA, MODEL) if layout.vocabulary.axis else DATA_SHARDED
    prompt = Prompt(PER_DEVICE, logits, layout.prompts().target, DATA_SHARDED)  # type: ignore[arg-type]
    return prompt, State(*[DATA_SHARDED] * len(State._fields))._replace(cache=PER_DEVICE)  # type: ignore[arg-type]


def _start_specs(layout: Layout, args: Any) -> Specs:
    prompt, state = _specs(layout)
    inputs = (layout.params(args[0]), DATA_SHARDED, DATA_SHARDED, prompt.target, DATA_SHARDED)
    return Specs(inputs, (prompt, state), False)


def _move_specs(layout: Layout, args: Any) -> Specs:
    prompt, state = _specs(layout)
    inputs = (layout.params(args[0]), REPLICATED, REPLICATED, prompt, state, REPLICATED)
    return Specs(inputs, state, False, (4,))


def _finish_specs(layout: Layout, args: Any) -> Specs:
    del args
    prompt, state = _specs(layout)
    return Specs((prompt, state), (DATA_SHARDED, DATA_SHARDED), True)


programs.SPECS |= {
    start_batch: _start_specs,
    move_batch: _move_specs,
    finish_batch: _finish_specs,
}


# --- The batch --------------------------------------------------------------------------------


def run_chains(
    model: LanguageModel,
    params: Any,
    prompts: Sequence[TokenIds],
    prompt_ids: Sequence[int],
    key: jax.Array,
    target: PowerTarget,
    sampler: MetropolisHastings,
    max_new_tokens: int,
    width: int,
    bucket: int,
    capacity: int,
    stop: StopArrays | None,
    mesh: Mesh | None = None,
    until: Callable[[], bool] | None = None,
) -> SampleResult:
    """Runs the chains of one batch of prompts.

    Args:
      model, params: the language model.
      prompts: at most ``width`` lists of token ids, none longer than ``bucket``.
      prompt_ids: one integer each, for the randomness.
      key: the key of the run.
      target, sampler: what to sample, and how.
      max_new_tokens: T, the cap; at least ``num_blocks``.
      width: P; what ``prompts`` lacks is filled up with idle rows.
      bucket: S.
      capacity: columns of the token buffer, at least T.
      stop: the table of the target's stop rule, or None.
      mesh: devices, of which each "data" row has an equal part of ``width``; None for one device.
      until: asked before every move; once it says True, the batch is given up.

    Returns:
      The result, in host memory; ``info.acceptance_rate`` says how many of the moves that redrew
      something were accepted.

    Raises:
      ValueError: if there are more blocks than tokens.
      Stopped: if ``until`` said so.
    """
    sampler.check(max_new_tokens)
    layout = layout_of(model, mesh)
    params = layout.put(params, layout.params(params))

    def call(function: Any, static: dict[str, Any], *args: Any) -> Any:
        return executables.call(function, static, args, layout)

    clock = PhaseTimer()
    batch = _pad(model, prompts, prompt_ids, key, target, max_new_tokens, width, bucket)
    sizes = {"num_chains": sampler.num_chains, "capacity": capacity}
    static = {"model": layout.model}
    prompt, state = call(start_batch, static | sizes, params, *batch)
    jax.block_until_ready(state)
    clock.book("prefill")
    for entry in sampler.schedule(max_new_tokens):
        if until is not None:
            jax.block_until_ready(state.drawn)  # else all moves would be handed out by now
            if until():
                raise Stopped("until said that sampling is to stop.")
        args = (params, key, stop, prompt, state, entry)
        state = call(move_batch, static, *args)
    prompt, state = prompt._replace(context=None), state._replace(cache=None)
    state, final = jax.device_get(call(finish_batch, {}, prompt, state))
    clock.book("decode")
    return _collect(len(prompts), target, max_new_tokens, state, final, clock.seconds)


@preparing()
def _pad(
    model: LanguageModel,
    prompts: Sequence[TokenIds],
    prompt_ids: Sequence[int],
    key: jax.Array,
    target: PowerTarget,
    max_new_tokens: int,
    width: int,
    bucket: int,
) -> tuple[jax.Array, jax.Array, TargetArrays, jax.Array]:
    """Prompts [P, S], their lengths [P], targets and keys; rows without a prompt have cap 0."""
    idle = width - len(prompts)
    tokens, lengths = pad_prompts(prompts, width, bucket)
    caps = np.array([max_new_tokens] * len(prompts) + [0] * idle, np.int32)
    targets = jax.tree.map(
        lambda x: jnp.broadcast_to(x[None], (width, *x.shape)),
        target.arrays(model.vocab_size, max_new_tokens),
    )._replace(cap=jnp.asarray(caps))
    keys = prng.prompt_keys(key, [*prompt_ids, *[0] * idle])
    return jnp.asarray(tokens), jnp.asarray(lengths), targets, keys


def _collect(
    count: int,
    target: PowerTarget,
    cap: int,
    state: State,
    final: FinalWeights,
    seconds: dict[str, float],
) -> SampleResult:
    """The result of the first ``count`` rows of a batch that is on the host."""
    chains: Chains = jax.tree.map(lambda x: x[:count], state.chains)
    final = jax.tree.map(lambda x: x[:count], final)
    num, dtype = chains.length.shape[1], chains.log_p.dtype
    proposed, accepted = state.proposed[:count], state.accepted[:count]
    rate = np.where(proposed > 0, accepted / np.maximum(proposed, 1), np.nan)
    sequences = {
        "tokens": np.asarray(chains.tokens[:, :, :cap]),
        "lengths": np.asarray(chains.length),
        "finished": np.asarray(chains.finished),
    }
    log_weights, index = np.asarray(final.log_weight), np.asarray(final.particle_index)
    parent = np.tile(np.arange(num, dtype=np.int32), (count, cap, 1))
    info = SampleInfo(
        ess=np.full((count, cap), num, dtype),
        resampled=np.zeros((count, cap), bool),
        forks=np.zeros((count, cap), np.int32),
        parent=parent,
        particle_index=index,
        **diagnose(
            **sequences, log_weights=log_weights, parent=parent, particle_index=index
        )._asdict(),
        bad_logits=np.asarray(state.bad_logits[:count]),
        dropped_mass=np.zeros((count,), dtype),
        acceptance_rate=rate,
        model_tokens=np.asarray(state.drawn[:count]),
        seconds=seconds,
    )
    return SampleResult(
        **sequences,
        log_probs=np.sum(chains.log_p, axis=2),
        log_weights=log_weights,
        log_evidence=np.full((count,), np.nan, dtype),
        choice=np.asarray(final.choice),
        target=target,
        info=info,
    )
