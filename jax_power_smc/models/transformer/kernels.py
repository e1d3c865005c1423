"""Attention over the generated half of the cache as one TPU kernel.

``attention`` reads this half in two products with softmax weights between them. The kernel walks
over blocks of time instead and keeps a running maximum and sum, so that keys and values go
through the chip once and scores never leave it. Blocks without a valid entry are not read:

    valid blocks of a ring   1 0 0 1        1 has entries to read
    block asked for          0 0 0 3        asking for the same block again costs no read

Letters: N particles, K key/value heads, G query heads per key/value head, H head dimension,
T capacity, B block of time, R masks; each mask serves N / R rows in a row.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

# Large enough to vanish in a softmax, small enough that a fully masked row stays finite: an empty
# half then has log-sum-exp about -1e30 and merges with weight 0 instead of NaN.
MASKED = -1e30

# A native tile of the chip is [rows, 128]. Query heads are padded to its rows, which would
# otherwise be empty.
_TILE_ROWS = {"float32": 8, "bfloat16": 16}
_LANES = 128


def block_size(k: jax.Array) -> int | None:
    """B for keys [N, K, H, T], or None if the kernel does not serve their shape or dtype."""
    *_, dim, capacity = k.shape
    # Of values [T, H] with H < 128 the compiler makes [H, T] by itself; the kernel's order would
    # cost a copy, twice as large for H = 64.
    if k.dtype.name not in _TILE_ROWS or dim % _LANES:
        return None
    return next((size for size in (512, 256, 128) if capacity % size == 0), None)


@functools.partial(jax.jit, static_argnames="interpret")  # traced once for all layers of a model
def own_half(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Unnormalised attention of scaled queries over the generated half.

    Args:
      q: [N, K, G, H], of the dtype of ``k``.
      k: [N, K, H, T]; v: [N, K, T, H].
      valid: [T] bool.
      interpret: run the kernel step by step on any machine, for tests.

    Returns:
      (sum_i e_i v_i [N, K, G, H], max_i s_i [N, K, G, 1], sum_i e_i [N, K, G, 1]), float32. With
      nothing valid the maximum is -1e30 and the sums are finite and without meaning.

    Raises:
      ValueError: if ``block_size`` of the keys is None.
    """
    if block_size(k) is None:
        raise ValueError(f"The kernel does not serve keys {k.dtype.name}{list(k.shape)}.")
    group = q.shape[2]
    padding = -group % _TILE_ROWS[k.dtype.name]
    q = jnp.pad(q, ((0, 0), (0, 0), (0, padding), (0, 0)))
    out = _over_prompts(interpret)(q, k, v, valid[None])
    part, top, total = (x[:, :, :group] for x in out)
    return part, top[..., :1], total[..., :1]


@functools.cache
def _over_prompts(interpret: bool) -> Any:
    """``_call`` whose vmap makes more rows N of the prompts.

    The vmap of Pallas would be a loop over prompts that copies each one's cache out of the whole,
    as the blocks to read differ from prompt to prompt.
    """

    @jax.custom_batching.custom_vmap
    def call(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array) -> Any:
        return _call(q, k, v, valid, interpret)

    @call.def_vmap
    def fold(size: int, batched: Any, *args: jax.Array) -> tuple[Any, Any]:
        """Rows [P, N, ...] -> [P N, ...] and masks [P, R, T] -> [P R, T]."""
        *rows, valid = (
            x if there else jnp.broadcast_to(x[None], (size, *x.shape))
            for x, there in zip(args, batched, strict=True)
        )
        if not batched[-1] and valid.shape[1] == 1:
            valid = valid[:1]  # one mask for all
        out = call(*(x.reshape(-1, *x.shape[2:]) for x in (*rows, valid)))
        return tuple(x.reshape(size, -1, *x.shape[1:]) for x in out), (True,) * 3

    return call


def _blocks_asked(valid: jax.Array, block: int) -> jax.Array:
    """Masks [R, T] -> [R, T/B] int32: the block asked for at each step, itself if it has entries.

    Otherwise it is the last one before it that has, which is still in memory, or else the first
    one that has, read ahead of its turn; block 0 if there is none.
    """
    has_entries = jnp.any(valid.reshape(valid.shape[0], -1, block), axis=-1)
    steps = jnp.arange(has_entries.shape[1], dtype=jnp.int32)[None]
    last = jax.lax.cummax(jnp.where(has_entries, steps, jnp.int32(-1)), axis=1)
    first = jnp.argmax(has_entries, axis=1, keepdims=True).astype(jnp.int32)
    return jnp.where(last < 0, first, last)


def _call(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array, interpret: bool
) -> list[jax.Array]:
    """The kernel itself, with whole tiles of query heads and masks [R, T].

    Returns:
      As ``own_half``, but the last two as [N, K, G, 128], all lanes equal.
    """
    n, heads, group, dim = q.shape
    masks, capacity = valid.shape
    block = block_size(k)
    assert block is not None
    blocks, rows = capacity // block, n // masks

    # Flat, since the scalar memory pads the last axis of an array to 128.
    asked = _blocks_asked(valid, block).reshape(-1)

    def mask_of(i: Any) -> Any:
        return jax.lax.div(i, jnp.int32(rows))

    def asked_at(i: Any, t: Any, asked_ref: Any) -> Any:
        return asked_ref[mask_of(i) * jnp.int32(blocks) + t]

    def kernel(asked_ref, valid_ref, q_ref, k_ref, v_ref, part_ref, top_ref, total_ref):  # type: ignore[no-untyped-def]
        # The three results of a row and head stay in fast memory for all of its blocks.
        i, t = pl.program_id(0), pl.program_id(2)

        @pl.when(t == 0)
        def _() -> None:
            part_ref[...] = jnp.zeros_like(part_ref)
            top_ref[...] = jnp.full_like(top_ref, MASKED)
            total_ref[...] = jnp.zeros_like(total_ref)

        @pl.when(asked_at(i, t, asked_ref) == t)
        def _() -> None:
            keys, values = k_ref[...], v_ref[...]
            scores = jnp.dot(q_ref[...], keys, preferred_element_type=jnp.float32)  # [G, B]
            here = jnp.broadcast_to(valid_ref[...], scores.shape) != 0
            scores = jnp.where(here, scores, jnp.float32(MASKED))
            before = top_ref[...]  # [G, 128], all lanes equal
            top = jnp.maximum(
                before, jnp.broadcast_to(jnp.max(scores, axis=-1, keepdims=True), before.shape)
            )
            scale = jnp.exp(before - top)
            weights = jnp.exp(scores - top[:, :1])
            total = jnp.sum(weights, axis=-1, keepdims=True)
            part = jnp.dot(weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
            top_ref[...] = top
            total_ref[...] = scale * total_ref[...] + total
            part_ref[...] = scale[:, :1] * part_ref[...] + part

    def resident(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, group, width), lambda i, j, t, asked: (i, j, 0, 0))

    def result(width: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((n, heads, group, width), jnp.float32)

    return pl.pallas_call(
        kernel,
        out_shape=[result(dim), result(_LANES), result(_LANES)],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(n, heads, blocks),
            in_specs=[
                pl.BlockSpec(
                    (None, 1, block), lambda i, j, t, asked: (mask_of(i), 0, asked_at(i, t, asked))
                ),
                resident(dim),
                pl.BlockSpec(
                    (None, None, dim, block),
                    lambda i, j, t, asked: (i, j, 0, asked_at(i, t, asked)),
                ),
                pl.BlockSpec(
                    (None, None, block, dim),
                    lambda i, j, t, asked: (i, j, asked_at(i, t, asked), 0),
                ),
            ],
            out_specs=[resident(dim), resident(_LANES), resident(_LANES)],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="own_half",
    )(asked, valid[:, None].astype(jnp.int32), q, k, v)
