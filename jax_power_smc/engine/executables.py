"""The cache of compiled programs, by program, static arguments, shapes and places."""

import functools
from collections.abc import Sequence
from typing import Any

import jax

from jax_power_smc.core.mesh import default_place
from jax_power_smc.engine.layout import ONE_DEVICE, Layout
from jax_power_smc.engine.programs import SPECS
from jax_power_smc.engine.timing import preparing

_EXECUTABLES: dict[Any, Any] = {}


# A program on a CPU is some 400 maps of memory (Linux, tiny-reasoner with swor); a process may have
# 65530 of them, and the compiler aborts at the next.
MOST_ON_CPU = 120


def compiled_count(function: Any = None) -> int:
    """Number of executables compiled so far in this process: of one program, or of all."""
    return sum(function in (None, key[0]) for key in _EXECUTABLES)


def forget() -> None:
    """Drops every executable, and JAX's own caches, which would keep them alive.

    What is needed again is compiled again, or found in the persistent compilation cache.
    """
    _EXECUTABLES.clear()
    jax.clear_caches()


def results(function: Any, static: dict[str, Any], args: Any, layout: Layout) -> Any:
    """The shapes of what a program returns."""
    if layout.mesh is None:
        return jax.eval_shape(functools.partial(function, **static), *args)
    return layout.lower(function, static, args, SPECS[function](layout, args)).out_info


def executable(
    function: Any, static: dict[str, Any], args: Any, layout: Layout = ONE_DEVICE
) -> Any:
    """The compiled form of ``function`` for these shapes and places and JAX's present settings."""
    leaves, structure = jax.tree.flatten(args)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    named = tuple(sorted(static.items(), key=lambda x: x[0]))
    settings = tuple(jax.config.values.items())
    places = _places(leaves) if layout.mesh is None else ()
    cache_key = (function, named, structure, shapes, layout.mesh, places, settings)
    if cache_key in _EXECUTABLES:
        return _EXECUTABLES[cache_key]
    if len(_EXECUTABLES) >= MOST_ON_CPU and jax.default_backend() == "cpu":
        forget()
    with preparing():
        executable = layout.lower(function, static, args, SPECS[function](layout, args)).compile()
    _EXECUTABLES[cache_key] = executable
    return executable


def call(function: Any, static: dict[str, Any], args: tuple[Any, ...], layout: Layout) -> Any:
    """Calls the compiled form of ``function`` with arrays, wherever they lie."""
    if layout.mesh is not None:
        args = layout.put(args, SPECS[function](layout, args).inputs)
    return executable(function, static, args, layout)(*args)


def _places(leaves: Sequence[Any]) -> tuple[Any, ...]:
    """Where arrays lie that are not simply on the default device."""
    usual = default_place()
    found = ((i, getattr(leaf, "sharding", None)) for i, leaf in enumerate(leaves))
    return tuple((i, where) for i, where in found if where is not None and where != usual)
