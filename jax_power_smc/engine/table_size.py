"""The programs that give the row table another size, and clear rows; see ``programs``.

Letters: P slots, R rows.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jax_power_smc.core.top_k import true_indices
from jax_power_smc.core.types import Params
from jax_power_smc.engine.state import DecodeState, RowTable
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.models.cache_moves import move_rows, resize_cache


def compact(state: DecodeState, *, model: LanguageModel, num_rows: int) -> DecodeState:
    """The state with all rows that are in use below ``num_rows``, where there must be enough.

    A program of its own, since it can move rows within the memory of a donated cache.
    """
    rows, row_of = state.rows, state.prompts.row_of
    slots, size = row_of.shape[0], rows.owner.shape[0]
    index = jnp.arange(size, dtype=jnp.int32)
    leaves = (rows.owner < slots) & (index >= num_rows)
    is_free = (rows.owner >= slots) & ~rows.spoiled & (index < num_rows)
    source, free = (true_indices(x, size, fill_value=size) for x in (leaves, is_free))
    count = jnp.sum(leaves, dtype=jnp.int32)
    moves = index < count
    destination = jnp.where(moves, free, size)
    length = rows.position[jnp.minimum(source, size - 1)] + 1
    cache = move_rows(
        model,
        rows.cache,
        jnp.minimum(source, size - 1),
        jnp.minimum(destination, size - 1),
        length,
        count,
    )
    origin = index.at[destination].set(source, mode="drop")
    place = index.at[jnp.where(moves, source, size)].set(destination, mode="drop")
    there = row_of < size
    row_of = jnp.where(there, place[jnp.minimum(row_of, size - 1)], jnp.int32(size))
    table = RowTable(
        owner=jnp.where(leaves, slots, rows.owner[origin]),
        token=rows.token[origin],
        position=rows.position[origin],
        stop_state=rows.stop_state[origin],
        spoiled=rows.spoiled,
        cache=cache,
    )
    return DecodeState(state.prompts._replace(row_of=row_of), table)


def resize(
    params: Params, state: DecodeState, *, model: LanguageModel, num_rows: int, capacity: int
) -> DecodeState:
    """The state with R = ``num_rows`` and another capacity; rows beyond must be free.

    What is spoiled beyond the new end vanishes.
    """
    slots, before = state.prompts.row_of.shape[0], state.rows.owner.shape[0]
    rows, row_of = state.rows, state.prompts.row_of

    def fit(x: jax.Array, fill: Any) -> jax.Array:
        if num_rows <= before:
            return x[:num_rows]
        return jnp.pad(x, (0, num_rows - before), constant_values=fill)

    table = RowTable(
        owner=fit(rows.owner, slots),
        token=fit(rows.token, 0),
        position=fit(rows.position, 0),
        stop_state=fit(rows.stop_state, 0),
        spoiled=fit(rows.spoiled, False),
        cache=resize_cache(model, params, rows.cache, num_rows, capacity),
    )
    row_of = jnp.where(row_of < before, row_of, jnp.int32(num_rows))
    return DecodeState(state.prompts._replace(row_of=row_of), table)


def reset(params: Params, rows: RowTable, *, model: LanguageModel, capacity: int) -> RowTable:
    """The table with rows that are spoiled and free as ``init_cache`` makes them."""
    empty = model.init_cache(params, rows.owner.shape[0], capacity)

    def clear(x: jax.Array, fresh: jax.Array) -> jax.Array:
        return jnp.where(rows.spoiled.reshape(-1, *(1,) * (x.ndim - 1)), fresh, x)

    cache = jax.tree.map(clear, rows.cache, empty)
    return rows._replace(spoiled=jnp.zeros_like(rows.spoiled), cache=cache)
