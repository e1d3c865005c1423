"""A stop rule in the form that the decode step reads: a table of states by token, on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc.core.vocab_sharding import UNSHARDED, VocabSharding
from jax_power_smc.targets.power import TargetArrays
from jax_power_smc.targets.stop_rules import StopRule, compile_stop


class StopStates(NamedTuple):
    """The states of one stop rule in a table that may hold several.

    Attributes:
      start: [] int32, the state before the first token.
      final: [] int16, the state in which the match is complete; -1 if there is no rule.
    """

    start: jax.Array
    final: jax.Array


class StopArrays(NamedTuple):
    """A stop rule's table (``stop_rules.StopTable``) on the device.

    Attributes:
      table: [states, V] int16, the state after a token; replicated, even if the vocabulary is
        sharded.
      states: the rule's states in the table.
    """

    table: jax.Array
    states: StopStates


def stop_arrays(rule: StopRule | None, tokenizer: Any, vocab_size: int) -> StopArrays | None:
    """A stop rule on the device, None for no rule; arguments and errors of ``compile_stop``."""
    if rule is None:
        return None
    table = compile_stop(rule, tokenizer, vocab_size)
    (final,) = np.flatnonzero(table.accepting)
    states = StopStates(jnp.zeros((), jnp.int32), jnp.asarray(final, table.next_state.dtype))
    return StopArrays(jnp.asarray(table.next_state), states)


def ending_tokens(
    target: TargetArrays,
    stop: StopArrays | None,
    state: jax.Array,
    sharding: VocabSharding = UNSHARDED,
) -> jax.Array:
    """[N, V] bool: tokens that would end each sequence, given its automaton's state [N]."""
    ends = jnp.broadcast_to(target.ends[None, :], (state.shape[0], target.ends.shape[0]))
    if stop is None:
        return ends
    return ends | (sharding.local_slice(stop.table)[state] == stop.states.final)


def next_stop_state(
    stop: StopArrays | None, state: jax.Array, token: jax.Array, active: jax.Array
) -> jax.Array:
    """The automaton's states [M] after the tokens [M] of the active particles."""
    if stop is None:
        return state
    return jnp.where(active, stop.table[state, token].astype(jnp.int32), state)
