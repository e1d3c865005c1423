"""Byte automata that find the shortest match of a language in a growing text.

A regular expression is read by the parser of Python's own ``re``, so that its dialect, its flags
and its error messages are exactly those of ``re``. Then

    parse tree -> Nfa over bytes -> subset construction -> minimisation -> ByteAutomaton

Text is UTF-8: a character of a pattern stands for its bytes, and a class or a dot for the bytes of
one whole character, never for a part of one. Bytes that are no valid UTF-8 match nothing.
The search may start at every byte; where the first match completes the automaton accepts, for good.
Which of several matches is the first does not depend on greediness.

The parser (``re._parser``) is a private part of the standard library, and the same from Python 3.11
on. The automata libraries for Python read other dialects, over characters instead of bytes, or
refuse a pattern without a reason.
"""

import functools
import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

# After minimisation; a token table has one row of V entries for each state.
LARGEST_AUTOMATON = 512
# Bounds on the work; no automaton of a permitted size is known to need as much on the way.
_LARGEST_SUBSETS = 16 * LARGEST_AUTOMATON
_LARGEST_NFA = 16_384

_CODE_POINTS = 0x110000
_SURROGATES = slice(0xD800, 0xE000)
_NEWLINE = ord("\n")

# Where a move without a byte is open, and where the text stands. The start of the text is the
# start of a line too, so a move is open if what it needs is at most what there is.
_ANYWHERE, _LINE_START, _TEXT_START = range(3)

# The flags that decide which characters a class holds.
_CLASS_FLAGS = re.ASCII | re.IGNORECASE | re.DOTALL
_CLASS_ESCAPES = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}
# What is no regular language, or looks at bytes that are not there yet.
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


class ByteAutomaton(NamedTuple):
    """A minimal deterministic automaton over bytes; state 0 is the start.

    Attributes:
      table: [states, 256] int32, the next state.
      accepting: [states] bool, a match has completed; such a state is never left.
    """

    table: np.ndarray
    accepting: np.ndarray


def from_bytes(text: bytes) -> ByteAutomaton:
    """Finds the first occurrence of ``text``; ValueError says why it cannot be."""
    nfa = Nfa()
    return _search(nfa, nfa.literal(text, Nfa.MATCH))


def from_regex(pattern: str) -> ByteAutomaton:
    """Finds the first match of a regular expression; ValueError says why it cannot be.

    Args:
      pattern: in the dialect of ``re`` for str, inline flags included. ``^`` and ``\\A`` stand for
        the start of the generated text, and with (?m) ``^`` for the start of a line too.
    """
    parser = importlib.import_module("re._parser")
    nfa = Nfa()
    try:
        tree = parser.parse(pattern, 0)
        start = _sequence(nfa, tree, tree.state.flags, Nfa.MATCH)
    except re.error as error:
        raise ValueError(f"it is not a regular expression: {error}") from None
    except RecursionError:
        raise ValueError("its groups are nested too deeply") from None
    except OverflowError:
        raise ValueError("a repetition count is too large") from None
    return _search(nfa, start)


def from_steps(step: Callable[[Any, int], Any], start: Any, accept: Any) -> ByteAutomaton:
    """The automaton of a function of a state and a byte, for states that can be hashed."""
    number = {start: 0}
    states = [start]
    rows = []
    for state in states:  # grows
        row = []
        for byte in range(256):
            target = state if state == accept else step(state, byte)
            if target not in number:
                number[target] = len(states)
                states.append(target)
            row.append(number[target])
        rows.append(row)
    return _minimal(np.array(rows, np.int32), np.array([state == accept for state in states]))


class Nfa:
    """A nondeterministic automaton over bytes, built back to front.

    Every builder takes the state that comes after and returns the state that comes before. A state
    either reads a byte, at most one target for each, or moves on without one.
    """

    MATCH = 0

    def __init__(self) -> None:
        self.rows: list[np.ndarray | None] = [None]  # of [256] int32, -1 where there is no target
        self.moves: list[list[tuple[int, int]]] = [[]]  # (what it needs, target)

    def reader(self, row: np.ndarray) -> int:
        """A state that reads one byte."""
        return self._add(row, [])

    def fork(self, targets: Iterable[int], needs: int = _ANYWHERE) -> int:
        """A state that moves on to any of the targets."""
        return self._add(None, [(needs, target) for target in targets])

    def literal(self, text: bytes, after: int) -> int:
        """Reads these bytes."""
        for byte in reversed(text):
            row = np.full((256,), -1, np.int32)
            row[byte] = after
            after = self.reader(row)
        return after

    def character(self, nodes: np.ndarray, after: int) -> int:
        """Reads one character of a class, given as ``_class_nodes`` returns it."""
        first = len(self.rows)
        for node in nodes:
            row = np.where(node > 0, node + (first - 1), node)
            row[node == 0] = after
            before = self.reader(row)
        return before

    def repeat(self, body: Callable[[int], int], low: int, high: int | None, after: int) -> int:
        """Reads the body ``low`` to ``high`` times; None is without a limit."""
        before = after
        if high is None:
            before = self.fork([after])
            self.moves[before].append((_ANYWHERE, body(before)))
        else:
            for _ in range(high - low):
                before = self.fork([body(before), after])
        for _ in range(low):
            # The fork counts every copy, so that copies of nothing end as well.
            before = self.fork([body(before)])
        return before

    def _add(self, row: np.ndarray | None, moves: list[tuple[int, int]]) -> int:
        if len(self.rows) >= _LARGEST_NFA:
            raise ValueError("it is too large; use smaller repetition counts or fewer alternatives")
        self.rows.append(row)
        self.moves.append(moves)
        return len(self.rows) - 1


def _sequence(nfa: Nfa, nodes: Any, flags: int, after: int) -> int:
    """A list of nodes of the parse tree, one after the other."""
    for op, argument in reversed(list(nodes)):
        after = _node(nfa, str(op), argument, flags, after)
    return after


def _node(nfa: Nfa, op: str, argument: Any, flags: int, after: int) -> int:
    """One node of the parse tree; its kinds are those of the compiler of ``re``."""
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
            return nfa.fork([after], _TEXT_START)
        case "AT" if str(argument) == "AT_BEGINNING":
            return nfa.fork([after], _LINE_START if flags & re.MULTILINE else _TEXT_START)
    name = str(argument) if op == "AT" else op
    raise ValueError(f"{_UNSUPPORTED.get(name, f'{name} is')} not supported in a stop rule")


def utf8(text: str) -> bytes:
    """The bytes of a text; ValueError if it has none."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        surrogate = text[error.start]
        raise ValueError(f"it holds the surrogate {surrogate!r}, which no text holds") from None


def _class_text(op: str, argument: Any) -> str:
    """A class of the parse tree as a pattern again, with nothing in it left to interpretation."""
    match op:
        case "ANY":
            return "."
        case "LITERAL" | "NOT_LITERAL":
            return f"[{'^' if op == 'NOT_LITERAL' else ''}\\U{argument:08x}]"
    parts = []
    for kind, value in argument:
        match str(kind):
            case "NEGATE":
                parts.append("^")
            case "LITERAL":
                parts.append(f"\\U{value:08x}")
            case "RANGE":
                parts.append(f"\\U{value[0]:08x}-\\U{value[1]:08x}")
            case "CATEGORY":
                parts.append(_CLASS_ESCAPES[str(value)])
    return f"[{''.join(parts)}]"


@functools.cache
def _every_character() -> str:
    return "".join(map(chr, range(_CODE_POINTS)))


@functools.lru_cache(maxsize=256)
def _class_nodes(text: str, flags: int) -> np.ndarray:
    """The automaton that reads the UTF-8 bytes of one character of a class.

    ``re`` itself says which characters a class holds. Code points that differ in the last six bits
    only differ in the last byte only; so rows of 64 that are equal can share a node, and so on.

    Args:
      text: a pattern that matches one character.
      flags: of ``_CLASS_FLAGS``.

    Returns:
      [nodes, 256] int32; the last node is the first to read. Targets: -1 none, 0 the end of the
      character, n + 1 the node n.
    """
    member = np.zeros((_CODE_POINTS,), bool)
    for found in re.finditer(f"{text}+", _every_character(), flags):
        member[slice(*found.span())] = True
    member[_SURROGATES] = False

    nodes: list[np.ndarray] = []

    name_of = {np.full((64,), -1, np.int32).tobytes(): -1}

    def share(targets: np.ndarray) -> np.ndarray:
        """[n, 64] targets of the bytes 0x80 to 0xBF -> [n] a node for each, -1 without targets."""
        for row in targets:
            if row.tobytes() not in name_of:
                node = np.full((256,), -1, np.int32)
                node[0x80:0xC0] = row
                nodes.append(node)
                name_of[row.tobytes()] = len(nodes)
        return np.array([name_of[row.tobytes()] for row in targets], np.int32)

    ends = np.where(member, 0, -1).astype(np.int32)
    root = np.full((256,), -1, np.int32)
    root[:0x80] = ends[:0x80]
    ends[:0x80] = -1
    one_left = share(ends.reshape(-1, 64))  # [0x4400], for each 2^6 code points
    root[0xC2:0xE0] = one_left[0x80 >> 6 : 0x800 >> 6]
    three_bytes = one_left[: 0x10000 >> 6].reshape(16, 64).copy()
    three_bytes[0, : 0x800 >> 6] = -1  # these have two
    root[0xE0:0xF0] = share(three_bytes)
    four_bytes = np.full((5 * 64,), -1, np.int32)
    four_bytes[0x10000 >> 12 : _CODE_POINTS >> 12] = share(one_left[0x10000 >> 6 :].reshape(-1, 64))
    root[0xF0:0xF5] = share(four_bytes.reshape(5, 64))
    return np.stack([*nodes, root])


def _search(nfa: Nfa, start: int) -> ByteAutomaton:
    """Subset construction of the search for a match that starts anywhere."""

    @functools.cache
    def reach(state: int, place: int) -> frozenset[int]:
        """The states that read a byte, and MATCH, without reading one."""
        seen = {state}
        pending = [state]
        while pending:
            for needs, target in nfa.moves[pending.pop()]:
                if needs <= place and target not in seen:
                    seen.add(target)
                    pending.append(target)
        return frozenset(s for s in seen if s == Nfa.MATCH or nfa.rows[s] is not None)

    if Nfa.MATCH in reach(start, _TEXT_START):
        raise ValueError("it matches the empty string, so it would stop before the first token")

    # Bytes that no state tells apart are one column. The newline is one for the sake of (?m)^.
    none = np.full((256,), -1, np.int32)
    newline = np.where(np.arange(256) == _NEWLINE, 0, none)
    rows = np.stack([newline] + [none if row is None else row for row in nfa.rows])
    columns, column_of = np.unique(rows, axis=1, return_inverse=True)
    column_of = column_of.reshape(-1)
    columns = columns[1:]  # [NFA states, K]
    place_of = [_ANYWHERE] * columns.shape[1]
    place_of[column_of[_NEWLINE]] = _LINE_START

    done = frozenset({Nfa.MATCH})
    first = reach(start, _TEXT_START)
    number = {first: 0}
    subsets = [first]
    table: list[list[int]] = []
    for subset in subsets:  # grows
        if subset == done:
            table.append([number[done]] * columns.shape[1])
            continue
        targets = columns[sorted(subset)]  # [states of the subset, K]
        known: dict[tuple[bytes, int], int] = {}
        entries = []
        for column, place in enumerate(place_of):
            key = (targets[:, column].tobytes(), place)
            if key not in known:
                states = [int(t) for t in targets[:, column] if t >= 0]
                union = reach(start, place).union(*(reach(t, place) for t in states))
                if Nfa.MATCH in union:
                    union = done
                if union not in number:
                    if len(subsets) >= _LARGEST_SUBSETS:
                        raise ValueError(
                            f"its automaton has more than {_LARGEST_SUBSETS} states before "
                            f"minimisation; at most {LARGEST_AUTOMATON} are allowed after it"
                        )
                    number[union] = len(subsets)
                    subsets.append(union)
                known[key] = number[union]
            entries.append(known[key])
        table.append(entries)
    if done not in number:
        raise ValueError("it can never match")
    accepting = np.arange(len(subsets)) == number[done]
    return _minimal(np.array(table, np.int32)[:, column_of], accepting)


def _minimal(table: np.ndarray, accepting: np.ndarray) -> ByteAutomaton:
    """Merges states that no text tells apart (Moore), and numbers them from the start on.

    Args:
      table: [states, 256], every state within reach of state 0.
      accepting: [states].
    """
    columns = np.unique(table, axis=1)
    block = accepting.astype(np.int32)
    count, refined = 0, len(np.unique(block))
    while refined > count:
        count = refined
        signature = np.concatenate([block[:, None], block[columns]], axis=1)
        number: dict[bytes, int] = {}
        block = np.array([number.setdefault(row.tobytes(), len(number)) for row in signature])
        refined = len(number)
        if refined > LARGEST_AUTOMATON:
            raise ValueError(
                f"its automaton has more than {LARGEST_AUTOMATON} states; use smaller repetition "
                "counts, or classes of ASCII by (?a) in front"
            )
    _, representative = np.unique(block, return_index=True)
    order = _breadth_first(block[table[representative]], int(block[0]))
    rank = np.empty((count,), np.int32)
    rank[order] = np.arange(count, dtype=np.int32)
    chosen = representative[order]
    return ByteAutomaton(rank[block[table[chosen]]], accepting[chosen])


def _breadth_first(table: np.ndarray, start: int) -> Sequence[int]:
    """The states in the order in which a breadth-first walk meets them."""
    order = [start]
    seen = {start}
    for state in order:  # grows
        for target in dict.fromkeys(table[state].tolist()):
            if target not in seen:
                seen.add(target)
                order.append(target)
    return order
