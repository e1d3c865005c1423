"""What the devices of a mesh exchange in a decode step, read from the compiled program.

Nothing is run and no speed is claimed. The chunk of decode steps is compiled from shapes alone, for
as many CPU devices as the machine in question has, or by the machine's own compiler. The text of
the program lists the arrays that are exchanged; with the makers' figures for memory and links, two
times follow whose ratio is of interest:

    memory    reading all parameters, contexts and caches of a device once
    links     sending the device's part of each exchange, in a ring

Both are lower bounds. Real collectives of so little data take longer than their bytes do; this
overhead per collective is an assumption that the reader chooses, and is reported separately.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

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

    @property
    def sent(self) -> float:
        """Bytes that each device sends to its neighbour in a ring."""
        others = (self.group - 1) / self.group
        if self.kind == "all-reduce":
            return 2 * others * self.size
        if self.kind == "reduce-scatter":
            return (self.group - 1) * self.size
        if self.kind in ("all-gather", "all-to-all"):
            return others * self.size
        return self.size


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
