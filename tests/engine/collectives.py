"""What devices exchange in a chunk of decode steps, read from the compiled program."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from jax.sharding import Mesh

from jax_power_smc.benchmarks.lowering import Programs, Sizes
from jax_power_smc.core.mesh import DATA
from jax_power_smc.models.transformer.transformer import TransformerLM
from jax_power_smc.samplers import Kernel

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
    shards = 1 if mesh is None else mesh.shape[DATA]
    sizes = Sizes(prompts // shards, rows, capacity, steps=num_steps)
    programs = Programs(model, mesh, sampler, sizes)
    return programs.decode_chunk(), programs.cache


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
