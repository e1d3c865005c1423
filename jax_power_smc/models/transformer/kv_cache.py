"""Keys and values of rows: a row is a sequence, and its token at position p lies in entry p.

Every layer has a leaf of keys and one of values. They are never stacked, and nothing here copies
one: a step writes one entry per row, and a move copies only what a row has filled.

Letters: R rows, T capacity, K key/value heads, H head dimension, B tokens of a row, M moves.
"""

import dataclasses
import functools
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

# How a leaf is laid out in memory:
#
#     "flat"     keys and values [R, T, K*H]: an entry is contiguous
#     "by_head"  keys [R, K, H, T], values [R, K, T, H]: both products of attention run along rows
#                of a matrix
#
# "flat" is what attention kernels read and what a TPU writes to in place. On CPU, where attention
# is plain matrix products, it takes up to three times as long (a layer's attention, 4 to 64 rows,
# T = 256 to 1024, 2 to 8 key/value heads), and keys [R, K, T, H] up to 1.8 times.
Layout: TypeAlias = Literal["flat", "by_head"]

# Entries copied at a time by a move.
BLOCK = 128


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["keys", "values"], meta_fields=["layout"]
)
@dataclasses.dataclass(frozen=True)
class KVCache:
    """The cache of R rows.

    Attributes:
      keys, values: one array each per layer.
      layout: of all of them.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    layout: Layout

    @property
    def capacity(self) -> int:
        """T."""
        return self.values[0].shape[-2]


def default_layout() -> Layout:
    """The best layout on the platform that JAX uses by default."""
    return "by_head" if jax.default_backend() == "cpu" else "flat"


def empty(
    layout: Layout, layers: int, rows: int, capacity: int, heads: int, dim: int, dtype: jnp.dtype
) -> KVCache:
    """A cache of zeros."""
    flat = (rows, capacity, heads * dim)
    by_head = (rows, heads, dim, capacity), (rows, heads, capacity, dim)
    shapes = (flat, flat) if layout == "flat" else by_head
    keys, values = (tuple(jnp.zeros(shape, dtype) for _ in range(layers)) for shape in shapes)
    return KVCache(keys, values, layout)


def entries(positions: jax.Array, count: jax.Array, capacity: int) -> jax.Array:
    """The entry of each token; T, which is out of bounds, for those that are not written.

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


def write(
    layout: Layout,
    keys: jax.Array,
    values: jax.Array,
    new_keys: jax.Array,
    new_values: jax.Array,
    entry: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Writes into the leaves of a layer, in place.

    Args:
      layout, keys, values: of the layer.
      new_keys, new_values: [R, K, H] or [R, B, K, H].
      entry: [R] or [R, B] int32; those out of bounds are not written.
    """
    row = jnp.arange(keys.shape[0], dtype=jnp.int32).reshape(-1, *(1,) * (entry.ndim - 1))
    row, entry = jnp.broadcast_to(row, entry.shape).reshape(-1), entry.reshape(-1)
    new_keys, new_values = (x.reshape(-1, *x.shape[-2:]) for x in (new_keys, new_values))
    if entry.shape == (1,):
        # XLA makes a scatter of one update a slice update, because of which it copies the leaf
        # several times. With a second one, which is dropped, it does not.
        row, new_keys, new_values = (jnp.repeat(x, 2, axis=0) for x in (row, new_keys, new_values))
        entry = jnp.pad(entry, (0, 1), constant_values=values.shape[-2])
    if layout == "flat":
        new_keys, new_values = (x.reshape(*entry.shape, -1) for x in (new_keys, new_values))
        new_keys = keys.at[row, entry].set(new_keys, mode="drop")
        return new_keys, values.at[row, entry].set(new_values, mode="drop")
    new_keys = keys.at[row, :, :, entry].set(new_keys, mode="drop")
    return new_keys, values.at[row, :, entry, :].set(new_values, mode="drop")


def by_head(
    layout: Layout, keys: jax.Array, values: jax.Array, dim: int
) -> tuple[jax.Array, jax.Array]:
    """A layer's keys as [R, K, H, T] and values as [R, K, T, H]."""
    if layout == "by_head":
        return keys, values
    keys, values = (x.reshape(*x.shape[:2], -1, dim) for x in (keys, values))
    return keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3)


def move_rows(
    cache: KVCache,
    source: jax.Array,
    destination: jax.Array,
    length: jax.Array,
    count: jax.Array,
) -> KVCache:
    """Copies entries 0..length[i]-1 of row source[i] to row destination[i], for i < count.

    Entries are copied in whole blocks, so that some beyond ``length`` may be copied too. If nothing
    moves, the loop makes no turn; a conditional around it would copy the cache.

    Args:
      cache: that of all rows.
      source, destination, length: [M] int32; destinations are distinct and never sources.
      count: [] int32.
    """
    capacity = cache.capacity
    block = min(BLOCK, capacity)

    def copy(index: jax.Array, first: jax.Array, axis: int, leaf: jax.Array) -> jax.Array:
        zero = jnp.zeros((), jnp.int32)
        at = [zero] * leaf.ndim
        at[axis] = first
        sizes = [1, *leaf.shape[1:]]
        sizes[axis] = block
        piece = jax.lax.dynamic_slice(leaf, [source[index], *at[1:]], sizes)
        return jax.lax.dynamic_update_slice(leaf, piece, [destination[index], *at[1:]])

    def copy_pair(index: jax.Array, cache: KVCache) -> KVCache:
        def copy_block(offset: jax.Array, cache: KVCache) -> KVCache:
            # The last block of a capacity that is not a multiple overlaps the one before.
            first = jnp.minimum(offset * block, jnp.int32(capacity - block))
            of_keys, of_values = (1, 1) if cache.layout == "flat" else (3, 2)
            return dataclasses.replace(
                cache,
                keys=tuple(copy(index, first, of_keys, leaf) for leaf in cache.keys),
                values=tuple(copy(index, first, of_values, leaf) for leaf in cache.values),
            )

        blocks = (length[index] + jnp.int32(block - 1)) // block
        return jax.lax.fori_loop(0, blocks, copy_block, cache)

    return jax.lax.fori_loop(0, count, copy_pair, cache)
