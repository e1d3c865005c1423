"""Attention over the generated half of the cache as one TPU kernel.

``attention`` reads this half in two products with softmax weights between them. The kernel instead
walks over blocks of time and keeps a running maximum and sum (online softmax), so that keys and
values are read from memory once and scores never leave the chip. Blocks without a valid entry are
not read:

    valid blocks of a ring   1 0 0 1        1 has entries to read
    block requested          0 0 0 3        requesting the same block again costs no read

Letters: N particles, K key/value heads, G query heads per key/value head, H head dimension,
T capacity, B block of time, R masks; each mask serves N / R consecutive rows.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jax_power_smc.models.vmap_rules import broadcast_unbatched

# Low enough to vanish in a softmax, and finite so that a fully masked row stays finite: an empty
# half then has a log-sum-exp of about -1e30 and is merged with weight 0 instead of NaN.
MASKED = -1e30

# A native tile of the chip is [rows, 128]. Query heads are padded to a full tile, which costs
# nothing: its other rows would be empty.
_TILE_ROWS = {"float32": 8, "bfloat16": 16}
_LANES = 128


def block_size(k: jax.Array) -> int | None:
    """B for keys [N, K, H, T], or None if the kernel does not support their shape or dtype."""
    *_, dim, capacity = k.shape
    # The compiler stores values [T, H] with H < 128 as [H, T]; the kernel's layout would cost a
    # copy, twice as large for H = 64.
    if k.dtype.name not in _TILE_ROWS or dim % _LANES:
        return None
    return next((size for size in (512, 256, 128) if capacity % size == 0), None)


@functools.partial(jax.jit, static_argnames="interpret")  # traced once for all layers of a model
def generated_half(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Unnormalised attention of scaled queries over the generated half.

    Args:
      q: [N, K, G, H], of the dtype of ``k``.
      k: [N, K, H, T]; v: [N, K, T, H].
      valid: [T] bool.
      interpret: whether to run the kernel in Pallas's interpreter, on any machine, for tests.

    Returns:
      (sum_i e_i v_i [N, K, G, H], max_i s_i [N, K, G, 1], sum_i e_i [N, K, G, 1]), float32, where
      e_i = exp(s_i - max s). If nothing is valid, the maximum is -1e30 and the sums are finite but
      meaningless.

    Raises:
      ValueError: if ``block_size`` of the keys is None.
    """
    if block_size(k) is None:
        raise ValueError(f"the kernel does not support keys {k.dtype.name}{list(k.shape)}.")
    group = q.shape[2]
    padding = -group % _TILE_ROWS[k.dtype.name]
    q = jnp.pad(q, ((0, 0), (0, 0), (0, padding), (0, 0)))
    out = _over_prompts(interpret)(q, k, v, valid[None])
    part, top, total = (x[:, :, :group] for x in out)
    return part, top[..., :1], total[..., :1]


@functools.cache
def _over_prompts(interpret: bool) -> Any:
    """``_call`` with a vmap that turns prompts into more rows N.

    Pallas's own vmap would be a loop over prompts that copies each prompt's cache out of the whole,
    because the blocks to read differ from prompt to prompt.
    """

    @jax.custom_batching.custom_vmap
    def call(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array) -> Any:
        return _call(q, k, v, valid, interpret)

    @call.def_vmap
    def fold(size: int, batched: Any, *args: jax.Array) -> tuple[Any, Any]:
        """Rows [P, N, ...] -> [P N, ...] and masks [P, R, T] -> [P R, T]."""
        *rows, valid = broadcast_unbatched(size, tuple(batched), args)
        if not batched[-1] and valid.shape[1] == 1:
            valid = valid[:1]  # one mask for all
        out = call(*(x.reshape(-1, *x.shape[2:]) for x in (*rows, valid)))
        return tuple(x.reshape(size, -1, *x.shape[1:]) for x in out), (True,) * 3

    return call


def _requested_blocks(valid: jax.Array, block: int) -> jax.Array:
    """Masks [R, T] -> [R, T/B] int32: the block requested at each step.

    A block with valid entries is requested at its own step. At other steps it is the last such
    block before, which is still in memory, or else the first such block, read ahead of its turn;
    block 0 if there is none.
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
      As ``generated_half``, but the last two as [N, K, G, 128], all lanes equal.
    """
    n, heads, group, dim = q.shape
    masks, capacity = valid.shape
    block = block_size(k)
    assert block is not None
    blocks, rows = capacity // block, n // masks

    # Flat, because scalar memory pads the last axis of an array to 128.
    requested = _requested_blocks(valid, block).reshape(-1)

    def mask_of(i: Any) -> Any:
        return jax.lax.div(i, jnp.int32(rows))

    def requested_at(i: Any, t: Any, requested_ref: Any) -> Any:
        return requested_ref[mask_of(i) * jnp.int32(blocks) + t]

    def kernel(requested_ref, valid_ref, q_ref, k_ref, v_ref, part_ref, top_ref, total_ref):  # type: ignore[no-untyped-def]
        # The three results of a row and head stay in fast memory for all of its blocks.
        i, t = pl.program_id(0), pl.program_id(2)

        @pl.when(t == 0)
        def _() -> None:
            part_ref[...] = jnp.zeros_like(part_ref)
            top_ref[...] = jnp.full_like(top_ref, MASKED)
            total_ref[...] = jnp.zeros_like(total_ref)

        @pl.when(requested_at(i, t, requested_ref) == t)
        def _() -> None:
            keys, values = k_ref[...], v_ref[...]
            scores = jnp.dot(q_ref[...], keys, preferred_element_type=jnp.float32)  # [G, B]
            is_valid = jnp.broadcast_to(valid_ref[...], scores.shape) != 0
            scores = jnp.where(is_valid, scores, jnp.float32(MASKED))
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
        return pl.BlockSpec((None, None, group, width), lambda i, j, t, requested: (i, j, 0, 0))

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
                    (None, 1, block),
                    lambda i, j, t, requested: (mask_of(i), 0, requested_at(i, t, requested)),
                ),
                resident(dim),
                pl.BlockSpec(
                    (None, None, dim, block),
                    lambda i, j, t, requested: (i, j, 0, requested_at(i, t, requested)),
                ),
                pl.BlockSpec(
                    (None, None, block, dim),
                    lambda i, j, t, requested: (i, j, requested_at(i, t, requested), 0),
                ),
            ],
            out_specs=[resident(dim), resident(_LANES), resident(_LANES)],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="generated_half",
    )(requested, valid[:, None].astype(jnp.int32), q, k, v)
