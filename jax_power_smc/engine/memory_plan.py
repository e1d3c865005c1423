"""How many prompts a device has room for, found from shapes alone: nothing is allocated.

A slot has the context of its prompt, the cache of its N particles and, while a step runs,
temporary arrays. Letters: P slots, N particles, S prompt length, T capacity. Sizes are bytes.
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
from jax_power_smc.engine.layout import ONE_DEVICE, Layout
from jax_power_smc.models.base import LanguageModel

# The share of a device that the engine may use. An accelerator also holds compiled programs and
# loses some to fragments; a CPU's memory is shared with other processes.
ACCELERATOR_SHARE = 0.9
CPU_SHARE = 0.7
CGROUP_ROOT = pathlib.Path("/sys/fs/cgroup")
OWN_CGROUPS = pathlib.Path("/proc/self/cgroup")

# Temporary float32 arrays. XLA CPU planned (``memory_analysis``) up to 3.0 times the logits for
# ``PowerSMC``, 4.3 for ``WithoutReplacement``; 2.1 times a layer's scores, to which bfloat16 adds
# a half; 3.0 times the middle of its MLP.
LOGITS_COPIES = 5
SCORES_COPIES = 3
MLP_COPIES = 3
# Two rows of int32 tokens per particle (running and finished), and a copy while they are moved.
TOKEN_BYTES = 16


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """What P prompt slots need.

    Attributes:
      device, limit: its name and what the engine may use of it.
      params: the model's parameters; on a CPU with the float32 copies of 16-bit ones.
      context: of one slot, what its particles share.
      cache: of one slot, what they do not.
      working: of one slot, the temporary arrays of a step.
      prefill: of a group of prompts, temporary arrays, and contexts that are not yet in slots.
      slots, num_particles, prompt_tokens, capacity: P, N, S, T.
      stop_rules: the table of the stop rules of all slots.
    """

    device: str
    limit: int
    params: int
    context: int
    cache: int
    working: int
    prefill: int
    slots: int
    num_particles: int
    prompt_tokens: int
    capacity: int
    stop_rules: int = 0

    @property
    def total(self) -> int:
        """All of it; a prefill counts beside a step, since both may be under way."""
        of_slots = self.slots * (self.context + self.cache + self.working)
        return self.params + of_slots + self.prefill + self.stop_rules

    @property
    def fits(self) -> bool:
        """Whether that is within the limit."""
        return self.total <= self.limit

    def __str__(self) -> str:
        rules = f"stop rules {_size(self.stop_rules)}, " if self.stop_rules else ""
        return (
            f"{_count(self.slots, 'slot')} of {_count(self.num_particles, 'particle')} "
            f"(prompt {self.prompt_tokens:,}, up to {_count(self.capacity, 'new token')}): "
            f"weights {_size(self.params)}, prompts {_size(self.slots * self.context)}, "
            f"caches {_size(self.slots * self.cache)}, "
            f"working {_size(self.slots * self.working)}, prefill {_size(self.prefill)}, "
            f"{rules}in all {_size(self.total)} of {_size(self.limit)} on {self.device}"
        )


def plan(
    model: LanguageModel,
    params: Any,
    num_particles: int,
    prompt_tokens: int,
    capacity: int,
    wanted_slots: int,
    group: int,
    limit: int | None = None,
    device: Any = None,
    chunk: int = 1,
    layout: Layout = ONE_DEVICE,
    stop_states: int = 0,
) -> MemoryPlan:
    """The largest number of slots, up to ``wanted_slots``, that fits.

    Args:
      model, params: a language model and its parameters, or their shapes.
      num_particles, prompt_tokens, capacity: N, S (padded) and T.
      wanted_slots: the most that are of use.
      group: prompts prefilled together; never more than there are slots.
      limit: bytes that the engine may use, all of them; default ``device_memory(device)``.
      device: a JAX device; default the first one, of the mesh if there is one.
      chunk: capacities are multiples of it, and so is the one that an error advises.
      layout: how the model lies on a mesh. The plan is for one of its devices: so many slots are
        those of a "data" row.
      stop_states: states of stop rules for which there must be room.

    Raises:
      ValueError: if not even one slot fits, saying what would.
    """
    device = device or _first_device(layout)
    limit = device_memory(device) if limit is None else limit
    limit = int(checks.number("memory_limit", limit, at_least=1))
    on_cpu = device.platform == "cpu"
    # Shapes alone: arrays on a mesh of explicit axes have these in their types.
    whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    params = layout.local(params)
    parts = layout.group  # of keys and values; what else there is in a step is not divided
    weights = tree_bytes(params) + (_converted(params, model.vocab_size) if on_cpu else 0)
    tokens, length = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in [(prompt_tokens,), ()])
    context = tree_bytes(_prefill.eval_shape(whole, tokens, length, model=model)[1]) // parts
    prefill = context + _temporaries(model, num_particles, prompt_tokens, capacity)[0]

    rules = stop_states * state_bytes(model.vocab_size)

    def one_slot(num: int, new: int) -> MemoryPlan:
        cache = _cache.eval_shape(whole, model=model, num=num, capacity=new)
        working = num * (LOGITS_COPIES * 4 * model.vocab_size + TOKEN_BYTES * new)
        working += _temporaries(model, num, prompt_tokens, new)[1]
        if on_cpu:
            # As measured, XLA CPU carries 16-bit caches through the loop of steps in float32 (2.0
            # caches at any number of layers) and lays the prompts' keys out anew.
            half = [x for x in jax.tree.leaves(cache) if x.dtype in (jnp.bfloat16, jnp.float16)]
            working += 2 * tree_bytes(half) // parts + context
        sizes = (weights, context, tree_bytes(cache) // parts, working, prefill)
        counts = 1, num, prompt_tokens, new
        return MemoryPlan(str(device), limit, *sizes, *counts, rules)

    def several(slots: int) -> MemoryPlan:
        return dataclasses.replace(one, slots=slots, prefill=min(group, slots) * one.prefill)

    one = one_slot(num_particles, capacity)
    if not one.fits:
        raise ValueError(_refusal(one, one_slot, chunk))
    return several(_largest(lambda slots: several(slots).fits, wanted_slots))


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
    """Bytes of one state of a stop rule: a row of int16, and half as much while the table grows."""
    return 3 * vocab_size


def _first_device(layout: Layout) -> Any:
    """The first device of this process on which programs run."""
    local = jax.local_devices()
    of_mesh = [] if layout.mesh is None else [d for d in layout.mesh.devices.flat if d in local]
    return [*of_mesh, *local][0]


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays, or shapes of arrays, of a pytree; a sharded array counts whole."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _cgroup_limits() -> Iterator[int]:
    """Limits of the process's control groups, versions 1 and 2, and of the groups above them."""
    # Not on every system; lines read "4:memory:/path", or "0::/path" in version 2.
    lines = OWN_CGROUPS.read_text().splitlines() if OWN_CGROUPS.is_file() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        root = CGROUP_ROOT / "memory" if controllers else CGROUP_ROOT
        own = root / path.strip("/")
        # In a container the path may be the host's, and only the root is there to be read.
        for directory in [own, *(above for above in own.parents if above >= root)]:
            file = directory / name
            if file.is_file() and (text := file.read_text().strip()).isdigit():  # and not "max"
                yield int(text)


# ``jit`` keeps what it traced: the same sizes again cost the comparison of arguments.
@functools.partial(jax.jit, static_argnames="model")
def _prefill(params: Any, prompt: jax.Array, length: jax.Array, *, model: LanguageModel) -> Any:
    return model.prefill(params, prompt, length)


@functools.partial(jax.jit, static_argnames=("model", "num", "capacity"))
def _cache(params: Any, *, model: LanguageModel, num: int, capacity: int) -> Any:
    return model.init_cache(params, num, capacity)


def _temporaries(
    model: LanguageModel, num: int, prompt_tokens: int, capacity: int
) -> tuple[int, int]:
    """Temporary bytes of a prefill and of a step: as the model says, else those of a layer."""
    own = getattr(model, "temporaries", None)
    if own is not None:
        return own(num, prompt_tokens, capacity)
    keys = prompt_tokens + capacity
    return _layer(model, prompt_tokens, prompt_tokens), _layer(model, num, keys)


def _layer(model: LanguageModel, tokens: int, keys: int) -> int:
    """Temporary bytes of a layer for tokens that see so many keys; 0 for a model without config."""
    config = getattr(model, "config", None)
    scores = SCORES_COPIES * getattr(config, "num_heads", 0) * keys
    return 4 * tokens * max(scores, MLP_COPIES * getattr(config, "mlp_size", 0))


def _converted(params: Any, vocab_size: int) -> int:
    """Copies that XLA CPU makes before the loop: float16 in float32, a bfloat16 head in both."""
    leaves = jax.tree.leaves(params)
    heads = [x for x in leaves if x.dtype == jnp.bfloat16 and vocab_size in x.shape]
    return 2 * tree_bytes([x for x in leaves if x.dtype == jnp.float16]) + 3 * tree_bytes(heads)


def _largest(fits: Callable[[int], bool], top: int) -> int:
    """The largest integer in [1, top] that fits, 0 for none; whatever is smaller fits too."""
    return bisect.bisect_left(range(1, top + 1), True, key=lambda value: not fits(value))


def _refusal(one: MemoryPlan, one_slot: Callable[[int, int], MemoryPlan], chunk: int) -> str:
    """Why one slot does not fit, and which N and T would."""
    # Needs are rounded up and the limit down, or the figures could seem to fit.
    weights, has = _size(one.params, math.ceil), _size(one.limit, math.floor)
    where = f"the engine may use {has} of {one.device}"
    if one.params > one.limit:
        return f"the weights alone need {weights}, but {where}; use a smaller model or dtype."
    num, new, most = one.num_particles, one.capacity, (one.capacity - 1) // chunk
    fewer = _largest(lambda n: one_slot(n, new).fits, num - 1)
    shorter = chunk * _largest(lambda k: one_slot(num, k * chunk).fits, most)
    ways = [f"num_particles to at most {fewer:,}"] if fewer else []
    ways += [f"max_new_tokens to at most {shorter:,}"] if shorter else []
    advice = "lower " + " or ".join(ways)
    if not ways and (both := chunk * _largest(lambda k: one_slot(1, k * chunk).fits, most)):
        advice = f"lower num_particles to 1 and max_new_tokens to at most {both:,}"
    elif not ways:
        advice = "beside such a prompt no smaller num_particles or max_new_tokens would fit"
    return (
        f"num_particles={num} with prompt {one.prompt_tokens:,} and {_count(new, 'new token')} "
        f"needs {_size(one.total - one.params, math.ceil)} beside {weights} of weights, but "
        f"{where}; {advice}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _size(size: int, rounded: Callable[[float], int] = round) -> str:
    """A number of bytes in the largest unit of which there is one."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            return f"{rounded(size / 1024**power * 10) / 10:,.1f} {unit}"
    return _count(size, "byte")
