"""One Metropolis-Hastings move of the chains of one prompt, through a language model.

A chain is a row of the model's cache. A move continues the current sequences from the cut on, in
the rows that they already have: it rewinds each row to the token before the cut and decodes that
one again, which rewrites its own entry and gives the logits at the cut. So one token drawn is one
token through the model. A rejected move is undone by taking the old entries of the cache.

The model must be able to rewind (``can_rewind``). A cache that never reads entries at and beyond
the position that it is given can.

The cut and the horizon are the same for all chains of all prompts (see ``draw_cut``), so the inner
loop runs over the same steps for all of them.

Letters: N chains, S padded prompt length, T capacity in generated tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_power_smc.core import prng
from jax_power_smc.core.types import Cache, Params
from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.engine.batching import AnyPrompt
from jax_power_smc.engine.state import vocab_sharding, with_dtype
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.samplers import metropolis_hastings as mh
from jax_power_smc.samplers.metropolis_hastings import Chains, Entry
from jax_power_smc.samplers.proposal import normalise
from jax_power_smc.smc import weights
from jax_power_smc.targets import stop_arrays
from jax_power_smc.targets.power import TargetArrays
from jax_power_smc.targets.stop_arrays import StopArrays


class ChainPrompt(NamedTuple):
    """What stays the same over the moves of one prompt.

    Attributes:
      last: [] int32, its last token.
      position: [] int32, where that stands.
      target: the prompt's target.
      key: the prompt's key (``prng.prompt_keys``).
    """

    last: jax.Array
    position: jax.Array
    target: TargetArrays
    key: jax.Array


class MoveState(NamedTuple):
    """What evolves over the moves of one prompt.

    Attributes:
      chains: the sequences.
      cache: the model's cache of N rows.
      drawn: [] int32, tokens drawn by all chains, which is the model's work in tokens.
      proposed: [] int32, moves of all chains that drew at least one token; growths do not count.
      accepted: [] int32, those that were accepted.
      bad_logits: [] bool, the model returned a NaN, +inf or only -inf.
    """

    chains: Chains
    cache: Cache
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
    model: LanguageModel,
    params: Params,
    prompt: jax.Array,
    length: jax.Array,
    num_chains: int,
    num_tokens: int,
    capacity: int,
) -> MoveState:
    """N chains at the empty sequence, after a prompt [S] of ``length`` [] tokens.

    ``num_tokens`` is T, and ``capacity`` the positions of each row.
    """
    zero = jnp.zeros((), jnp.int32)
    cache = model.init_cache(params, 1, capacity)
    # All but the last token, which the first move decodes.
    logits, cache = model.extend(params, cache, prompt[None], zero[None], (length - 1)[None])
    return MoveState(
        chains=mh.start(num_chains, num_tokens, weights.weight_dtype(logits)),
        cache=jax.tree.map(lambda x: jnp.repeat(x, num_chains, axis=0), cache),
        drawn=zero,
        proposed=zero,
        accepted=zero,
        bad_logits=jnp.zeros((), bool),
    )


class _Proposal(NamedTuple):
    """What evolves within a move: ``MoveState`` without the counts of moves.

    Attributes:
      chains, cache, drawn, bad_logits: as in ``MoveState``.
      going: [N] bool, chains that are still drawing.
      step: [] int32, t, unbatched.
      any_going: [] bool, over all prompts of the batch, unbatched.
    """

    chains: Chains
    cache: Cache
    drawn: jax.Array
    bad_logits: jax.Array
    going: jax.Array
    step: jax.Array
    any_going: jax.Array


def move(
    model: LanguageModel,
    params: Params,
    stop: StopArrays | None,
    prompt: ChainPrompt,
    state: MoveState,
    entry: Entry,
    cut: jax.Array,
    uniforms: MoveUniforms,
    any_prompt: AnyPrompt,
) -> MoveState:
    """One entry of the schedule for one prompt: redraw from the cut on, then accept or reject.

    Args:
      model: static.
      params: the model's parameters.
      stop: the table of the stop rule, or None.
      prompt: what stays the same.
      state: what evolves.
      entry: unbatched, like the cut; otherwise conditions on them would become selects on the
        cache.
      cut: [] int32, from ``draw_cut``.
      uniforms: all the randomness except the cut.
      any_prompt: see ``batching.AnyPrompt``.
    """
    target = with_dtype(prompt.target, state.chains.log_s.dtype)
    prefix, going = mh.truncate(state.chains, cut)
    # Idle prompts of a batch have cap 0.
    going = going & (cut < target.cap)

    def body(now: _Proposal) -> _Proposal:
        written = jax.lax.dynamic_index_in_dim(
            now.chains.tokens, jnp.maximum(now.step - 1, 0), axis=1, keepdims=False
        )
        token = jnp.where(now.step == 0, prompt.last, written)
        position = jnp.broadcast_to(prompt.position + now.step, token.shape)
        logits, cache = model.extend(
            params, now.cache, token[:, None], position, now.going.astype(jnp.int32)
        )
        scores = Logits(logits[:, 0].astype(now.chains.log_s.dtype), vocab_sharding(model))

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
            bad_logits=now.bad_logits | jnp.any(now.going & normalise(scores).is_bad),
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
    return MoveState(
        chains=chains,
        cache=cache,
        drawn=new.drawn,
        bad_logits=new.bad_logits,
        proposed=state.proposed + jnp.sum(counts, dtype=jnp.int32),
        accepted=state.accepted + jnp.sum(counts & accept, dtype=jnp.int32),
    )
