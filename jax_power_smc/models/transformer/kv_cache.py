"""A cache of generated tokens as a ring buffer, addressed by a clock that all prompts share.

The token decoded at clock c is stored in entry ``c mod capacity``. A sequence at step t has written
the last t + 1 entries and never reads any other:

    clock 9, capacity 8, step 3      entries  0 1 2 3 4 5 6 7
                                     ages     1 0 7 6 5 4 3 2     ages 0 .. 3 are its own

So sequences that began at different times share one write index, and a step writes one column.

Letters: P prompts, N particles, T capacity.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_power_smc.models.vmap_rules import broadcast_unbatched

# Entries copied at a time; blocks that a young sequence has not written yet are skipped. On a CPU,
# blocks of 256 took at most 1.4 times as long as whole rows in half-full rings of N = 8 and 64,
# T = 256 to 2048 (blocks of 128 up to 2.3 times), although a block has short strides.
BLOCK = 256
# The number of rows over these is how many one gather and scatter moves, on devices where loops are
# costly.
_MOVED_SHARES = (8, 4, 2, 1)


def entry(clock: jax.Array, capacity: int) -> jax.Array:
    """[] int32, the entry for the token decoded at this clock."""
    return jnp.mod(clock, jnp.int32(capacity))


def ages(clock: jax.Array, capacity: int) -> jax.Array:
    """[T] int32, how many steps ago each entry was written."""
    return jnp.mod(clock - jnp.arange(capacity, dtype=jnp.int32), jnp.int32(capacity))


def write(leaf: jax.Array, column: jax.Array, place: jax.Array, axis: int) -> jax.Array:
    """Writes a column, of size 1 on the time axis, into entry ``place`` [] of the leaf, in place.

    ``axis`` counts from the end. Under vmap with one place for all prompts this remains a single
    ``dynamic_update_slice``. JAX's own rule turns it into a scatter, which, compiled for a TPU v5e,
    copied the whole cache in every step.
    """
    return _writer(axis)(leaf, column, place)


@functools.lru_cache(maxsize=256)
def _writer(axis: int) -> Callable[..., jax.Array]:
    def update(leaf: jax.Array, column: jax.Array, place: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(leaf, column, place, leaf.ndim + axis)

    write = jax.custom_batching.custom_vmap(update)

    @write.def_vmap
    def _(size, batched, leaf, column, place):  # type: ignore[no-untyped-def]
        if batched[2]:
            axes = tuple(0 if has_axis else None for has_axis in batched)
            return jax.vmap(update, in_axes=axes)(leaf, column, place), True
        leaf, column = broadcast_unbatched(size, tuple(batched[:2]), (leaf, column))
        return write(leaf, column, place), True

    return write


def resize(leaf: jax.Array, axis: int, capacity: int, clock: jax.Array) -> jax.Array:
    """Changes the capacity of a ring on one axis; keeps the tokens of every age that fits both."""
    old = entry(clock - ages(clock, capacity), leaf.shape[axis])
    return jnp.take(leaf, old, axis=axis, mode="clip")


def move_rows(
    leaves: Sequence[jax.Array],
    time_axes: Sequence[int],
    source: jax.Array,
    destination: jax.Array,
    step: jax.Array,
    clock: jax.Array,
) -> list[jax.Array]:
    """Copies row ``source[i]`` of every leaf to row ``destination[i]``, in the leaf's own memory.

    Rows that stay cost nothing, and of those that move only the entries in use are copied. Under
    vmap the moves of all prompts are one list, because a loop per prompt would make as many turns
    for every prompt as the one with the most moves needs.

    Args:
      leaves: arrays that lead with N and are rings of equal capacity on one axis.
      time_axes: that axis of each leaf, counted from the end (negative).
      source, destination: [N] int32; a pair of equal indices moves nothing, and no other
        destination is also a source.
      step, clock: [] int32, of the last token written.
    """
    mover = _mover(tuple(time_axes))
    return mover(list(leaves), source, destination, step, clock)


@functools.lru_cache(maxsize=256)
def _mover(time_axes: tuple[int, ...]) -> Callable[..., list[jax.Array]]:
    @jax.custom_batching.custom_vmap
    def move(
        leaves: list[jax.Array],
        source: jax.Array,
        destination: jax.Array,
        step: jax.Array,
        clock: jax.Array,
    ) -> list[jax.Array]:
        steps = jnp.broadcast_to(step, source.shape)
        return _move(leaves, time_axes, source, destination, steps, clock)

    @move.def_vmap
    def _(size, batched, leaves, source, destination, step, clock):  # type: ignore[no-untyped-def]
        if batched[4]:
            raise ValueError("the clock must be the same for all prompts.")
        leaves, source, destination, step = broadcast_unbatched(
            size, tuple(batched[:4]), (leaves, source, destination, step)
        )
        num = source.shape[1]
        first = num * jnp.arange(size, dtype=jnp.int32)[:, None]
        flat = [x.reshape(size * num, *x.shape[2:]) for x in leaves]
        steps = jnp.broadcast_to(step[:, None], (size, num))
        moved = _move(
            flat,
            time_axes,
            (source + first).reshape(-1),
            (destination + first).reshape(-1),
            steps.reshape(-1),
            clock,
        )
        return [x.reshape(y.shape) for x, y in zip(moved, leaves, strict=True)], [True] * len(moved)

    return move


def _move(
    leaves: list[jax.Array],
    time_axes: tuple[int, ...],
    source: jax.Array,
    destination: jax.Array,
    steps: jax.Array,
    clock: jax.Array,
) -> list[jax.Array]:
    """Leaves [R, ...], the R rows of all prompts; source, destination, steps [R]."""
    lists = pairs(source, destination, steps)
    return jax.lax.platform_dependent(
        leaves,
        *lists,
        clock,
        cpu=functools.partial(move_blocks, time_axes),
        default=move_gathered,
    )


def pairs(
    source: jax.Array, destination: jax.Array, steps: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The lists [R], with the pairs that move something first, and the number [] of those."""
    moves = source != destination
    first = jnp.nonzero(moves, size=moves.shape[0], fill_value=0)[0].astype(jnp.int32)
    return source[first], destination[first], steps[first], jnp.sum(moves, dtype=jnp.int32)


def move_blocks(
    time_axes: tuple[int, ...],
    leaves: list[jax.Array],
    source: jax.Array,
    destination: jax.Array,
    steps: jax.Array,
    count: jax.Array,
    clock: jax.Array,
) -> list[jax.Array]:
    """Copies the first ``count`` pairs one by one, in blocks along time."""
    capacity = leaves[0].shape[time_axes[0]]
    block = block_size(capacity)
    num_blocks = capacity // block

    def copy_pair(index: jax.Array, leaves: list[jax.Array]) -> list[jax.Array]:
        start = entry(clock - steps[index], capacity)
        used = jnp.minimum(
            (start % block + steps[index]) // block + 1, jnp.int32(num_blocks)
        )  # blocks from the oldest entry to the newest, around the end if necessary

        def copy_block(offset: jax.Array, leaves: list[jax.Array]) -> list[jax.Array]:
            time = (start // block + offset) % num_blocks * block
            return [
                _copy(leaf, axis, block, source[index], destination[index], time)
                for leaf, axis in zip(leaves, time_axes, strict=True)
            ]

        return jax.lax.fori_loop(0, used, copy_block, leaves)

    return jax.lax.fori_loop(0, count, copy_pair, leaves)


def move_gathered(
    leaves: list[jax.Array],
    source: jax.Array,
    destination: jax.Array,
    steps: jax.Array,
    count: jax.Array,
    clock: jax.Array,
) -> list[jax.Array]:
    """Like ``move_blocks``, but with one gather and one scatter of whole rows per leaf.

    For devices on which every turn of a loop launches a kernel. The number of rows moved is rounded
    up to one of a few fractions of all rows, each compiled as a branch of its own.
    """
    del steps, clock
    rows = source.shape[0]
    sizes = sorted({-(-rows // share) for share in _MOVED_SHARES})
    counted = jnp.arange(rows, dtype=jnp.int32) < count
    to = jnp.where(counted, destination, jnp.int32(rows))  # beyond the end: dropped

    def mover(size: int) -> Callable[[list[jax.Array]], list[jax.Array]]:
        return lambda leaves: [
            leaf.at[to[:size]].set(leaf[source[:size]], mode="drop") for leaf in leaves
        ]

    enough = jnp.asarray(sizes, jnp.int32) >= count
    return jax.lax.switch(jnp.argmax(enough), [mover(size) for size in sizes], leaves)


def block_size(capacity: int) -> int:
    """The largest power of two up to ``BLOCK`` that divides the capacity."""
    return min(BLOCK, capacity & -capacity)


def _copy(
    leaf: jax.Array,
    axis: int,
    block: int,
    source: jax.Array,
    destination: jax.Array,
    time: jax.Array,
) -> jax.Array:
    """Copies one block of one row."""
    axis = leaf.ndim + axis
    shape = [1, *leaf.shape[1:]]
    shape[axis] = block
    starts: list[Any] = [jnp.zeros((), jnp.int32)] * leaf.ndim

    def at(row: jax.Array) -> list[Any]:
        return [row, *starts[1:axis], time, *starts[axis + 1 :]]

    piece = jax.lax.dynamic_slice(leaf, at(source), shape)
    return jax.lax.dynamic_update_slice(leaf, piece, at(destination))
