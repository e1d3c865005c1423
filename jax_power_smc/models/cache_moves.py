"""How rows of a cache are written, copied, inserted, resized and released.

``move_rows``, ``insert_rows``, ``resize_cache`` and ``release_rows`` use the model's own ``move``,
``insert``, ``resize`` and ``release`` where it has them (see ``base.OptionalMembers``). The
defaults copy whole rows one after the other, in the cache's own memory if it is donated: loops that
make no turn when nothing is to be copied, and no conditional.

Letters: R rows, B tokens of a block, G rows of a group, M moves.
"""

import jax
import jax.numpy as jnp

from jax_power_smc.core.top_k import true_indices
from jax_power_smc.core.types import Cache, Params
from jax_power_smc.models.base import LanguageModel


def write_entries(
    leaf: jax.Array, block: jax.Array, position: jax.Array, count: jax.Array
) -> jax.Array:
    """Writes the entries of a block into a leaf whose second axis is that of positions.

    The first ``count[r]`` entries of row r are written at ``position[r]`` and after; nothing else
    changes. In place if the leaf is donated.

    Args:
      leaf: [R, capacity, ...].
      block: [R, B, ...].
      position, count: [R] int32, as in ``LanguageModel.extend``.
    """
    offset = jnp.arange(block.shape[1], dtype=jnp.int32)[None, :]
    # Padding goes beyond the end, where it is dropped.
    entry = jnp.where(offset < count[:, None], position[:, None] + offset, leaf.shape[1])
    row = jnp.arange(leaf.shape[0], dtype=jnp.int32)[:, None]
    return leaf.at[row, entry].set(block, mode="drop")


def move_rows(
    model: LanguageModel,
    cache: Cache,
    source: jax.Array,
    destination: jax.Array,
    length: jax.Array,
    count: jax.Array,
) -> Cache:
    """Makes row ``destination[i]`` a copy of row ``source[i]``, for every i below ``count``.

    Args:
      model: whose cache it is.
      cache: a pytree whose leaves lead with R.
      source, destination: [M] int32; destinations are distinct and never sources.
      length: [M] int32, the number of tokens that each source holds.
      count: [] int32.
    """
    own = getattr(model, "move", None)
    if own is not None:
        return own(cache, source, destination, length, count)

    def copy(index: jax.Array, cache: Cache) -> Cache:
        return _copy_row(cache, source[index], cache, destination[index])

    return jax.lax.fori_loop(0, count, copy, cache)


def insert_rows(model: LanguageModel, cache: Cache, rows: jax.Array, prefilled: Cache) -> Cache:
    """Makes row ``rows[g]`` of the cache a copy of row g of ``prefilled``.

    Args:
      model: whose cache it is.
      cache: a pytree whose leaves lead with R.
      rows: [G] int32, distinct; entries of R or more are padding, and dropped.
      prefilled: a cache of G rows and at most the cache's capacity.
    """
    own = getattr(model, "insert", None)
    if own is not None:
        return own(cache, rows, prefilled)
    leaves = jax.tree.leaves(cache)
    if not leaves:
        return cache
    kept = rows < leaves[0].shape[0]
    order = true_indices(kept, rows.shape[0], fill_value=0)

    def copy(index: jax.Array, cache: Cache) -> Cache:
        return _copy_row(prefilled, order[index], cache, rows[order[index]])

    return jax.lax.fori_loop(0, jnp.sum(kept, dtype=jnp.int32), copy, cache)


def resize_cache(
    model: LanguageModel, params: Params, cache: Cache, num_rows: int, capacity: int
) -> Cache:
    """The cache with another number of rows or capacity; what both have room for is kept."""
    own = getattr(model, "resize", None)
    if own is not None:
        return own(params, cache, num_rows, capacity)

    def keep(new: jax.Array, old: jax.Array) -> jax.Array:
        common = tuple(slice(min(sizes)) for sizes in zip(new.shape, old.shape, strict=True))
        return jax.lax.dynamic_update_slice(new, old[common], [0] * new.ndim)

    return jax.tree.map(keep, model.init_cache(params, num_rows, capacity), cache)


def release_rows(model: LanguageModel, cache: Cache, free: jax.Array) -> Cache:
    """Tells the model which rows hold no sequence any more, ``free`` [R] bool."""
    own = getattr(model, "release", None)
    return cache if own is None else own(cache, free)


def _copy_row(source: Cache, row: jax.Array, cache: Cache, destination: jax.Array) -> Cache:
    """The cache with ``destination`` [] overwritten by a row of ``source``, as far as that goes."""

    def copy(old: jax.Array, new: jax.Array) -> jax.Array:
        piece = jax.lax.dynamic_slice_in_dim(old, row, 1, axis=0)
        return jax.lax.dynamic_update_slice_in_dim(new, piece, destination, axis=0)

    return jax.tree.map(copy, source, cache)
