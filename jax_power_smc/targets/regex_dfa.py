"""Deterministic byte automata that find the shortest match of a language in a growing text.

    pattern -> (regex_nfa) Nfa -> subset construction -> minimisation -> ByteAutomaton

The search may start at every byte. The automaton accepts where the first match completes, and never
leaves that state; which match completes first does not depend on greediness.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jax_power_smc.targets import regex_nfa
from jax_power_smc.targets.regex_nfa import ANYWHERE, LINE_START, TEXT_START, Nfa

# States after minimisation; the table over tokens has V entries for each.
LARGEST_AUTOMATON = 512
# A bound on the work; no automaton of a permitted size is known to need as many subsets.
_LARGEST_SUBSETS = 16 * LARGEST_AUTOMATON
_NEWLINE = ord("\n")


class ByteAutomaton(NamedTuple):
    """A minimal deterministic automaton over bytes; state 0 is the start.

    Attributes:
      table: [states, 256] int32, the next state.
      accepting: [states] bool, a match has completed; such a state is never left.
    """

    table: np.ndarray
    accepting: np.ndarray


def from_bytes(text: bytes) -> ByteAutomaton:
    """Finds the first occurrence of ``text``; ValueError gives the reason if it cannot."""
    nfa = Nfa()
    return _search(nfa, nfa.literal(text, Nfa.MATCH))


def from_regex(pattern: str) -> ByteAutomaton:
    """Finds the first match of a regular expression; ValueError gives the reason if it cannot.

    Args:
      pattern: in the dialect of ``re`` for str, including inline flags. ``^`` and ``\\A`` stand for
        the start of the generated text, and with (?m) ``^`` also for the start of a line.
    """
    return _search(*regex_nfa.parse(pattern))


def from_steps(step: Callable[[Any, int], Any], start: Any, accept: Any) -> ByteAutomaton:
    """The automaton of a function ``step(state, byte) -> state`` on hashable states."""
    number = {start: 0}
    states = [start]
    table = []
    for state in states:  # grows
        targets = []
        for byte in range(256):
            target = state if state == accept else step(state, byte)
            if target not in number:
                number[target] = len(states)
                states.append(target)
            targets.append(number[target])
        table.append(targets)
    return _minimal(np.array(table, np.int32), np.array([state == accept for state in states]))


def _search(nfa: Nfa, start: int) -> ByteAutomaton:
    """Subset construction of the search for a match that starts anywhere."""

    @functools.cache
    def closure(state: int, position: int) -> frozenset[int]:
        """The reading states, and MATCH, that epsilon transitions reach from a state."""
        seen = {state}
        pending = [state]
        while pending:
            for condition, target in nfa.epsilons[pending.pop()]:
                if condition <= position and target not in seen:
                    seen.add(target)
                    pending.append(target)
        return frozenset(s for s in seen if s == Nfa.MATCH or nfa.targets[s] is not None)

    if Nfa.MATCH in closure(start, TEXT_START):
        raise ValueError("it matches the empty string, so it would stop before the first token")

    # Bytes that no state distinguishes share a column; the newline has its own because of (?m)^.
    none = np.full((256,), -1, np.int32)
    newline = np.where(np.arange(256) == _NEWLINE, 0, none)
    all_targets = np.stack([newline] + [none if row is None else row for row in nfa.targets])
    columns, column_of = np.unique(all_targets, axis=1, return_inverse=True)
    column_of = column_of.reshape(-1)
    columns = columns[1:]  # [NFA states, K]
    position_after = [ANYWHERE] * columns.shape[1]
    position_after[column_of[_NEWLINE]] = LINE_START

    done = frozenset({Nfa.MATCH})
    first = closure(start, TEXT_START)
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
        for column, position in enumerate(position_after):
            key = (targets[:, column].tobytes(), position)
            if key not in known:
                states = [int(t) for t in targets[:, column] if t >= 0]
                union = closure(start, position).union(*(closure(t, position) for t in states))
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
    """Merges states that no text distinguishes (Moore), numbered breadth first from the start.

    Args:
      table: [states, 256], all reachable from state 0.
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
                "counts, or restrict classes to ASCII by a leading (?a)"
            )
    _, representative = np.unique(block, return_index=True)
    order = _breadth_first(block[table[representative]], int(block[0]))
    rank = np.empty((count,), np.int32)
    rank[order] = np.arange(count, dtype=np.int32)
    chosen = representative[order]
    return ByteAutomaton(rank[block[table[chosen]]], accepting[chosen])


def _breadth_first(table: np.ndarray, start: int) -> Sequence[int]:
    """The states in the order of a breadth-first search."""
    order = [start]
    seen = {start}
    for state in order:  # grows
        for target in dict.fromkeys(table[state].tolist()):
            if target not in seen:
                seen.add(target)
                order.append(target)
    return order
