"""Reads the text of a compiled program: what each instruction reads from memory and writes to it.

Slices count as slices, updates in place as what is updated, and arrays in a TPU's fast memory as
nothing. Every other array counts as memory, also where a cache would hold it.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_BYTES = {"pred": 1.0, "s4": 0.5, "u4": 0.5} | {
    f"{kind}{bits}": bits / 8 for kind in "suf" for bits in (8, 16, 32, 64)
}
_BYTES |= {"bf16": 2.0, "f8e4m3fn": 1.0, "f8e5m2": 1.0, "c64": 8.0}
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(
    r"\b(body|condition|to_apply|calls|(?:\w+_)?computations?)=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)"
)

# What moves nothing: it names arrays, or waits for what another instruction has begun.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("partition-id", "replica-id", "opt-barrier", "while", "conditional", "call"),
}
_SLICES = {"dynamic-slice", "slice", "gather"}
# Operand 0 is updated in place; the index of the operand that holds the new values.
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
    *("collective-permute", "collective-broadcast", "ragged-all-to-all"),
)


@dataclasses.dataclass(frozen=True)
class Array:
    """An array as it lies in memory.

    Attributes:
      dtype, dims: its type.
      order: axes from the fastest to the slowest.
      tile: sizes of the tile to which the fastest axes are padded, the fastest last.
      space: the memory space; 0 is the device's main memory.
    """

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def elements(self) -> int:
        """Without padding."""
        return math.prod(self.dims)

    @property
    def raw(self) -> float:
        """Bytes without padding."""
        return _BYTES.get(self.dtype, 4.0) * self.elements

    @property
    def bytes(self) -> float:
        """Bytes of main memory, padding included."""
        return 0.0 if self.space else self.padded

    @property
    def padded(self) -> float:
        """Bytes, padding included, wherever it lies."""
        sizes = [self.dims[axis] for axis in self.order or range(len(self.dims) - 1, -1, -1)]
        sizes += [1] * (len(self.tile) - len(sizes))
        for i, tile in enumerate(reversed(self.tile)):
            sizes[i] = -(-sizes[i] // tile) * tile
        return _BYTES.get(self.dtype, 4.0) * math.prod(sizes)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: ``name = arrays op(operands), attributes``."""

    name: str
    arrays: tuple[Array, ...]
    op: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def called(self) -> list[tuple[str, str]]:
        """How it calls which computations: ("body", name) and the like."""
        found = _CALLED.findall(self.attributes)
        return [(how, one.strip(" %")) for how, names in found for one in names.split(",")]

    @property
    def cycles(self) -> int:
        """What a TPU's compiler estimates; 0 where it says nothing."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else 0

    @property
    def target(self) -> str:
        """Of a custom call, "" of anything else."""
        found = re.search(r'custom_call_target="([^"]+)"', self.attributes)
        return found[1] if found else ""

    @property
    def trips(self) -> int | None:
        """The turns of a loop, where the compiler knows them."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"', self.attributes)
        return int(found[1]) if found else None

    @property
    def aliases(self) -> dict[int, int]:
        """The results of a custom call that take an operand's place: result -> operand."""
        found = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", self.attributes)
        pairs = re.findall(r"\{(\d*)\}: \((\d+), \{\}\)", found[1]) if found else []
        return {int(result or 0): int(operand) for result, operand in pairs}

    @property
    def collective(self) -> str | None:
        """Its kind, of an instruction by which devices exchange something."""
        kind = self.op.removesuffix("-start")
        return kind if kind in COLLECTIVES else None

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """The devices of each group that takes part in a collective, in any notation."""
        text = self.attributes
        if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", text):
            return [tuple(map(int, p.split(","))) for p in re.findall(r"\{([\d,]+)", pairs[1])]
        if listed := re.search(r"replica_groups=\{(\{.*?\})\}", text):
            return [tuple(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", listed[1])]
        shaped = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
        if not shaped:
            raise ValueError(f"{self.name} has no groups of devices: {text[:200]}.")
        count, size = int(shaped[1]), int(shaped[2])
        dims = [int(n) for n in shaped[3].split(",")]
        order = [int(n) for n in (shaped[4] or "").split(",") if n] or list(range(len(dims)))
        ids = _transposed_iota(dims, order)
        return [tuple(ids[i * size : (i + 1) * size]) for i in range(count)]


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Place:
    """A computation that runs, fusions excepted, and how it is reached from the entry.

    Attributes:
      name: the computation's.
      path: the instructions that call it, outermost first, each with its role, such as "body".
    """

    name: str
    path: tuple[tuple[Instruction, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program."""

    computations: dict[str, Computation]
    entry: str

    def places(self, start: Place | None = None) -> Iterator[Place]:
        """``start``, by default the entry, and everything that is called from there."""
        start = start or Place(self.entry)
        yield start
        for x in self.computations[start.name].values():
            if x.op in ("while", "conditional", "call"):
                for how, name in x.called:
                    yield from self.places(Place(name, (*start.path, (x, how))))

    def traffic(self, computation: str, name: str) -> tuple[float, float]:
        """Bytes that an instruction reads and writes, loops and branches that it calls excepted."""
        table = self.computations[computation]
        x = table[name]
        if x.op in _FREE or x.op.endswith("-done"):
            return 0.0, 0.0
        sources = [table[operand].arrays for operand in x.operands if operand in table]
        if x.op == "fusion":
            return self._fusion_traffic(x, sources)
        if x.op in _SLICES:
            size = _raw(x.arrays)
            return (size if _in_memory(sources[0]) else 0.0), _size(x.arrays)
        if x.op in _UPDATES:
            new = sources[_UPDATES[x.op]]
            return _size(new), _padded(new) if _in_memory(x.arrays) else 0.0
        if x.op.endswith("-start") and sources and sources[0] and len(x.arrays) > 1:
            # What arrives is smaller than its source, or elsewhere.
            source = sources[0][0]
            moved = next((a for a in x.arrays if a != source and a.elements > 1), source)
            return (0.0 if source.space else moved.raw), moved.bytes
        kept = x.aliases
        read = sum(_size(s) for i, s in enumerate(sources) if i not in kept.values())
        return read, sum(a.bytes for i, a in enumerate(x.arrays) if i not in kept)

    def _fusion_traffic(
        self, x: Instruction, sources: list[tuple[Array, ...]]
    ) -> tuple[float, float]:
        inside = self.computations[x.called[0][1]]
        parameters = _parameters(inside)
        read = 0.0
        for index, source in enumerate(sources):
            if _in_memory(source) and index in parameters:
                part = self._read_of(inside, parameters[index])
                read += _size(source) if part is None else min(part, _size(source))
        (root,) = (y for y in inside.values() if y.is_root)
        outs = [inside[name] for name in root.operands] if root.op == "tuple" else [root]
        if len(outs) != len(x.arrays):
            return read, _size(x.arrays)
        written = 0.0
        for array, out in zip(x.arrays, outs, strict=True):
            while out.op == "bitcast" and out.operands[0] in inside:
                out = inside[out.operands[0]]
            updated = out.op in _UPDATES and _origin(inside, out.operands[0]).op == "parameter"
            new = inside[out.operands[_UPDATES[out.op]]].arrays if updated else (array,)
            written += 0.0 if array.space else _padded(new)
        return read, written

    def _read_of(self, inside: Computation, name: str) -> float | None:
        """Bytes that a fusion reads of a parameter; None for all of it."""
        total = 0.0
        for x in inside.values():
            if name not in x.operands:
                continue
            if x.op == "bitcast":
                # What is returned may be read in full by whoever gets it.
                part = None if x.is_root else self._read_of(inside, x.name)
            elif x.op in _SLICES and x.operands[0] == name:
                part = _raw(x.arrays)
            elif x.op in _UPDATES and x.operands[0] == name:
                part = 0.0
            elif x.op == "fusion":
                called = self.computations[x.called[0][1]]
                part = self._read_of(called, _parameters(called)[x.operands.index(name)])
            elif x.op == "tuple" and x.is_root:
                part = 0.0  # it is passed on as it is
            else:
                part = None
            if part is None:
                return None
            total += part
        return total


def parse(text: str) -> Module:
    """The computations of ``compiled.as_text()``."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _instruction(line.strip())):
            current[found.name] = found
    return Module(computations, entry)


def _instruction(line: str) -> Instruction | None:
    name, equals, rest = line.removeprefix("ROOT ").partition(" = ")
    if not equals:
        return None
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    head = re.match(r"[\w\-]+\(", rest)
    if not head:
        return None
    end = _closing(rest, head.end() - 1)
    inside, attributes = rest[head.end() : end], rest[end + 1 :]
    op = head[0][:-1]
    # A parameter has its index in place of operands.
    named = op not in ("parameter", "constant")
    operands = tuple(re.findall(r"%([\w.\-]+)", inside)) if named else ()
    arrays = tuple(_array(m) for m in _ARRAY.finditer(kind) if m[1] in _BYTES)
    is_root = line.startswith("ROOT ")
    attributes = attributes if named else f"{inside}|{attributes}"
    return Instruction(name.lstrip("%"), arrays, op, operands, attributes, is_root)


def _array(found: re.Match[str]) -> Array:
    layout = found[3] or ""
    order = re.match(r"[\d,]*", layout)
    tile = re.search(r"T\(([\d,]+)\)", layout)
    space = re.search(r"S\((\d+)\)", layout)
    return Array(
        found[1],
        _numbers(found[2].replace("<=", "")),
        _numbers(order[0] if order else ""),
        _numbers(tile[1] if tile else ""),
        int(space[1]) if space else 0,
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at ``start`` closes."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    return len(text)


def _size(arrays: tuple[Array, ...]) -> float:
    return sum(a.bytes for a in arrays)


def _padded(arrays: tuple[Array, ...]) -> float:
    return sum(a.padded for a in arrays)


def _raw(arrays: tuple[Array, ...]) -> float:
    return sum(a.raw for a in arrays)


def _in_memory(arrays: tuple[Array, ...]) -> bool:
    return any(a.space == 0 for a in arrays)


def _parameters(inside: Computation) -> dict[int, str]:
    """Index -> name."""
    found = (x for x in inside.values() if x.op == "parameter")
    return {int(x.attributes.partition("|")[0]): x.name for x in found}


def _origin(inside: Computation, name: str) -> Instruction:
    """What a chain of updates and bitcasts begins with."""
    x = inside[name]
    while x.op == "bitcast" or x.op in _UPDATES:
        x = inside[x.operands[0]]
    return x


def _transposed_iota(dims: list[int], order: list[int]) -> list[int]:
    """0, 1, ... in the shape ``dims``, its axes transposed to ``order``, as a flat list."""
    strides = [math.prod(dims[axis + 1 :]) for axis in range(len(dims))]
    ids = [0]
    for axis in order:
        ids = [i + k * strides[axis] for i in ids for k in range(dims[axis])]
    return ids
