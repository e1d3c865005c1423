"""How a cache follows the ancestors of its particles: the reference form, and in place."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_power_smc.models.base import LanguageModel


def take_ancestors(cache: Any, ancestors: jax.Array) -> Any:
    """The reference cache move: slot i receives the rows of slot ``ancestors[i]``, [N] int32."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, ancestors, axis=0, mode="clip"), cache)


def move_cache(
    model: LanguageModel, cache: Any, ancestors: jax.Array, step: jax.Array, clock: jax.Array
) -> Any:
    """The cache follows the ancestors [N], which are in place (``resampling.in_place``).

    ``step`` and ``clock`` [] are those of the last ``decode``.
    """
    num = ancestors.shape[0]
    if cache is None or num == 1:
        return cache  # nothing is there yet, or a single particle descends from itself
    move = getattr(model, "move", None)
    if move is None:
        return copy_dead_rows(cache, ancestors)
    return move(cache, ancestors, jnp.arange(num, dtype=jnp.int32), step, clock)


@jax.custom_batching.custom_vmap
def copy_dead_rows(cache: Any, ancestors: jax.Array) -> Any:
    """``take_ancestors`` for ancestors in place, copying only the rows that change.

    Ancestors are in place if every row that is a source keeps its own slot
    (``resampling.in_place``): copies then happen in any order, in the cache's own memory. Under
    vmap the moves of all prompts are one list, since a loop per prompt would run as often as the
    prompt with the most moves needs, for all of them.

    Args:
      cache: a pytree whose leaves lead with N.
      ancestors: [N] int32, in place.
    """
    own = jnp.arange(ancestors.shape[0], dtype=jnp.int32)
    return _copy_rows(cache, ancestors, own)


@copy_dead_rows.def_vmap
def _copy_dead_rows_of_prompts(
    size: int, batched: Any, cache: Any, ancestors: jax.Array
) -> tuple[Any, Any]:
    """Leaves [P, N, ...], ancestors [P, N]: one list of moves among P N rows."""
    cache_batched, ancestors_batched = batched
    if not ancestors_batched:
        ancestors = jnp.broadcast_to(ancestors[None], (size, *ancestors.shape))
    cache = jax.tree.map(
        lambda x, there: x if there else jnp.broadcast_to(x[None], (size, *x.shape)),
        cache,
        cache_batched,
    )
    num = ancestors.shape[1]
    own = jnp.arange(size * num, dtype=jnp.int32)
    first = num * jnp.arange(size, dtype=jnp.int32)
    flat = jax.tree.map(lambda x: x.reshape(size * num, *x.shape[2:]), cache)
    flat = _copy_rows(flat, (ancestors + first[:, None]).reshape(-1), own)
    moved = jax.tree.map(lambda x, y: x.reshape(y.shape), flat, cache)
    return moved, jax.tree.map(lambda _: True, cache)


def _copy_rows(cache: Any, ancestors: jax.Array, own: jax.Array) -> Any:
    moves = ancestors != own
    destinations = jnp.nonzero(moves, size=own.shape[0], fill_value=0)[0].astype(jnp.int32)

    def copy(index: jax.Array, cache: Any) -> Any:
        to = destinations[index]
        source = ancestors[to]

        def one(leaf: jax.Array) -> jax.Array:
            row = jax.lax.dynamic_slice_in_dim(leaf, source, 1, axis=0)
            return jax.lax.dynamic_update_slice_in_dim(leaf, row, to, axis=0)

        return jax.tree.map(one, cache)

    return jax.lax.fori_loop(0, jnp.sum(moves, dtype=jnp.int32), copy, cache)
