"""A decode step's attention as one TPU kernel per layer, which also writes the new entries.

Rows differ in length, so the kernel walks over a list of work items that is planned on the device:
one for each block of entries that a live row attends to. Its grid is as long as that list. Free
rows, and blocks beyond a row's end or before its window, cost nothing:

    block 256, rows of 300, 10 and (free) entries      items  (row 0, block 0)
                                                              (row 0, block 1)
                                                              (row 1, block 0)

Blocks of keys and values are read once, with a running maximum and sum (online softmax). The new
token's key and value are merged from registers at a row's last block; the tile of entries around
them, which is in fast memory by then, is written back in place while the next rows are read.

Letters: R rows, T capacity, K key/value heads, G query heads per key/value head, H head dimension,
P prompts under vmap.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jax_power_smc.models.transformer.vmap_rules import broadcast_unbatched

# Low enough to vanish in a softmax, and finite.
MASKED = -1e30

# Entries of a native tile [entries, 128]: what the new entry is written with.
_TILE = {"float32": 8, "bfloat16": 16}
_LANES = 128
# A block of keys: enough to hide the latency of memory, and half of it is wasted in the last block
# of a row. Read over needed entries of rows of mixed ages: 1.2 with blocks of 512, 1.1 with 256.
_BLOCK_BYTES = 1 << 18
# The items are listed in scalar memory.
_MAX_ITEMS = 1 << 15


class Plan(NamedTuple):
    """The work items of a step.

    Attributes:
      sizes: [2] int32, the number of items and of live rows.
      row, block: int32, of each item; as many as there can be.
      position: [R] int32, of the new token.
      order: [R] int32, a live row's number among the live ones.
    """

    sizes: jax.Array
    row: jax.Array
    block: jax.Array
    position: jax.Array
    order: jax.Array


def block_size(keys: jax.Array, head_dim: int) -> int | None:
    """The block of entries for keys [R, T, K*H], or None if the kernel does not serve them."""
    rows, capacity, width = keys.shape
    if keys.dtype.name not in _TILE or width % _LANES or head_dim % 32:
        return None
    sizes = [size for size in (512, 256, 128) if capacity % size == 0]
    small = [size for size in sizes if size * width * keys.dtype.itemsize <= _BLOCK_BYTES]
    block = max(small, default=min(sizes, default=0))
    return block if block and rows * capacity <= _MAX_ITEMS * block else None


def decode(
    q: jax.Array,
    new_keys: jax.Array,
    new_values: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    position: jax.Array,
    count: jax.Array,
    *,
    softcap: float | None = None,
    window: int | None = None,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Writes a new entry into every live row, and attends to the row's entries up to it.

    Args:
      q: [R, K, G, H], scaled, of the dtype of ``keys``.
      new_keys, new_values: [R, K, H].
      keys, values: [R, T, K*H], updated in place.
      position: [R] int32, of the new entries.
      count: [R] int32, 0 for rows of which nothing is read or written.
      softcap, window: as in ``attention.Scoring``.
      interpret: whether to run the kernel in Pallas's interpreter, on any machine, for tests: True
        or ``pltpu.InterpretParams``.

    Returns:
      Attention [R, K, G, H], zero where nothing was read; keys; values.

    Raises:
      ValueError: if ``block_size`` is None.
    """
    if block_size(keys, q.shape[-1]) is None:
        raise ValueError(
            f"the kernel does not support keys {keys.dtype.name}{list(keys.shape)} of heads of "
            f"{q.shape[-1]}."
        )
    return _over_prompts(softcap, window, interpret)(
        q, new_keys, new_values, keys, values, position, count > 0
    )


@functools.lru_cache(maxsize=64)
def _over_prompts(softcap: float | None, window: int | None, interpret: Any) -> Any:
    """``_call`` with a vmap that makes the rows of all prompts one table."""

    @jax.custom_batching.custom_vmap
    def call(*args: jax.Array) -> Any:
        return _call(*args, softcap=softcap, window=window, interpret=interpret)

    @call.def_vmap
    def fold(size: int, batched: Any, *args: jax.Array) -> tuple[Any, Any]:
        """Arrays [P, R, ...] -> [P R, ...] and back."""
        args = broadcast_unbatched(size, tuple(batched), args)
        out = call(*(x.reshape(-1, *x.shape[2:]) for x in args))
        return tuple(x.reshape(size, -1, *x.shape[1:]) for x in out), (True,) * 3

    return call


def plan(position: jax.Array, live: jax.Array, blocks: int, block: int, window: int | None) -> Plan:
    """The items of rows of up to ``blocks`` blocks. It is the same for all layers with a window."""
    rows = position.shape[0]
    first = _first_block(position, block, window)
    number = jnp.where(live, position // block - first + 1, 0)
    ends = jnp.cumsum(number, dtype=jnp.int32)
    item = jnp.arange(rows * blocks, dtype=jnp.int32)
    row = jnp.sum(ends[None, :] <= item[:, None], axis=1, dtype=jnp.int32)
    row = jnp.minimum(row, jnp.int32(rows - 1))  # beyond the last item
    offset = jnp.clip(item - (ends - number)[row], 0, jnp.maximum(number[row] - 1, 0))
    alive = jnp.cumsum(live, dtype=jnp.int32)
    return Plan(jnp.stack([ends[-1], alive[-1]]), row, first[row] + offset, position, alive - 1)


def _first_block(position: Any, block: int, window: int | None) -> Any:
    if window is None:
        return position * 0
    return _quotient(jnp.maximum(position - jnp.int32(window - 1), 0), block)


# Of numbers that are not negative. To look at signs, as ``//`` and ``%`` do, Pallas must know the
# chip, and a program that is compiled for another machine has none.


def _quotient(x: jax.Array, divisor: int) -> jax.Array:
    return jax.lax.div(x, jnp.full_like(x, divisor))


def _remainder(x: jax.Array, divisor: int) -> jax.Array:
    return jax.lax.rem(x, jnp.full_like(x, divisor))


def _call(
    q: jax.Array,
    new_keys: jax.Array,
    new_values: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    position: jax.Array,
    live: jax.Array,
    *,
    softcap: float | None,
    window: int | None,
    interpret: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    rows, heads, group, dim = q.shape
    capacity, width = keys.shape[1:]
    dtype, tile = keys.dtype, _TILE[keys.dtype.name]
    block = block_size(keys, dim)
    # Folded prompts may be too many rows for one list; then the smallest block has to do.
    block = block or next(size for size in (512, 256, 128) if capacity % size == 0)
    padded = -(-group // 8) * 8
    # A free row may have any position, also one beyond the end.
    position = jnp.clip(position, 0, capacity - 1)
    items = plan(position, live, capacity // block, block, window)

    def columns(head: int) -> slice:
        return slice(head * dim, (head + 1) * dim)

    def capped(scores: jax.Array) -> jax.Array:
        return scores if softcap is None else softcap * jnp.tanh(scores / softcap)

    def kernel(  # type: ignore[no-untyped-def]
        sizes_ref, row_ref, block_ref, position_ref, order_ref,
        q_ref, new_k_ref, new_v_ref, k_ref, v_ref,
        out_ref, all_k_ref, all_v_ref,
        part_ref, top_ref, total_ref, tile_k_ref, tile_v_ref, sem_k_ref, sem_v_ref,
    ):  # fmt: skip
        i = pl.program_id(0)
        row, at = row_ref[i], block_ref[i]
        new = position_ref[row]

        def write_back(row: Any, slot: Any, first: Any) -> list[Any]:
            """The copies of a row's tiles to memory."""
            to = row, pl.ds(first, tile), slice(None)
            return [
                pltpu.make_async_copy(tile_ref.at[slot], ref.at[to], sem_ref.at[slot])
                for tile_ref, ref, sem_ref in (
                    (tile_k_ref, all_k_ref, sem_k_ref),
                    (tile_v_ref, all_v_ref, sem_v_ref),
                )
            ]

        def is_item(condition: Any) -> Any:
            return pl.when((i < sizes_ref[0]) & condition)  # without live rows there is no item

        @is_item(at == _first_block(new, block, window))
        def _() -> None:
            part_ref[...] = jnp.zeros_like(part_ref)
            top_ref[...] = jnp.full_like(top_ref, MASKED)
            total_ref[...] = jnp.zeros_like(total_ref)

        @is_item(True)
        def _() -> None:
            entry = at * block + jax.lax.broadcasted_iota(jnp.int32, (padded, block), 1)
            visible = entry < new
            if window is not None:
                visible = visible & (entry > new - window)
            # K independent chains, which the chip interleaves.
            for head in range(heads):
                scores = jax.lax.dot_general(
                    q_ref[head].astype(dtype),
                    k_ref[:, columns(head)],
                    (((1,), (1,)), ((), ())),
                    preferred_element_type=jnp.float32,
                )
                scores = jnp.where(visible, capped(scores), jnp.float32(MASKED))
                before = top_ref[head]
                top = jnp.maximum(before, jnp.max(scores, axis=-1, keepdims=True))
                shrink = jnp.exp(before - top)  # [., 128], all lanes equal
                weights = jnp.exp(scores - top[:, :1])
                total_ref[head] = shrink * total_ref[head] + jnp.sum(
                    weights, axis=-1, keepdims=True
                )
                part = jnp.dot(
                    weights.astype(dtype), v_ref[:, columns(head)],
                    preferred_element_type=jnp.float32,
                )  # fmt: skip
                part_ref[head] = shrink[:, :1] * part_ref[head] + part
                top_ref[head] = top

        @is_item(at == _quotient(new, block))
        def _() -> None:
            new_k, new_v = new_k_ref[...], new_v_ref[...]  # [1, K*H]
            for head in range(heads):
                scores = jnp.sum(q_ref[head] * new_k[:, columns(head)], axis=-1, keepdims=True)
                before, scores = top_ref[head][:, :1], capped(scores)
                top = jnp.maximum(before, scores)
                shrink, weight = jnp.exp(before - top), jnp.exp(scores - top)
                total = shrink * total_ref[head][:, :1] + weight
                part = shrink * part_ref[head] + weight * new_v[:, columns(head)]
                out_ref[head] = part / total

            order = order_ref[row]
            slot = _remainder(order, 2)

            @pl.when(order >= 2)
            def _() -> None:
                for copy in write_back(row, slot, 0):  # what the slot held has arrived
                    copy.wait()

            inside = pl.multiple_of(_quotient(_remainder(new, block), tile) * tile, tile)
            is_new = jax.lax.broadcasted_iota(jnp.int32, (tile, width), 0) == _remainder(new, tile)
            for tile_ref, ref, entry in (
                (tile_k_ref, k_ref, new_k), (tile_v_ref, v_ref, new_v),
            ):  # fmt: skip
                old = ref[pl.ds(inside, tile), :].astype(jnp.float32)
                tile_ref[slot] = jnp.where(is_new, entry, old).astype(dtype)
            for copy in write_back(row, slot, pl.multiple_of(_quotient(new, tile) * tile, tile)):
                copy.start()

            @pl.when(order == sizes_ref[1] - 1)
            def _() -> None:
                for copy in write_back(row, slot, 0):
                    copy.wait()

                @pl.when(order > 0)
                def _() -> None:
                    for copy in write_back(row, 1 - slot, 0):
                        copy.wait()

    def of_row(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, *shape), lambda i, n, row, *_: (row[i], *(0,) * len(shape)))

    entries = pl.BlockSpec((None, block, width), lambda i, n, row, at, *_: (row[i], at[i], 0))
    in_memory = pl.BlockSpec(memory_space=pl.ANY)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, padded - group), (0, 0))).astype(jnp.float32)
    new_keys, new_values = (
        x.astype(jnp.float32).reshape(rows, 1, width) for x in (new_keys, new_values)
    )
    out, keys, values = pl.pallas_call(
        kernel,
        # In device memory, or XLA moves small leaves to fast memory and back in every step.
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, jnp.float32),
            pltpu.HBM(keys.shape, dtype),
            pltpu.HBM(values.shape, dtype),
        ],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(items),
            grid=(jnp.maximum(items.sizes[0], 1),),
            in_specs=[
                of_row(heads, padded, dim),
                of_row(1, width),
                of_row(1, width),
                entries,
                entries,
            ],
            out_specs=[of_row(heads, padded, dim), in_memory, in_memory],
            scratch_shapes=[
                pltpu.VMEM((heads, padded, dim), jnp.float32),
                pltpu.VMEM((heads, padded, _LANES), jnp.float32),
                pltpu.VMEM((heads, padded, _LANES), jnp.float32),
                pltpu.VMEM((2, tile, width), dtype),
                pltpu.VMEM((2, tile, width), dtype),
                pltpu.SemaphoreType.DMA((2,)),
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        # Read in blocks, written by hand: one buffer each.
        input_output_aliases={len(items) + 3: 1, len(items) + 4: 2},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
        name="decode_attention",
    )(*items, q, new_keys, new_values, keys, values)
    # The kernel leaves the other rows' attention as it was in memory.
    out = jnp.where(live[:, None, None, None], out[:, :, :group], 0.0)
    return out.astype(dtype), keys, values
