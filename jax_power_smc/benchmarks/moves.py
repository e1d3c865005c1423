"""The forms of a cache move: what each costs in a loop of steps that write and then move.

    take       ``jnp.take`` of every leaf, the reference
    rows       one dead row after the other, whole
    blocks     one dead row after the other, in blocks of the time that is in use
    gathered   one gather and one scatter of the dead rows

``blocks`` is what the transformer does on a CPU, ``gathered`` on other devices.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc.benchmarks.speed import Bench, Subject
from jax_power_smc.models.cache_moves import copy_dead_rows, take_ancestors
from jax_power_smc.models.transformer import kv_cache
from jax_power_smc.models.transformer.transformer import time_axes

_STEPS = 32
FORMS = ("none", "take", "rows", "blocks", "gathered")


def measure(
    bench: Bench,
    subject: Subject,
    particles: Sequence[int],
    capacities: Sequence[int],
    moved_shares: Sequence[float],
) -> None:
    """Seconds of every form, beyond a step that only writes, at a ring that is half full.

    Args:
      bench: see there.
      subject: whose cache it is.
      particles, capacities: N and T.
      moved_shares: of the rows, those that move at every step (at least one).
    """
    for num in particles:
        for capacity in capacities:
            for moved in sorted({max(1, round(share * num)) for share in moved_shares}):
                _measure(bench, subject, num, capacity, moved)


def _measure(bench: Bench, subject: Subject, num: int, capacity: int, moved: int) -> None:
    cache = subject.model.init_cache(subject.params, num, capacity)
    sizes = [leaf.shape for leaf in jax.tree.leaves(cache)]
    axes = tuple(time_axes(cache))
    random = np.random.default_rng(0)
    sources = np.tile(np.arange(num, dtype=np.int32), (_STEPS, 1))
    for row in sources:
        dead = random.choice(num, moved, replace=False)
        row[dead] = random.choice(np.setdiff1d(np.arange(num), dead), moved)

    def loop(form: str, leaves: list[jax.Array], sources: jax.Array) -> list[jax.Array]:
        def body(leaves: Any, x: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            source, clock = x
            leaves = [
                kv_cache.write(leaf, _column(leaf, axis), kv_cache.entry(clock, capacity), axis)
                for leaf, axis in zip(leaves, axes, strict=True)
            ]
            own = jnp.arange(num, dtype=jnp.int32)
            moves = jnp.any(source != own)
            move = functools.partial(_MOVES[form], axes, source=source, clock=clock)
            return jax.lax.cond(moves, move, lambda x: x, leaves), None

        clocks = capacity // 2 + jnp.arange(_STEPS, dtype=jnp.int32)
        return jax.lax.scan(body, leaves, (sources, clocks))[0]

    programs = {form: jax.jit(functools.partial(loop, form), donate_argnums=0) for form in FORMS}

    def run(form: str) -> float:
        leaves = [jnp.zeros(shape, subject.model.dtype) for shape in sizes]
        arguments = jax.block_until_ready((leaves, jnp.asarray(sources)))
        began = time.perf_counter()
        jax.block_until_ready(programs[form](*arguments))
        return (time.perf_counter() - began) / _STEPS

    variants = {form: functools.partial(run, form) for form in FORMS}
    seconds = bench.turns(f"moves, N = {num}, T = {capacity}, {moved} rows", variants)
    for form in FORMS[1:]:
        bench.write(
            "move_time",
            seconds.median(form) - seconds.median("none"),
            "s",
            form=form,
            num_particles=num,
            capacity=capacity,
            moved_rows=moved,
            **subject.about,
        )


def _column(leaf: jax.Array, axis: int) -> jax.Array:
    """What a step writes: ones, of size 1 on the time axis."""
    shape = list(leaf.shape)
    shape[axis] = 1
    return jnp.ones(shape, leaf.dtype)


def _take(axes: Any, leaves: list[jax.Array], source: jax.Array, clock: Any) -> list[jax.Array]:
    return take_ancestors(leaves, source)


def _rows(axes: Any, leaves: list[jax.Array], source: jax.Array, clock: Any) -> list[jax.Array]:
    return copy_dead_rows(leaves, source)


def _none(axes: Any, leaves: list[jax.Array], source: jax.Array, clock: Any) -> list[jax.Array]:
    return leaves


def _blocks(
    axes: tuple[int, ...], leaves: list[jax.Array], source: jax.Array, clock: jax.Array
) -> list[jax.Array]:
    return kv_cache.move_blocks(axes, leaves, *_pairs(source, clock), clock)


def _gathered(
    axes: Any, leaves: list[jax.Array], source: jax.Array, clock: jax.Array
) -> list[jax.Array]:
    return kv_cache.move_gathered(leaves, *_pairs(source, clock), clock)


def _pairs(
    source: jax.Array, clock: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    own = jnp.arange(source.shape[0], dtype=jnp.int32)
    return kv_cache.pairs(source, own, jnp.broadcast_to(clock, source.shape))


_MOVES: dict[str, Callable[..., list[jax.Array]]] = {
    "none": _none,
    "take": _take,
    "rows": _rows,
    "blocks": _blocks,
    "gathered": _gathered,
}
