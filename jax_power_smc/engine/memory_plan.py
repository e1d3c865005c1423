"""How many rows and prompts a device has room for, computed from shapes alone.

A row has its part of the model's cache and, while a step runs, temporary arrays; a prompt slot has
its particles. Letters: P slots, R rows, N particles, T the cap. Sizes are bytes.
"""

import bisect
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jax_power_smc.core import checks
from jax_power_smc.core.types import Params
from jax_power_smc.engine.layout import ONE_DEVICE, Layout
from jax_power_smc.engine.model_cache import ModelCache
from jax_power_smc.models.base import LanguageModel

# The share of a device's memory that the engine may use. An accelerator also holds compiled
# programs and loses some to fragmentation; a CPU's memory is shared with other processes.
ACCELERATOR_SHARE = 0.9
CPU_SHARE = 0.7
CGROUP_ROOT = pathlib.Path("/sys/fs/cgroup")
OWN_CGROUPS = pathlib.Path("/proc/self/cgroup")

# Temporary float32 arrays of the logits' size. XLA CPU planned (``memory_analysis``) 1.1 to 3.3 of
# them for targets without truncation, 7 with top-p, and 10.5 with all restrictions at once.
LOGITS_COPIES = 11
# For models that do not say what they need: 2.1 times a layer's scores, to which bfloat16 adds a
# half; 3.0 times the middle of its MLP.
SCORES_COPIES = 3
MLP_COPIES = 3
# Of a particle, in the state and in what the host keeps of it; and in the records and uniform
# numbers of two chunks.
# Without replacement a particle also has an entry in the finished pool.
PARTICLE_BYTES = 128
RECORD_BYTES = 32


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """What a row table and P prompt slots need on one device.

    Attributes:
      device, limit: its name, and how much of it the engine may use.
      params: the model's parameters; on a CPU with the float32 copies of 16-bit ones.
      row: the cache of one row.
      working: of one row, the temporary arrays of a step; or, if that is more, the second cache
        that exists while the table is resized.
      slot: of one prompt slot, its particles and what is recorded of them.
      prefill: of a group of prompts, temporary arrays, and a cache of their own.
      slots, rows, num_particles, capacity: P, R, N, and the positions of a row.
      stop_rules: the table of the stop rules of all slots.
    """

    device: str
    limit: int
    params: int
    row: int
    working: int
    slot: int
    prefill: int
    slots: int
    rows: int
    num_particles: int
    capacity: int
    stop_rules: int = 0

    @property
    def total(self) -> int:
        """Everything; prefill and step both count, since both may be running."""
        tables = self.rows * (self.row + self.working) + self.slots * self.slot
        return self.params + tables + self.prefill + self.stop_rules

    @property
    def fits(self) -> bool:
        """Whether that is within the limit."""
        return self.total <= self.limit

    def __str__(self) -> str:
        rules = f"stop rules {_size(self.stop_rules)}, " if self.stop_rules else ""
        return (
            f"{_count(self.slots, 'prompt')} of {_count(self.num_particles, 'particle')} at a time "
            f"in up to {_count(self.rows, 'row')} of {_count(self.capacity, 'token')}: "
            f"weights {_size(self.params)}, rows {_size(self.rows * self.row)}, "
            f"working {_size(self.rows * self.working + self.slots * self.slot)}, "
            f"prefill {_size(self.prefill)}, {rules}"
            f"total {_size(self.total)} of {_size(self.limit)} on {self.device}"
        )


def plan(
    model: LanguageModel,
    params: Params,
    num_particles: int,
    *,
    capacity: int,
    bucket: int,
    slots: int,
    rows: Callable[[int], tuple[int, int]],
    group: Callable[[int], int],
    chunk: int,
    limit: int | None = None,
    device: Any = None,
    layout: Layout = ONE_DEVICE,
    stop_states: int = 0,
    resizes: bool = True,
    prefills_whole: bool = False,
) -> MemoryPlan:
    """The largest number of slots, up to ``slots``, and of rows for them, that fits.

    Args:
      model, params: a language model and its parameters, or their shapes.
      num_particles: N.
      capacity: positions of a row: prompt and new tokens.
      bucket: the padded length of the longest prompt.
      slots: the largest useful number of slots.
      rows: from a number of slots, the smallest number of rows that serves them, and the largest
        that is useful.
      group: from a number of slots, how many prompts are prefilled together.
      chunk: steps whose records are kept on the device.
      limit: bytes that the engine may use in total; default ``device_memory(device)``.
      device: a JAX device; default the first one, of the mesh if there is one.
      layout: how the model is laid out on a mesh. The plan is for one of its devices.
      stop_states: the states of stop rules that must fit.
      resizes: whether the table follows the load, if that pays on the device.
      prefills_whole: whether prompts are prefilled into caches of the full capacity, as those of
        chains are; otherwise only what resumes is.

    Raises:
      ValueError: if not even one slot fits, saying what would; or if the model's rows cannot be
        copied.
    """
    device = device or first_device(layout)
    limit = device_memory(device) if limit is None else limit
    limit = int(checks.number("memory_limit", limit, at_least=1))
    on_cpu = device.platform == "cpu"
    # Shapes alone: arrays on a mesh of explicit axes have these in their types.
    whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    _check_rows(model, _shapes(model, "init_cache", whole, num_rows=3, capacity=capacity), 3)
    params = layout.local(params)
    parts = layout.model_shards
    local = layout.model or model
    logits = LOGITS_COPIES * 4 * model.vocab_size // layout.vocabulary.num_shards
    weights = tree_bytes(params) + (_converted(params, model.vocab_size) if on_cpu else 0)

    def cache_of(positions: int) -> tuple[int, int]:
        cache = _shapes(model, "init_cache", whole, num_rows=1, capacity=positions)
        half = [x for x in jax.tree.leaves(cache) if x.dtype in (jnp.bfloat16, jnp.float16)]
        # As measured, XLA CPU carries 16-bit caches through the loop of steps in float32.
        return tree_bytes(cache) // parts, 2 * tree_bytes(half) // parts if on_cpu else 0

    def prefill_of(slots: int, rows: int, num: int, positions: int) -> int:
        count, padded = group(slots), min(bucket, positions)
        # Prompts that had to give back their rows are read again, with what they generated.
        resumes = slots > 1 and rows < slots * num
        held = positions if prefills_whole or resumes else padded
        return count * sum(cache_of(held)) + _temporaries(local, count, padded, held)

    def one(num: int, positions: int) -> MemoryPlan:
        row, converted = cache_of(positions)
        working = logits + converted + _temporaries(local, 1, 1, positions)
        working = max(working, row if on_cpu and resizes else 0)
        prefill = prefill_of(1, rows(1)[0], num, positions)
        slot = num * (PARTICLE_BYTES + 2 * chunk * RECORD_BYTES)
        return MemoryPlan(
            str(device),
            limit,
            *(weights, row, working, slot, prefill, 1, rows(1)[0], num, positions),
            stop_states * state_bytes(model.vocab_size),
        )

    alone = one(num_particles, capacity)
    if not alone.fits:
        raise ValueError(_refusal(alone, one, chunk))

    def several(slots: int, rows: int) -> MemoryPlan:
        prefill = prefill_of(slots, rows, num_particles, capacity)
        return dataclasses.replace(alone, slots=slots, rows=rows, prefill=prefill)

    count = _largest(lambda slots: several(slots, rows(slots)[0]).fits, slots)
    least, most = rows(count)
    more = _largest(lambda extra: several(count, least + extra).fits, max(most - least, 1))
    return several(count, min(least + more, max(most, least)))


def device_memory(device: Any = None) -> int:
    """Bytes of a device, default the first, that the engine may use: a share of what it has.

    An accelerator has what JAX may take of it (``XLA_PYTHON_CLIENT_MEM_FRACTION``, 0.75 of a GPU
    unless set), in use or not; ValueError if it does not say. A CPU has the machine's memory, or
    less if the process's control group allows less.
    """
    device = jax.local_devices()[0] if device is None else device
    if device.platform == "cpu":
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return int(CPU_SHARE * min([physical, *_cgroup_limits()]))
    # None from some backends, and from GPUs with XLA_PYTHON_CLIENT_ALLOCATOR=platform.
    available = (device.memory_stats() or {}).get("bytes_limit")
    if not available:
        raise ValueError(f"{device} does not say how much memory it has; pass memory_limit= bytes.")
    return int(ACCELERATOR_SHARE * available)


def state_bytes(vocab_size: int) -> int:
    """Bytes of one state of a stop rule: int16 [V], and half of it again while the table grows."""
    return 3 * vocab_size


def first_device(layout: Layout) -> Any:
    """The first device of this process on which programs run."""
    local = jax.local_devices()
    of_mesh = [] if layout.mesh is None else [d for d in layout.mesh.devices.flat if d in local]
    return [*of_mesh, *local][0]


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays, or shapes of arrays, in a pytree; a sharded array counts in full."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _cgroup_limits() -> Iterator[int]:
    """Limits of the process's control groups, versions 1 and 2, and of their ancestors."""
    # Not on every system; lines read "4:memory:/path", or "0::/path" in version 2.
    lines = OWN_CGROUPS.read_text().splitlines() if OWN_CGROUPS.is_file() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        root = CGROUP_ROOT / "memory" if controllers else CGROUP_ROOT
        own = root / path.strip("/")
        # In a container the path may be the host's, and only the root can be read.
        for directory in [own, *(above for above in own.parents if above >= root)]:
            file = directory / name
            if file.is_file() and (text := file.read_text().strip()).isdigit():  # and not "max"
                yield int(text)


# A plan is made for every call of ``sample``, and tracing a large model takes long.
_SHAPES: ModelCache[Any] = ModelCache(lambda: 256)


def _shapes(model: LanguageModel, function: str, *args: Any, **sizes: int) -> Any:
    """The shapes of what a function of the model returns, from those of its arguments."""
    traced = functools.partial(getattr(model, function), **sizes)
    leaves, structure = jax.tree.flatten(args)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    key = (function, tuple(sizes.items()), structure, shapes, jax.config.read("jax_enable_x64"))
    return _SHAPES.get(model, key, lambda: jax.eval_shape(traced, *args))


def _check_rows(model: LanguageModel, cache: Any, num_rows: int) -> None:
    """Raises ValueError if rows of a cache (shapes) can be copied neither here nor by the model."""
    if all(hasattr(model, name) for name in ("move", "insert", "resize")):
        return
    for leaf in jax.tree.leaves(cache):
        if leaf.shape[:1] != (num_rows,):
            raise ValueError(
                f"rows of a {type(model).__name__} cannot be copied: with {num_rows} of them its "
                f"cache has an array of shape {leaf.shape}, which does not lead with the rows; "
                "change that, or give the model move, insert and resize of its own."
            )


def _temporaries(model: LanguageModel, num_rows: int, block: int, capacity: int) -> int:
    """Temporary bytes of ``extend``: what the model says, else those of a layer."""
    own = getattr(model, "temporaries", None)
    if own is not None:
        return int(own(num_rows, block, capacity))
    config = getattr(model, "config", None)
    scores = SCORES_COPIES * getattr(config, "num_heads", 0) * capacity
    return 4 * num_rows * block * max(scores, MLP_COPIES * getattr(config, "mlp_size", 0))


def _converted(params: Any, vocab_size: int) -> int:
    """Copies that XLA CPU makes before the loop: float16 in float32, a bfloat16 head in both."""
    leaves = jax.tree.leaves(params)
    heads = [x for x in leaves if x.dtype == jnp.bfloat16 and vocab_size in x.shape]
    return 2 * tree_bytes([x for x in leaves if x.dtype == jnp.float16]) + 3 * tree_bytes(heads)


def _largest(fits: Callable[[int], bool], top: int) -> int:
    """The largest integer in [1, top] that fits, 0 for none; smaller ones then fit too."""
    return bisect.bisect_left(range(1, top + 1), True, key=lambda value: not fits(value))


def _refusal(alone: MemoryPlan, one: Callable[[int, int], MemoryPlan], chunk: int) -> str:
    """Why one prompt does not fit, and which N and T would fit."""
    # Needs are rounded up and the limit down; otherwise the figures might seem to fit.
    weights, has = _size(alone.params, math.ceil), _size(alone.limit, math.floor)
    where = f"the engine may use {has} of {alone.device}"
    if alone.params > alone.limit:
        return f"the weights alone need {weights}, but {where}; use a smaller model or dtype."
    num, positions = alone.num_particles, alone.capacity

    def with_rows(num: int, positions: int) -> MemoryPlan:
        made = one(num, positions)
        return dataclasses.replace(made, rows=min(num, made.rows))

    fewer = _largest(lambda n: with_rows(n, positions).fits, num - 1)
    shorter = chunk * _largest(
        lambda k: with_rows(num, k * chunk).fits, max((positions - 1) // chunk, 0)
    )
    ways = [f"num_particles to at most {fewer:,}"] if fewer else []
    ways += [f"prompt and new tokens together to at most {shorter:,}"] if shorter else []
    advice = "lower " + " or ".join(ways) if ways else "use a smaller model or dtype"
    return (
        f"{_count(alone.rows, 'row')} of {_count(positions, 'token')} for num_particles={num} need "
        f"{_size(alone.total - alone.params, math.ceil)} besides {weights} of weights, but "
        f"{where}; {advice}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _size(size: int, rounded: Callable[[float], int] = round) -> str:
    """A number of bytes in the largest unit that fits."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            return f"{rounded(size / 1024**power * 10) / 10:,.1f} {unit}"
    return _count(size, "byte")
