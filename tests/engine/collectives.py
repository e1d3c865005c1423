"""What devices exchange in a chunk of decode steps, read from the compiled program."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jax_power_smc.core import prng
from jax_power_smc.engine import executables, programs
from jax_power_smc.engine.layout import layout_of
from jax_power_smc.engine.state import PromptInputs, SharedInputs
from jax_power_smc.models.transformer.transformer import TransformerLM
from jax_power_smc.samplers import Kernel
from jax_power_smc.targets.power import PowerTarget

# Enough steps that the compiled program has a loop over them.
_STEPS = 4

_KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
    *("collective-permute", "collective-broadcast", "ragged-all-to-all"),
)
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2} | {
    **{"s32": 4, "u32": 4, "f32": 4},
    **{"s64": 8, "u64": 8, "f64": 8},
}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLS = re.compile(
    r"\b(body|condition|to_apply|calls|\w+_computations?)=\{?(%[\w.\-]+(?:, %[\w.\-]+)*)"
)
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(_KINDS)})(-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange among a group of devices.

    Attributes:
      kind: such as "all-reduce".
      arrays: dtype and shape of each of its results.
      group: number of devices that take part.
      loops: number of enclosing loops; 1 for an exchange at every step of a chunk.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    group: int
    loops: int

    @property
    def size(self) -> int:
        """Bytes of the results on one device."""
        return sum(_BYTES[dtype] * math.prod(shape) for dtype, shape in self.arrays)


def collectives(text: str) -> list[Collective]:
    """All exchanges of a compiled program.

    Args:
      text: ``compiled.as_text()`` of a program for CPUs or TPUs.

    Raises:
      ValueError: for an asynchronous exchange, which some compilers write.
    """
    bodies, entry = _computations(text)
    found = []
    for name, loops in _reached(bodies, entry, 0):
        for line in bodies[name]:
            match = _COLLECTIVE.search(line)
            if match is None:
                continue
            types, kind, start = match.groups()
            if start:
                raise ValueError(
                    f"the program has {kind}{start}; only synchronous collectives can be read."
                )
            arrays = tuple(
                (dtype, tuple(int(n) for n in sizes.split(",") if n))
                for dtype, sizes in _SHAPE.findall(types)
            )
            found.append(Collective(kind, arrays, _group(line), loops))
    return found


def lower_chunk(
    model: TransformerLM,
    mesh: Mesh | None,
    sampler: Kernel,
    *,
    prompts: int,
    rows: int,
    capacity: int,
    num_steps: int = _STEPS,
) -> tuple[Any, Any]:
    """Lowers a chunk of decode steps from shapes alone.

    Args:
      model: as one device runs it.
      mesh: the mesh, or None for one device.
      sampler: any that has slots.
      prompts: P, over all data shards.
      rows, capacity: R of each device, and the positions of a row.
      num_steps: of the chunk.

    Returns:
      The lowered program, and the shapes of the cache on one device.
    """
    layout = layout_of(model, mesh)
    params = nnx.state(model.abstract_module())
    traced = jax.eval_shape(sampler.traced)
    sizes = {
        "num_slots": prompts // layout.data_shards,
        "num_rows": rows,
        "capacity": capacity,
        "dtype": jnp.dtype(jnp.float32),
    }
    static: dict[str, Any] = {"model": layout.model}
    state = executables.results(programs.start, static | sizes, (params, traced), layout)

    def of_all(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((prompts, *x.shape), x.dtype)

    none = jnp.zeros((), jnp.int32)
    target = PowerTarget(4.0, (0,)).arrays(model.vocab_size, capacity)
    target = target._replace(ends=None, forced=None, min_new_tokens=None)
    own = PromptInputs(target, none, prng.prompt_keys(prng.seed_key(0), [0])[0], none)
    ends = jax.ShapeDtypeStruct((1, model.vocab_size), jnp.bool_)
    shared = SharedInputs(traced, ends)
    args: Any = params, shared, jax.tree.map(of_all, own), state, jax.eval_shape(lambda: none)
    specs = programs.SPECS[programs.decode_chunk](layout, args)
    lowered = layout.lower(programs.decode_chunk, static | {"num_ticks": num_steps}, args, specs)
    return lowered, jax.eval_shape(lambda p: layout.model.init_cache(p, rows, capacity), params)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation, and the name of the entry computation."""
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            lines = bodies[head[2]] = []
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)
    return bodies, entry


def _reached(bodies: dict[str, list[str]], name: str, loops: int) -> Iterator[tuple[str, int]]:
    """Every computation, once per call, with the number of enclosing loops."""
    yield name, loops
    for line in bodies[name]:
        for how, called in _CALLS.findall(line):
            for each in called.replace("%", "").split(", "):
                yield from _reached(bodies, each, loops + (how == "body"))


def _group(line: str) -> int:
    """Number of devices in a group, in any notation; 2 if one device sends to another."""
    if "source_target_pairs=" in line:
        return 2
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return len(listed[1].split(","))
    shaped = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if shaped:
        return int(shaped[1])
    axes = re.search(r"replica_groups=mesh\[([^\]]+)\] \{([^}]+)\}", line)
    if axes:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", axes[2]))
    raise ValueError(f"there is a collective without groups of devices: {line.strip()[:200]}.")
