"""How a cache follows the ancestors of its particles: the reference form, and in place."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_power_smc.core.types import Cache
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.models.vmap_rules import broadcast_unbatched


def take_ancestors(cache: Cache, ancestors: jax.Array) -> Cache:
    """The reference cache move: row i becomes a copy of row ``ancestors[i]``, [N] int32."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, ancestors, axis=0, mode="clip"), cache)


def move_cache(
    model: LanguageModel, cache: Cache, ancestors: jax.Array, step: jax.Array, clock: jax.Array
) -> Cache:
    """Moves a cache to the ancestors of its particles, by the model's ``move`` if it has one.

    Args:
      model: whose cache it is.
      cache: a pytree whose leaves lead with N, or None if there is none yet.
      ancestors: [N] int32, in place (see ``copy_dead_rows``).
      step, clock: [] int32, those of the last ``decode``.
    """
    num = ancestors.shape[0]
    if cache is None or num == 1:
        return cache  # nothing to move, or a single particle, which descends from itself
    move = getattr(model, "move", None)
    if move is None:
        return copy_dead_rows(cache, ancestors)
    return move(cache, ancestors, jnp.arange(num, dtype=jnp.int32), step, clock)


@jax.custom_batching.custom_vmap
def copy_dead_rows(cache: Cache, ancestors: jax.Array) -> Cache:
    """``take_ancestors`` for ancestors in place, copying only the rows that change.

    Ancestors are in place if every row that is a source keeps its own position
    (``resampling.in_place``): the copies can then be made in any order, in the cache's own memory.
    Under vmap the moves of all prompts are one list, because a loop per prompt would make as many
    turns for every prompt as the one with the most moves needs.

    Args:
      cache: a pytree whose leaves lead with N.
      ancestors: [N] int32, in place.
    """
    return _copy_rows(cache, ancestors)


@copy_dead_rows.def_vmap
def _copy_dead_rows_of_prompts(
    size: int, batched: Any, cache: Cache, ancestors: jax.Array
) -> tuple[Cache, Any]:
    """Leaves [P, N, ...], ancestors [P, N]: one list of moves among P N rows."""
    cache, ancestors = broadcast_unbatched(size, tuple(batched), (cache, ancestors))
    num = ancestors.shape[1]
    first = num * jnp.arange(size, dtype=jnp.int32)
    flat = jax.tree.map(lambda x: x.reshape(size * num, *x.shape[2:]), cache)
    flat = _copy_rows(flat, (ancestors + first[:, None]).reshape(-1))
    moved = jax.tree.map(lambda x, y: x.reshape(y.shape), flat, cache)
    return moved, jax.tree.map(lambda _: True, cache)


def _copy_rows(cache: Cache, ancestors: jax.Array) -> Cache:
    moves = ancestors != jnp.arange(ancestors.shape[0], dtype=jnp.int32)
    destinations = jnp.nonzero(moves, size=moves.shape[0], fill_value=0)[0].astype(jnp.int32)

    def copy(index: jax.Array, cache: Cache) -> Cache:
        destination = destinations[index]
        source = ancestors[destination]

        def copy_row(leaf: jax.Array) -> jax.Array:
            row = jax.lax.dynamic_slice_in_dim(leaf, source, 1, axis=0)
            return jax.lax.dynamic_update_slice_in_dim(leaf, row, destination, axis=0)

        return jax.tree.map(copy_row, cache)

    return jax.lax.fori_loop(0, jnp.sum(moves, dtype=jnp.int32), copy, cache)
