"""Word problems over integers, and solutions written the way a web corpus writes them.

A problem is a short story with two to four arithmetic steps. What makes its solutions useful
for studying power sampling is the *fork* that recurs at every step: the result is either

* **stated** (``147*23=3381``): one line, computed in the head, or
* **written out** (``147*23:`` and then the parts, or the columns digit by digit).

Stating is somewhat commoner, so low-temperature decoding prefers it; but a small model cannot
compute a long product in its head, so after ``=`` its digits are spread over many values, while
after ``:`` every token is nearly certain. The power distribution weighs whole continuations and
therefore prefers the written-out start. The grammar of a step, one line each:

    A*B:                      a two-digit factor is split into units and tens, three lines follow
    147*3=441                 stated
    147*20:7*2=14,4*2+1=9,1*2+0=2>2940        columns from the right, carry added, ">" the result
    441+2940:1+0=1,4+4+0=8,4+9+0=13,0+2+1=3>3381
    3381-1294:11-4=7,18-9-1=8,3-2-1=0,3-1-0=2>2087       a borrow shows as ten added on top
    answer 2087

Everything is a deterministic function of the ``random.Random`` that is passed in.
"""

import dataclasses
import hashlib
import random
from collections.abc import Iterator, Sequence

SPLITS = ("train", "valid", "test")

# Chance that a step is written out rather than stated, at every fork (also the nested ones).
WRITTEN_SHARE = 0.42
# Careless mistakes, per line: people slip more often when they compute in the head.
STATED_MISTAKES = 0.05
WRITTEN_MISTAKES = 0.01

LARGEST_VALUE = 99_999
# Bound on the characters of the fully written-out solution; keeps every answer within one bucket.
LONGEST_SOLUTION = 240

_NAMES = (
    "Mia Leo Ava Noah Zoe Eli Ivy Max Ruth Omar Nina Paul Lena Hugo Sara Finn Rosa Karl Ada Ben "
    "Clara David Emma Felix Grace Henry Irene Jonas Kira Liam"
).split()
# (container, item): "packs 147 boxes with 23 pens each"
_PACKS = (
    "boxes pens|crates apples|bags marbles|jars cookies|shelves books|trays eggs|"
    "packs stickers|baskets pears|albums photos|cartons bottles|sacks potatoes|drawers keys|"
    "chests shells|racks plates|rolls stamps|tins nails"
)
_CONTAINERS = tuple(tuple(pair.split()) for pair in _PACKS.split("|"))
_FILL = ("packs", "fills", "orders", "stacks", "collects", "counts")
_COLORS = ("red", "blue", "green", "black", "white", "yellow", "brown", "grey")
_GAIN = ("buys", "finds", "makes", "gets", "adds", "borrows")
_LOSE = ("sells", "loses", "breaks", "sends away", "gives away", "throws out")
_EARN = ("earns", "wins", "is given", "saves")
_SPEND = ("spends", "pays", "lends out", "donates")
_PERIODS = ("days", "weeks", "months", "years", "rounds", "seasons")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A word problem.

    Attributes:
      question: one line of text that ends with a newline; the prompt.
      steps: ``((operator, operand), ...)``; the first operand of step 1 is ``start``.
      start: the number the chain starts from.
      answer: the value of the chain.
    """

    question: str
    start: int
    steps: tuple[tuple[str, int], ...]
    answer: int

    @property
    def key(self) -> str:
        """The arithmetic of the problem; two problems are the same if their keys are equal."""
        return str(self.start) + "".join(f"{op}{n}" for op, n in self.steps)


def split_of(key: str) -> str:
    """The split a problem belongs to: a hash of its arithmetic, so that no two splits share one."""
    bucket = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") % 1000
    return "test" if bucket < 20 else "valid" if bucket < 40 else "train"


def sample_problem(rng: random.Random, split: str = "train") -> Problem:
    """Draws a problem of one split.

    Args:
      rng: source of all randomness.
      split: "train", "valid" or "test".

    Raises:
      ValueError: if ``split`` is none of the three.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; allowed are {', '.join(SPLITS)}.")
    while True:
        start, steps = _sample_chain(rng)
        problem = _tell(rng, start, steps)
        if split_of(problem.key) == split:
            return problem


def problems(split: str, count: int, seed: int = 0) -> Iterator[Problem]:
    """``count`` problems with pairwise different arithmetic, the same for the same seed."""
    rng = random.Random(f"problems-{split}-{seed}")
    seen: set[str] = set()
    while len(seen) < count:
        problem = sample_problem(rng, split)
        if problem.key not in seen:
            seen.add(problem.key)
            yield problem


def write_solution(problem: Problem, rng: random.Random, written_share: float | None = None) -> str:
    """Writes one solution, ending in ``answer N`` (wrong where a careless mistake happened).

    Args:
      problem: the problem.
      rng: source of all randomness: forks and mistakes.
      written_share: chance that a step is written out; ``None`` is the corpus' own share. With
        an explicit share no mistakes are made (1.0 is the fully worked solution).
    """
    careless = written_share is None
    writer = _Writer(rng, WRITTEN_SHARE if written_share is None else written_share, careless)
    return writer.write(problem.start, problem.steps)


def parse_answer(text: str) -> int | None:
    """The number after the last ``answer`` of a solution, or ``None`` if there is none."""
    _, found, tail = text.rpartition("answer ")
    tail = tail.strip()
    return int(tail) if found and tail.isascii() and tail.isdigit() and len(tail) < 12 else None


# --- The arithmetic ---------------------------------------------------------------------------


def _apply(value: int, op: str, operand: int) -> int:
    return {"*": value * operand, "+": value + operand, "-": value - operand}[op]


def _sample_chain(rng: random.Random) -> tuple[int, tuple[tuple[str, int], ...]]:
    """A start value and two to four steps, short enough when written out in full.

    Length and kind are drawn before the rejection loop, so that rejection does not thin out the
    long and hard ones.
    """
    length = rng.choices((2, 3, 4), weights=(20, 45, 35))[0]
    groups = rng.random() < 0.85
    two_digit_factor = rng.random() < 0.85
    while True:
        if groups:
            start = rng.randint(23, 99) if rng.random() < 0.4 else rng.randint(101, 899)
            steps = [("*", _factor(rng, two_digit_factor))]
        else:
            start = rng.randint(123, 9999)
            steps = [("+", rng.randint(123, 9999))]
        value = _apply(start, *steps[0])
        while len(steps) < length and value <= LARGEST_VALUE:
            has_long_product = any(op == "*" and n > 9 for op, n in steps)
            ops = [op for op in "*+-" if op != steps[-1][0] or op == "*"]
            op = rng.choices(ops, weights=[2 if o == "*" else 1 for o in ops])[0]
            if op == "*":
                operand = _factor(rng, two_digit_factor and not has_long_product and value < 1000)
            elif op == "+":
                operand = rng.randint(max(12, value // 20), max(99, value))
            else:
                operand = rng.randint(max(2, value // 20), max(3, value * 9 // 10))
            if op == "-" and len(str(value - operand)) < len(str(value)):
                continue  # a result with leading zeros in its columns
            steps.append((op, operand))
            value = _apply(value, op, operand)
        if not (10 <= value <= LARGEST_VALUE and len(steps) == length):
            continue
        written = _Writer(rng, written_share=1.0, careless=False).write(start, steps)
        if len(written) <= LONGEST_SOLUTION:
            return start, tuple(steps)


def _factor(rng: random.Random, two_digits: bool) -> int:
    if two_digits:
        return 10 * rng.randint(2, 9) + rng.randint(2, 9)
    return rng.randint(3, 9)


class _Writer:
    """Writes the lines of one solution."""

    def __init__(self, rng: random.Random, written_share: float, careless: bool) -> None:
        self._lines: list[str] = []
        self._rng = rng
        self._written_share = written_share
        self._careless = careless

    def write(self, start: int, steps: Sequence[tuple[str, int]]) -> str:
        """Writes the whole solution."""
        value = start
        for op, operand in steps:
            value = self.step(value, op, operand)
        return "".join(f"{line}\n" for line in self._lines) + f"answer {value}"

    def step(self, a: int, op: str, b: int) -> int:
        """Writes ``a op b`` in one of the two ways and returns the value arrived at."""
        if self._rng.random() >= self._written_share:
            value = self._slip(_apply(a, op, b), STATED_MISTAKES)
            self._lines.append(f"{a}{op}{b}={value}")
            return value
        if op == "*" and b > 9 and b % 10:
            self._lines.append(f"{a}{op}{b}:")
            units = self.step(a, op, b % 10)
            tens = self.step(a, op, b - b % 10)
            return self.step(units, "+", tens)
        columns, value = self._columns(a, op, b)
        self._lines.append(f"{a}{op}{b}:{','.join(columns)}>{value}")
        return value

    def _columns(self, a: int, op: str, b: int) -> tuple[list[str], int]:
        """The columns of ``a op b`` from the right, and the value that they spell."""
        zeros = ""
        if op == "*":
            if b % 10 == 0:
                b, zeros = b // 10, "0"
            pairs = [(int(d), b) for d in reversed(str(a))]
        else:
            width = max(len(str(a)), len(str(b)))
            pairs = list(
                zip(
                    map(int, reversed(f"{a:0{width}d}")),
                    map(int, reversed(f"{b:0{width}d}")),
                    strict=True,
                )
            )
        slip_at = -1
        if self._careless and self._rng.random() < WRITTEN_MISTAKES:
            slip_at = self._rng.randrange(len(pairs))
        columns, digits, carry = [], "", 0
        for i, (x, y) in enumerate(pairs):
            carried = "" if i == 0 else f"{'-' if op == '-' else '+'}{carry}"
            if op == "-":
                top = x + 10 if x - y - carry < 0 else x
                result = top - y - carry
                carry = int(top > 9)
                x = top
            else:
                result = _apply(x, op, y) + carry
            if i == slip_at and result % 10 not in (0, 9):
                result += self._rng.choice((-1, 1))
            columns.append(f"{x}{op}{y}{carried}={result}")
            if op != "-":
                carry = result // 10
            last = i == len(pairs) - 1
            digits = (str(result) if last else str(result % 10)) + digits
        return columns, int(digits + zeros)

    def _slip(self, value: int, chance: float) -> int:
        """``value``, or with this chance the value with one digit (not the first) wrong."""
        if not self._careless or self._rng.random() >= chance:
            return value
        text = str(value)
        at = self._rng.randrange(1, len(text))
        other = self._rng.choice([d for d in "0123456789" if d != text[at]])
        return int(text[:at] + other + text[at + 1 :])


# --- The story --------------------------------------------------------------------------------


def _tell(rng: random.Random, start: int, steps: tuple[tuple[str, int], ...]) -> Problem:
    """Puts a chain into words."""
    name = rng.choice(_NAMES)
    container, item = rng.choice(_CONTAINERS)
    first_op, first = steps[0]
    if first_op == "*":
        text = [f"{name} {rng.choice(_FILL)} {start} {container} with {first} {item} each."]
    else:
        one, other = rng.sample(_COLORS, 2)
        text = [f"{name} has {start} {one} {item} and {first} {other} {item}."]
    unit = item
    value = _apply(start, first_op, first)
    for op, n in steps[1:]:
        if op == "*" and unit == item:
            if rng.random() < 0.6:
                text.append(f"All are sold at {n} coins each.")
                unit = "coins"
            else:
                text.append(f"This is done for {n} {rng.choice(_PERIODS)}.")
        elif op == "*":
            text.append(f"This is done for {n} {rng.choice(_PERIODS)}.")
        elif op == "+":
            verb = rng.choice(_EARN if unit == "coins" else _GAIN)
            text.append(f"Then {name} {verb} {n} more {unit}.")
        else:
            verb = rng.choice(_SPEND if unit == "coins" else _LOSE)
            text.append(f"Then {name} {verb} {n} {unit}.")
        value = _apply(value, op, n)
    text.append(f"How many {unit} is that?\n")
    return Problem(question=" ".join(text), start=start, steps=steps, answer=value)
