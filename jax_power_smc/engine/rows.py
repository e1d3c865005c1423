"""Who gets which row: particles with one prefix share a row, and earlier prompts go first.

After a step every running particle has a prefix: its parent's row and a token. Particles with equal
(row, token) share a row. The first child of a row keeps it; every other one needs a copy, in a row
that is free. All of it is by particle index and order of arrival, never by the index of a row, so
that a prompt's result does not depend on its company.

Letters: P prompt slots, R rows, N particles.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_power_smc.core.top_k import true_indices

# Up to so many particles of a prompt, comparing all pairs is cheaper than sorting. (32 prompts of
# 64: a step without its model took 1.2 instead of 1.5 ms on two CPU cores.)
MOST_COMPARED = 256


class Prefixes(NamedTuple):
    """The distinct prefixes of P prompts, each represented by its first particle.

    Attributes:
      leader: [P, N] int32, the particle that represents each one's prefix, in the flat order of
        [P, N]; any for a particle that does not run.
      keeps: [P, N] bool, leaders that keep their parent's row.
      copies: [P, N] bool, leaders that need a row of their own.
    """

    leader: jax.Array
    keeps: jax.Array
    copies: jax.Array


def distinct_prefixes(
    live: jax.Array,
    row: jax.Array,
    token: jax.Array,
    num_rows: int,
    vocab_size: int,
    all_distinct: bool = False,
) -> Prefixes:
    """Groups particles by (row, token).

    Args:
      live: [P, N] bool, particles that run on.
      row: [P, N] int32, below R where live: the row of each particle's parent. Prompts have
        different rows.
      token: [P, N] int32, what each one drew.
      num_rows, vocab_size: R and V.
      all_distinct: whether it is known that no two particles have the same prefix.
    """
    size = live.size
    index = jnp.arange(size, dtype=jnp.int32)
    live_, row_, token_ = (x.reshape(size) for x in (live, row, token))
    if all_distinct:
        leader = index
    elif live.shape[1] <= MOST_COMPARED:
        leader = _first_of_pair(live, row, token).reshape(size)
    else:
        if num_rows * vocab_size >= 2**32 - 1:
            raise ValueError(f"{num_rows} rows are too many for a vocabulary of {vocab_size}.")
        # By sorting, in O(P N log(P N)); the order within a group is that of the particles.
        pair = row_.astype(jnp.uint32) * jnp.uint32(vocab_size) + token_.astype(jnp.uint32)
        pair = jnp.where(live_, pair, jnp.uint32(2**32 - 1))
        pair, by_pair = jax.lax.sort((pair, index), num_keys=1, is_stable=True)
        begins = jnp.concatenate([jnp.ones((1,), bool), pair[1:] != pair[:-1]])
        first = jax.lax.cummax(jnp.where(begins, index, 0))
        leader = jnp.zeros((size,), jnp.int32).at[by_pair].set(by_pair[first], unique_indices=True)
    leads = live_ & (leader == index)
    first_of_row = jnp.full((num_rows,), size, jnp.int32)
    first_of_row = first_of_row.at[jnp.where(live_, row_, num_rows)].min(index, mode="drop")
    keeps = live_ & (first_of_row[jnp.minimum(row_, num_rows - 1)] == index)
    shape = live.shape
    return Prefixes(leader.reshape(shape), keeps.reshape(shape), (leads & ~keeps).reshape(shape))


def _first_of_pair(live: jax.Array, row: jax.Array, token: jax.Array) -> jax.Array:
    """[P, N] int32: the first live particle with each one's (row, token), by comparing pairs."""
    prompts, count = live.shape
    same = (row[:, :, None] == row[:, None, :]) & (token[:, :, None] == token[:, None, :])
    index = jnp.arange(count, dtype=jnp.int32)
    first = jnp.min(jnp.where(same & live[:, None, :], index, jnp.int32(count - 1)), axis=2)
    return first + count * jnp.arange(prompts, dtype=jnp.int32)[:, None]


def may_proceed(
    order: jax.Array, holds: jax.Array, wants: jax.Array, num_free: jax.Array
) -> jax.Array:
    """[P] bool: which prompts get all rows that they want; the others stall.

    Whoever gives back at least as many rows as it takes never waits. Whoever asks for more proceeds
    only if the asks of all earlier prompts are met too: overtaking would starve large asks.

    Args:
      order: [P] int32, of arrival.
      holds, wants: [P] int32, the rows that a prompt has, and those that it has if it proceeds.
      num_free: [] int32, free rows; negative if more are in use than may be.
    """
    asks = jnp.maximum(wants - holds, 0)
    given_back = jnp.sum(jnp.maximum(holds - wants, 0), dtype=jnp.int32)
    earlier = order[None, :] <= order[:, None]
    so_far = jnp.sum(jnp.where(earlier, asks[None, :], 0), axis=1, dtype=jnp.int32)
    return (asks == 0) | (so_far <= num_free + given_back)


def hand_out(asks: jax.Array, is_free: jax.Array) -> jax.Array:
    """A free row [n] int32 for each one that asks [n] bool, R where there is none.

    The first one gets the free row of the lowest index, and so on; is_free [R] bool.
    """
    num_rows = is_free.shape[0]
    rows = true_indices(is_free, num_rows, fill_value=num_rows)
    turn = jnp.cumsum(asks, dtype=jnp.int32) - 1
    row = rows[jnp.clip(turn, 0, num_rows - 1)]
    return jnp.where(asks & (turn < num_rows), row, jnp.int32(num_rows))
