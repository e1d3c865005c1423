"""Regular expressions as nondeterministic automata over bytes (see ``regex_dfa``).

The parser of Python's own ``re`` reads the expression, so dialect, flags and error messages are
exactly those of ``re``. It is a private part of the standard library (``re._parser``), unchanged
since Python 3.11. The automata libraries for Python read other dialects, work on characters instead
of bytes, or refuse a pattern without giving a reason.

Text is UTF-8: a character of a pattern stands for its bytes, and a class or a dot for the bytes of
one whole character, never for part of one. Bytes that are not valid UTF-8 match nothing.
"""

import functools
import importlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

# A bound on the work; no automaton of a permitted size is known to need as many states.
_LARGEST_NFA = 16_384

_CODE_POINTS = 0x110000
_SURROGATES = slice(0xD800, 0xE000)

# Positions in the text, and the conditions of epsilon transitions. The start of the text is also
# the start of a line, so a transition may be taken if its condition is at most the position.
ANYWHERE, LINE_START, TEXT_START = range(3)

# The flags that decide which characters a class contains.
_CLASS_FLAGS = re.ASCII | re.IGNORECASE | re.DOTALL
_CLASS_ESCAPES = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}
# What is not regular, or depends on bytes that have not been generated yet.
_UNSUPPORTED = {
    "ASSERT": "lookahead and lookbehind are",
    "ASSERT_NOT": "negative lookahead and lookbehind are",
    "FAILURE": "negative lookahead and lookbehind are",
    "GROUPREF": "a backreference is",
    "GROUPREF_EXISTS": "a conditional group is",
    "ATOMIC_GROUP": "an atomic group is",
    "POSSESSIVE_REPEAT": "a possessive quantifier is",
    "AT_END": "the anchor $ is",
    "AT_END_STRING": r"the anchor of the end (\Z) is",
    "AT_BOUNDARY": r"the word boundary \b is",
    "AT_NON_BOUNDARY": r"the word boundary \B is",
}


class Nfa:
    """A nondeterministic automaton over bytes, built from its end.

    Every builder takes the state that follows and returns the state that precedes. A state either
    reads a byte, with at most one target for each byte, or has epsilon transitions.

    Attributes:
      targets: of every state, [256] int32, -1 where there is no target; None if it reads no byte.
      epsilons: of every state, its epsilon transitions (condition, target).
    """

    MATCH = 0

    def __init__(self) -> None:
        self.targets: list[np.ndarray | None] = [None]
        self.epsilons: list[list[tuple[int, int]]] = [[]]

    def reader(self, targets: np.ndarray) -> int:
        """A state that reads one byte."""
        return self._add(targets, [])

    def fork(self, targets: Iterable[int], condition: int = ANYWHERE) -> int:
        """A state with an epsilon transition to each of the targets."""
        return self._add(None, [(condition, target) for target in targets])

    def literal(self, text: bytes, after: int) -> int:
        """Reads these bytes."""
        for byte in reversed(text):
            targets = np.full((256,), -1, np.int32)
            targets[byte] = after
            after = self.reader(targets)
        return after

    def character(self, nodes: np.ndarray, after: int) -> int:
        """Reads one character of a class, given as ``_class_nodes`` returns it."""
        first = len(self.targets)
        for node in nodes:
            targets = np.where(node > 0, node + (first - 1), node)
            targets[node == 0] = after
            before = self.reader(targets)
        return before

    def repeat(self, body: Callable[[int], int], low: int, high: int | None, after: int) -> int:
        """Reads the body ``low`` to ``high`` times; None is no upper limit."""
        before = after
        if high is None:
            before = self.fork([after])
            self.epsilons[before].append((ANYWHERE, body(before)))
        else:
            for _ in range(high - low):
                before = self.fork([body(before), after])
        for _ in range(low):
            # The fork adds a state per copy, so that repetitions of nothing hit the bound too.
            before = self.fork([body(before)])
        return before

    def _add(self, targets: np.ndarray | None, epsilons: list[tuple[int, int]]) -> int:
        if len(self.targets) >= _LARGEST_NFA:
            raise ValueError("it is too large; use smaller repetition counts or fewer alternatives")
        self.targets.append(targets)
        self.epsilons.append(epsilons)
        return len(self.targets) - 1


def parse(pattern: str) -> tuple[Nfa, int]:
    """The automaton of a regular expression and its first state; ValueError gives the reason."""
    parser = importlib.import_module("re._parser")
    nfa = Nfa()
    try:
        tree = parser.parse(pattern, 0)
        return nfa, _sequence(nfa, tree, tree.state.flags, Nfa.MATCH)
    except re.error as error:
        raise ValueError(f"it is not a regular expression: {error}") from None
    except RecursionError:
        raise ValueError("its groups are nested too deeply") from None
    except OverflowError:
        raise ValueError("a repetition count is too large") from None


def _sequence(nfa: Nfa, nodes: Any, flags: int, after: int) -> int:
    """A list of nodes of the parse tree, one after the other."""
    for op, argument in reversed(list(nodes)):
        after = _node(nfa, str(op), argument, flags, after)
    return after


def _node(nfa: Nfa, op: str, argument: Any, flags: int, after: int) -> int:
    """One node of the parse tree; the kinds of nodes are those of ``re``'s compiler."""
    match op:
        case "LITERAL" if not flags & re.IGNORECASE:
            return nfa.literal(utf8(chr(argument)), after)
        case "LITERAL" | "NOT_LITERAL" | "IN" | "ANY":
            text = _class_text(op, argument)
            return nfa.character(_class_nodes(text, flags & _CLASS_FLAGS), after)
        case "BRANCH":
            return nfa.fork([_sequence(nfa, nodes, flags, after) for nodes in argument[1]])
        case "SUBPATTERN":
            _, added, removed, nodes = argument
            if added & (re.ASCII | re.UNICODE):  # each excludes the other
                flags &= ~(re.ASCII | re.UNICODE)
            return _sequence(nfa, nodes, (flags | added) & ~removed, after)
        case "MAX_REPEAT" | "MIN_REPEAT":
            low, high, nodes = argument
            limit = None if str(high) == "MAXREPEAT" else int(high)
            return nfa.repeat(lambda then: _sequence(nfa, nodes, flags, then), low, limit, after)
        case "AT" if str(argument) == "AT_BEGINNING_STRING":
            return nfa.fork([after], TEXT_START)
        case "AT" if str(argument) == "AT_BEGINNING":
            return nfa.fork([after], LINE_START if flags & re.MULTILINE else TEXT_START)
    name = str(argument) if op == "AT" else op
    raise ValueError(f"{_UNSUPPORTED.get(name, f'{name} is')} not supported in a stop rule")


def utf8(text: str) -> bytes:
    """The bytes of a text; ValueError if it cannot be encoded."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        surrogate = text[error.start]
        raise ValueError(f"it has the surrogate {surrogate!r}, which UTF-8 cannot encode") from None


def _class_text(op: str, argument: Any) -> str:
    """A class of the parse tree as an unambiguous pattern for ``re``."""
    if op == "ANY":
        return "."
    if op in ("LITERAL", "NOT_LITERAL"):
        return f"[{'^' if op == 'NOT_LITERAL' else ''}\\U{argument:08x}]"
    write: dict[str, Callable[[Any], str]] = {
        "NEGATE": lambda _: "^",
        "LITERAL": "\\U{:08x}".format,
        "RANGE": lambda ends: "\\U{:08x}-\\U{:08x}".format(*ends),
        "CATEGORY": lambda name: _CLASS_ESCAPES[str(name)],
    }
    return f"[{''.join(write[str(kind)](value) for kind, value in argument)}]"


@functools.cache
def _every_character() -> str:
    return "".join(map(chr, range(_CODE_POINTS)))


@functools.lru_cache(maxsize=256)
def _class_nodes(text: str, flags: int) -> np.ndarray:
    """The automaton that reads the UTF-8 bytes of one character of a class.

    ``re`` itself decides which characters a class contains. Code points that differ only in their
    last six bits differ only in the last byte, so equal groups of 64 share a node, and so on for
    the bytes before.

    Args:
      text: a pattern that matches one character.
      flags: of ``_CLASS_FLAGS``.

    Returns:
      [nodes, 256] int32, the targets of each node: -1 is none, 0 the end of the character, and
      n + 1 the node n. The last node reads the first byte.
    """
    member = np.zeros((_CODE_POINTS,), bool)
    for found in re.finditer(f"{text}+", _every_character(), flags):
        member[slice(*found.span())] = True
    member[_SURROGATES] = False

    nodes: list[np.ndarray] = []
    number_of = {np.full((64,), -1, np.int32).tobytes(): -1}

    def share(targets: np.ndarray) -> np.ndarray:
        """[n, 64] targets of the bytes 0x80 to 0xBF -> [n] their nodes, -1 without any target."""
        for group in targets:
            if group.tobytes() not in number_of:
                node = np.full((256,), -1, np.int32)
                node[0x80:0xC0] = group
                nodes.append(node)
                number_of[group.tobytes()] = len(nodes)
        return np.array([number_of[group.tobytes()] for group in targets], np.int32)

    ends = np.where(member, 0, -1).astype(np.int32)
    root = np.full((256,), -1, np.int32)
    root[:0x80] = ends[:0x80]
    ends[:0x80] = -1
    one_left = share(ends.reshape(-1, 64))  # [0x4400], one per 2^6 code points
    root[0xC2:0xE0] = one_left[0x80 >> 6 : 0x800 >> 6]
    three_bytes = one_left[: 0x10000 >> 6].reshape(16, 64).copy()
    three_bytes[0, : 0x800 >> 6] = -1  # these have two
    root[0xE0:0xF0] = share(three_bytes)
    four_bytes = np.full((5 * 64,), -1, np.int32)
    four_bytes[0x10000 >> 12 : _CODE_POINTS >> 12] = share(one_left[0x10000 >> 6 :].reshape(-1, 64))
    root[0xF0:0xF5] = share(four_bytes.reshape(5, 64))
    return np.stack([*nodes, root])
