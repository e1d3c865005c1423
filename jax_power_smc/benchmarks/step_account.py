"""What a step of a compiled chunk moves, read from the program's text.

The step is the body of the chunk's loop. Loops inside it whose turns the compiler does not know are
those that move rows: they make no turn unless rows move.
"""

import dataclasses
from collections.abc import Iterator

from jax_power_smc.benchmarks.hlo import Instruction, Module, Place

_PRODUCTS = ("dot", "convolution")


@dataclasses.dataclass(frozen=True)
class Cost:
    """What instructions cost, all together.

    Attributes:
      read, written: bytes, without what attention kernels read of the cache.
      kernels: instructions that do something.
      cycles: as a TPU's compiler estimates; kernels of one's own have none.
      exchange_cycles: the part of ``cycles`` in which devices exchange something.
    """

    read: float = 0.0
    written: float = 0.0
    kernels: int = 0
    cycles: int = 0
    exchange_cycles: int = 0

    @property
    def moved(self) -> float:
        """Bytes read and written."""
        return self.read + self.written

    def plus(self, other: "Cost", times: int = 1) -> "Cost":
        """The sum with a number of times another."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Cost(*(a + times * b for a, b in pairs))


@dataclasses.dataclass(frozen=True)
class StepAccount:
    """A step of a chunk, or a whole program.

    Attributes:
      rest: its cost while no row moves.
      outer, inner: of one turn of the loop over moves, and of one of the loop in it over blocks.
      attention: the kernels that read the cache themselves, by their targets.
      copies: of arrays of a cache leaf's size, within any loop or branch.
      relayouts: the same once per program.
      carried: conditionals that carry an array of a cache leaf's size.
      heads: products whose result is as large as the logits.
      sorts: of arrays as large as the vocabulary.
      collectives: kind, arrays and groups of devices of each exchange in the step.
    """

    rest: Cost
    outer: Cost
    inner: Cost
    attention: tuple[str, ...]
    copies: tuple[str, ...]
    relayouts: tuple[str, ...]
    carried: tuple[str, ...]
    heads: int
    sorts: int
    collectives: tuple[tuple[str, str, tuple[tuple[int, ...], ...]], ...]

    def moving(self, blocks: int) -> Cost:
        """What a moved row of so many blocks adds to a step."""
        return self.outer.plus(self.inner, blocks)


def account(
    module: Module, *, leaf: int, logits: int, vocab: int, in_loop: bool = True
) -> StepAccount:
    """Reads a program.

    Args:
      module: the program of one device.
      leaf: elements of one cache leaf.
      logits, vocab: of the logits of all rows, and of one row's.
      in_loop: whether the step is the body of the program's largest loop, or the whole program.
    """
    places = list(module.places())
    step = places[0]
    if in_loop:
        bodies = [p for p in places if p.path and p.path[-1][1] == "body"]
        step = max(bodies, key=lambda p: len(module.computations[p.name]))
    reader = _Reader(module, leaf)
    inside = list(module.places(Place(step.name)))
    instructions = [x for p in inside for x in reader.everything(p.name)]
    once = [p for p in places if not any(how != "to_apply" for _, how in p.path)]
    repeated = [p for p in places if p not in once]
    turns = _turns(reader, step.name)
    return StepAccount(
        rest=reader.cost(step.name),
        outer=turns[0],
        inner=turns[1],
        attention=tuple(
            x.target for p in inside for x in reader.table(p.name) if reader.is_attention(p.name, x)
        ),
        copies=tuple(x for p in repeated for x in reader.copies(p.name)),
        relayouts=tuple(x for p in once for x in reader.copies(p.name)),
        carried=tuple(
            x.name
            for p in places
            for x in reader.table(p.name)
            if x.op == "conditional" and any(a.elements >= leaf for a in x.arrays)
        ),
        heads=sum(
            vocab in a.dims and a.elements % logits == 0
            for x in instructions
            if x.op in _PRODUCTS
            for a in x.arrays
        ),
        sorts=sum(
            x.op == "sort" and any(a.elements >= vocab for a in x.arrays) for x in instructions
        ),
        collectives=tuple(
            (x.collective, " ".join(map(str, x.arrays)), tuple(x.groups))
            for x in instructions
            if x.collective
        ),
    )


def _turns(reader: "_Reader", step: str) -> tuple[Cost, Cost]:
    """The loops over moves and over their blocks, one turn of each."""
    costs = [Cost(), Cost()]
    for place in reader.module.places(Place(step)):
        loops = [how for x, how in place.path if x.op == "while" and x.trips is None]
        if place.path and loops and set(loops) == {"body"} and place.path[-1][1] == "body":
            depth = min(len(loops), 2) - 1
            costs[depth] = costs[depth].plus(reader.cost(place.name))
    return costs[0], costs[1]


class _Reader:
    def __init__(self, module: Module, leaf: int) -> None:
        self.module, self.leaf = module, leaf

    def table(self, name: str) -> list[Instruction]:
        return list(self.module.computations[name].values())

    def everything(self, name: str) -> Iterator[Instruction]:
        """The instructions of a computation, and those of its fusions."""
        for x in self.table(name):
            yield x
            if x.op == "fusion":
                yield from self.everything(x.called[0][1])

    def is_attention(self, place: str, x: Instruction) -> bool:
        """Whether this is a kernel that reads the cache itself."""
        return x.op == "custom-call" and bool(self._leaves(place, x))

    def cost(self, name: str) -> Cost:
        """Of a computation, the largest branch of a conditional, and loops of known turns."""
        total = Cost()
        for x in self.table(name):
            read, written = self.module.traffic(name, x.name)
            if self.is_attention(name, x):
                read -= sum(self._leaves(name, x))
            does = read + written > 0 or x.op in ("fusion", "custom-call")
            exchange = x.cycles if x.collective else 0
            total = total.plus(Cost(read, written, int(does), x.cycles, exchange))
            if x.op == "call":
                total = total.plus(self.cost(x.called[0][1]))
            elif x.op == "conditional":
                costs = [self.cost(branch) for _, branch in x.called]
                total = total.plus(max(costs, key=lambda cost: cost.moved))
            elif x.op == "while" and x.trips is not None:
                total = total.plus(self.cost(dict(x.called)["body"]), x.trips)
        return total

    def copies(self, name: str) -> Iterator[str]:
        """Instructions that read or write most of an array of a leaf's size to make another."""
        for x in self.table(name):
            like = [a for a in x.arrays if a.elements == self.leaf]
            if like and sum(self.module.traffic(name, x.name)) >= like[0].raw / 2:
                yield f"{x.op} {like[0]}"

    def _leaves(self, place: str, x: Instruction) -> list[float]:
        """Bytes of the leaves among its operands, except those that it updates in place."""
        table, updated = self.module.computations[place], x.aliases.values()
        operands = [table[o].arrays for i, o in enumerate(x.operands) if o in table]
        leaves = [
            (i, arrays[0])
            for i, arrays in enumerate(operands)
            if arrays and arrays[0].elements == self.leaf
        ]
        return [0.0 if i in updated else array.bytes for i, array in leaves]
