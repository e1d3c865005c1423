"""Word problems over integers, and solutions as a web corpus might write them.

A problem is a short story of two to four arithmetic steps, each a product that is added to or
subtracted from the value so far. Its solutions suit the study of power sampling because of the
*fork* at every step: the result is either

* **stated** (``3381+38*64=5813``): in one line, computed mentally, or
* **written out** (``3381+38*64:``): the partial products follow, digit by digit.

Stating is somewhat more common, so low-temperature decoding prefers it. But a small model cannot
multiply numbers of several digits in its head, so after ``=`` its probability is spread over many
values, while after ``:`` every token is nearly certain. The power distribution weighs whole
continuations and therefore prefers to write out. A solution with every step written out:

    147*23:
    147*3:21,14,4>441               columns from the right: 7*3, 4*3 and the carry 2, 1*3 and 1
    147*20:14,9,2>2940              the tens: the same for 147*2, and a zero
    441+2940:1,8,13,3>3381          column sums with carry
    3381+38*64:
    38*4:32,15>152
    38*60:48,22>2280
    3381+152+2280:3,21,8,5>5813
    5813-12*45:
    12*5:10,6>60
    12*40:8,4>480
    60+480:0,14,5>540
    5813-540:3,-3,2,5>5273          a negative column: its digit is 7, and one is borrowed
    answer 5273

Everything is a deterministic function of the ``random.Random`` passed in.
"""

import dataclasses
import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from jax_power_smc.core import checks

SPLITS = ("train", "valid", "test")

# Probability that a step is written out rather than stated.
WRITTEN_SHARE = 0.42
# Probability of a careless mistake, per line: mental arithmetic fails more often. A mistake in a
# written line is dropped if it falls on a digit 0 or 9, so these are somewhat rarer still.
STATED_MISTAKES = 0.05
WRITTEN_MISTAKES = 0.005

LARGEST_VALUE = 99_999


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NAMES = _words(
    "Mia Leo Ava Noah Zoe Eli Ivy Max Ruth Omar Nina Paul Lena Hugo Sara Finn Rosa Karl Ada Ben "
    "Clara David Emma Felix Grace Henry Irene Jonas Kira Liam"
)
_CONTAINERS = _words(
    "boxes crates bags jars shelves trays packs baskets albums cartons sacks drawers chests racks "
    "rolls tins"
)
_ITEMS = _words(
    "pens apples marbles cookies books eggs stickers pears photos bottles potatoes keys shells "
    "plates stamps nails"
)
_FILL = ("packs", "fills", "orders", "stacks", "collects", "counts")
_GAIN = ("buys", "finds", "makes", "gets", "adds", "borrows")
_LOSE = ("sells", "loses", "breaks", "sends away", "gives away", "throws out")


class Step(NamedTuple):
    """One step: ``groups`` containers of ``size`` items are added or subtracted, as ``op`` says.

    The first step is "+", from 0. A size has two digits, neither of them 0.
    """

    op: str
    groups: int
    size: int

    def apply(self, value: int) -> int:
        """The value after this step."""
        product = self.groups * self.size
        return value + product if self.op == "+" else value - product


@dataclasses.dataclass(frozen=True)
class Problem:
    """A word problem: the prompt, one line that ends with a newline, and its steps in order."""

    question: str
    steps: tuple[Step, ...]
    answer: int

    @property
    def key(self) -> str:
        """The arithmetic as text; two problems are the same if their keys are equal."""
        return "".join(f"{op}{groups}*{size}" for op, groups, size in self.steps)[1:]


def split_of(key: str) -> str:
    """The split of a problem, from a hash of its arithmetic, so that no two splits share one."""
    bucket = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") % 1000
    return "test" if bucket < 20 else "valid" if bucket < 40 else "train"


def sample_problem(rng: random.Random, split: str = "train") -> Problem:
    """Draws a problem of one split, "train", "valid" or "test"; ValueError for any other."""
    checks.one_of("split", split, SPLITS)
    while True:
        problem = _write_question(rng, _sample_steps(rng))
        if split_of(problem.key) == split:
            return problem


def problems(split: str, count: int, seed: int = 0) -> Iterator[Problem]:
    """Yields ``count`` different problems, the same for the same seed."""
    rng = random.Random(f"problems-{split}-{seed}")
    seen: set[str] = set()
    while len(seen) < count:
        problem = sample_problem(rng, split)
        if problem.key not in seen:
            seen.add(problem.key)
            yield problem


def write_solution(problem: Problem, rng: random.Random, written_share: float | None = None) -> str:
    """Writes one solution, ending in ``answer N``, which careless mistakes may make wrong.

    ``written_share`` is the probability that a step is written out; None for the corpus's own, with
    its mistakes. An explicit share excludes mistakes (1.0 is the fully worked solution).
    """
    careless = written_share is None
    writer = _Writer(rng, WRITTEN_SHARE if written_share is None else written_share, careless)
    return writer.write(problem.steps)


def parse_answer(text: str) -> int | None:
    """The number after the last ``answer`` in a solution; None if there is none."""
    _, found, tail = text.rpartition("answer ")
    tail = tail.strip()
    return int(tail) if found and tail.isascii() and tail.isdigit() and len(tail) < 12 else None


# --- The arithmetic ---------------------------------------------------------------------------


def _sample_steps(rng: random.Random) -> tuple[Step, ...]:
    """Two to four steps whose values stay positive and at most ``LARGEST_VALUE``."""
    length = rng.choices((2, 3, 4), weights=(20, 45, 35))[0]
    groups = rng.randint(101, 499) if rng.random() < 0.7 else rng.randint(23, 99)
    steps = [Step("+", groups, _size(rng))]
    value = steps[0].apply(0)
    while len(steps) < length:
        step = Step("-" if rng.random() < 0.35 else "+", rng.randint(12, 99), _size(rng))
        after = step.apply(value)
        # A subtraction must keep the number of digits: no leading zeros in its columns.
        long_enough = step.op == "+" or (after > 0 and len(str(after)) == len(str(value)))
        if long_enough and after <= LARGEST_VALUE:
            steps.append(step)
            value = after
        elif step.op == "-" and value < 3000:
            continue  # a small value often leaves no room, so the sign is drawn again as well
    return tuple(steps)


def _size(rng: random.Random) -> int:
    return 10 * rng.randint(2, 9) + rng.randint(2, 9)


class _Writer:
    """Writes the lines of one solution."""

    def __init__(self, rng: random.Random, written_share: float, careless: bool) -> None:
        self._lines: list[str] = []
        self._rng = rng
        self._written_share = written_share
        self._careless = careless

    def write(self, steps: Sequence[Step]) -> str:
        """The whole solution."""
        value = 0
        for index, step in enumerate(steps):
            value = self._step(value, step, first=index == 0)
        return "".join(f"{line}\n" for line in self._lines) + f"answer {value}"

    def _step(self, value: int, step: Step, first: bool) -> int:
        """Writes one step in one of the two ways, and returns the resulting value."""
        op, groups, size = step
        before = "" if first else f"{value}{op}"
        written = self._rng.random() < self._written_share
        # Mistakes can make a value too small or negative, and columns have no sign.
        if not written or value < 0 or step.apply(value) < 0:
            after = self._state(step.apply(value))
            self._lines.append(f"{before}{groups}*{size}={after}")
            return after
        self._lines.append(f"{before}{groups}*{size}:")
        units, tens = size % 10, size // 10
        one = self._columns(f"{groups}*{units}", [d * units for d in _digits(groups)])
        ten = self._columns(f"{groups}*{tens}0", [d * tens for d in _digits(groups)], zero="0")
        if first:
            return self._sum(one, ten)
        if op == "+":
            return self._sum(value, one, ten)
        product = self._sum(one, ten)
        if product > value:  # a mistake in the lines above
            self._lines.append(f"{value}-{product}={value - product}")
            return value - product
        pairs = zip(*_aligned(value, product), strict=True)
        return self._columns(f"{value}-{product}", [a - b for a, b in pairs])

    def _sum(self, *numbers: int) -> int:
        columns = [sum(column) for column in zip(*_aligned(*numbers), strict=True)]
        return self._columns("+".join(map(str, numbers)), columns)

    def _columns(self, head: str, parts: Sequence[int], zero: str = "") -> int:
        """Writes a line of columns, from the right, and returns the value that they spell.

        ``parts`` are the columns before carrying; ``zero`` is a final digit that has no column.
        """
        mistake_at = -1
        if self._careless and self._rng.random() < WRITTEN_MISTAKES:
            mistake_at = self._rng.randrange(len(parts))
        columns, digits, carry = [], zero, 0
        for i, part in enumerate(parts):
            total = part + carry
            if i == mistake_at and total % 10 not in (0, 9):
                total += self._rng.choice((-1, 1))
            columns.append(str(total))
            # Floor division: -3 is the digit 7 and a carry of -1, the borrow.
            carry = total // 10
            digits = (str(total) if i == len(parts) - 1 else str(total % 10)) + digits
        value = int(digits)
        self._lines.append(f"{head}:{','.join(columns)}>{value}")
        return value

    def _state(self, value: int) -> int:
        """The value as stated: occasionally one digit, not the first, is wrong."""
        if not self._careless or self._rng.random() >= STATED_MISTAKES:
            return value
        text = str(value)
        if len(text) == 1:
            return value
        at = self._rng.randrange(1, len(text))
        other = self._rng.choice([d for d in "0123456789" if d != text[at]])
        return int(text[:at] + other + text[at + 1 :])


def _digits(number: int, width: int = 0) -> list[int]:
    """Decimal digits from the right, with zeros up to ``width``."""
    return [int(digit) for digit in reversed(f"{number:0{width}d}")]


def _aligned(*numbers: int) -> Iterable[list[int]]:
    width = max(len(str(number)) for number in numbers)
    return [_digits(number, width) for number in numbers]


# --- The question -----------------------------------------------------------------------------


def _write_question(rng: random.Random, steps: tuple[Step, ...]) -> Problem:
    """Tells the steps as a story."""
    name = rng.choice(_NAMES)
    item = rng.choice(_ITEMS)
    containers = rng.sample(_CONTAINERS, len(steps))
    value = 0
    text: list[str] = []
    for step, container in zip(steps, containers, strict=True):
        op, groups, size = step
        if not text:
            verb = rng.choice(_FILL)
            text.append(f"{name} {verb} {groups} {container} with {size} {item} each.")
        else:
            verb = rng.choice(_GAIN if op == "+" else _LOSE)
            more = "more " if op == "+" else ""
            text.append(f"Then {name} {verb} {groups} {more}{container} with {size} each.")
        value = step.apply(value)
    text.append(f"How many {item} is that?\n")
    return Problem(question=" ".join(text), steps=steps, answer=value)
