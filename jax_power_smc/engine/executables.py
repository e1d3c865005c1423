"""The cache of compiled programs, by program, static arguments, shapes and places."""

import collections
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from jax_power_smc.core.mesh import default_place
from jax_power_smc.engine.layout import ONE_DEVICE, Layout
from jax_power_smc.engine.model_cache import ModelCache
from jax_power_smc.engine.program_specs import SPECS
from jax_power_smc.engine.programs import Program
from jax_power_smc.engine.timing import preparing

# A program on a CPU takes some 400 memory maps (on Linux, tiny-reasoner without replacement). A
# process may have 65,530 of them, if the system says nothing else (vm.max_map_count), and the
# compiler aborts at the next one.
# With a third to spare.
MAPS_OF_PROGRAM = 540
USUAL_MAPS = 65_530
MAX_MAP_COUNT = pathlib.Path("/proc/sys/vm/max_map_count")
# It also takes some 11 MB of memory.
MOST_ON_CPU = 250
MOST_ELSEWHERE = 1000


def most_on_cpu() -> int:
    """As many programs as this system lets a process keep."""
    try:
        maps = int(MAX_MAP_COUNT.read_text())
    except (OSError, ValueError):
        maps = USUAL_MAPS
    return min(MOST_ON_CPU, max(maps // MAPS_OF_PROGRAM, 1))


def _limit() -> int:
    return most_on_cpu() if jax.default_backend() == "cpu" else MOST_ELSEWHERE


_EXECUTABLES: ModelCache[Any] = ModelCache(_limit)
_COMPILED: collections.Counter[Program] = collections.Counter()


def compiled_count(function: Program | None = None) -> int:
    """Number of executables compiled so far in this process: of one program, or of all."""
    return _COMPILED.total() if function is None else _COMPILED[function]


def cached_count() -> int:
    """Number of executables that are kept."""
    return len(_EXECUTABLES)


def forget() -> None:
    """Drops every executable.

    What is needed again is compiled again, or found in the persistent compilation cache.
    """
    _EXECUTABLES.clear()


def results(function: Program, static: dict[str, Any], args: Any, layout: Layout) -> Any:
    """The shapes of what a program returns."""
    if layout.mesh is None:
        return jax.eval_shape(functools.partial(function, **static), *args)
    return layout.lower(function, static, args, SPECS[function](layout, args)).out_info


def executable(
    function: Program, static: dict[str, Any], args: Any, layout: Layout = ONE_DEVICE
) -> Any:
    """The compiled form of ``function`` for these shapes and places and JAX's present settings."""
    leaves, structure = jax.tree.flatten(args)
    sizes = {name: value for name, value in static.items() if name != "model"}
    # Every layout of a mesh makes a new model, so the model that it was made from is the key.
    model = static.get("model")
    if model is not None and layout.source is not None:
        model = layout.source
    key = (
        function,
        tuple(sorted(sizes.items())),
        structure,
        tuple((leaf.shape, leaf.dtype) for leaf in leaves),
        layout.mesh,
        _places(leaves) if layout.mesh is None else (),
        tuple(jax.config.values.items()),
    )

    @preparing()
    def compiled() -> Any:
        _COMPILED[function] += 1
        return layout.lower(function, static, args, SPECS[function](layout, args)).compile()

    return _EXECUTABLES.get(model, key, compiled)


def call(function: Program, static: dict[str, Any], args: tuple[Any, ...], layout: Layout) -> Any:
    """Calls the compiled form of ``function`` with arrays, wherever they are."""
    if layout.mesh is not None:
        args = layout.put(args, SPECS[function](layout, args).inputs)
    return executable(function, static, args, layout)(*args)


def _places(leaves: Sequence[Any]) -> tuple[Any, ...]:
    """The sharding of every array that is not simply on the default device."""
    usual = default_place()
    found = ((i, getattr(leaf, "sharding", None)) for i, leaf in enumerate(leaves))
    return tuple((i, where) for i, where in found if where is not None and where != usual)
