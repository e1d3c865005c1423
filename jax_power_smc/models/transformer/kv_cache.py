"""Keys and values of rows: a row is a sequence, and its token at position p lies in entry p.

Every layer has a leaf of keys and one of values, [R, T, K*H]. They are never stacked, and nothing
here copies one: a step writes one entry per row, and a move copies only what a row has filled.

Letters: R rows, T capacity, K key/value heads, H head dimension, B block of new tokens, M moves.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Entries copied at a time by a move.
BLOCK = 128


class KVCache(NamedTuple):
    """The cache of R rows.

    Attributes:
      keys, values: one [R, T, K*H] array each per layer.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


def entries(positions: jax.Array, count: jax.Array, capacity: int) -> jax.Array:
    """The entry of each token, T (out of bounds) for those that are not written.

    Args:
      positions: [R] of one token per row, or [R, B].
      count: [R], how many of a row's tokens are written.
      capacity: T.
    """
    if positions.ndim == 1:
        written = count > 0
    else:
        written = jnp.arange(positions.shape[1], dtype=jnp.int32)[None] < count[:, None]
    return jnp.where(written, positions, jnp.int32(capacity))


def write(leaf: jax.Array, new: jax.Array, entry: jax.Array) -> jax.Array:
    """Writes new [R, K*H] or [R, B, K*H] to entries [R] or [R, B] of leaf [R, T, K*H], in place."""
    row = jnp.arange(leaf.shape[0], dtype=jnp.int32).reshape(-1, *(1,) * (entry.ndim - 1))
    row = jnp.broadcast_to(row, entry.shape)
    return leaf.at[row, entry].set(new, mode="drop")


def move_rows(
    cache: KVCache,
    source: jax.Array,
    destination: jax.Array,
    length: jax.Array,
    count: jax.Array,
) -> KVCache:
    """Copies entries 0..length[i]-1 of row source[i] to row destination[i], for i < count.

    Entries are copied in whole blocks, so that a few more than ``length`` may be. If nothing moves
    the loop makes no turn; a conditional around it would copy the cache.

    Args:
      source, destination, length: [M] int32; destinations are distinct and never sources.
      count: [] int32.
    """
    block = block_size(cache.keys[0].shape[1])

    def copy_block(index: jax.Array, offset: jax.Array, leaf: jax.Array) -> jax.Array:
        first = offset * block
        piece = jax.lax.dynamic_slice(
            leaf, (source[index], first, jnp.int32(0)), (1, block, leaf.shape[2])
        )
        return jax.lax.dynamic_update_slice(leaf, piece, (destination[index], first, jnp.int32(0)))

    def copy_pair(index: jax.Array, cache: KVCache) -> KVCache:
        def copy_blocks(offset: jax.Array, cache: KVCache) -> KVCache:
            return jax.tree.map(functools.partial(copy_block, index, offset), cache)

        blocks = (length[index] + jnp.int32(block - 1)) // block
        return jax.lax.fori_loop(0, blocks, copy_blocks, cache)

    return jax.lax.fori_loop(0, count, copy_pair, cache)


def block_size(capacity: int) -> int:
    """The largest power of two up to ``BLOCK`` that divides the capacity."""
    return min(BLOCK, capacity & -capacity)
