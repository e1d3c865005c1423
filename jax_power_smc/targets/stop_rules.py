"""Stop rules: a sequence ends with the token that completes the first match.

See docs/math.md, "Target".

    psmc.StopString("\\n\\n")      psmc.StopRegex(r"answer is \\d+\\.")      psmc.StopBoxed()

A rule is an automaton over the bytes of the generated tokens; the prompt is not searched. A match
may start and complete inside a token, and a token may be part of a character. A tokenizer turns
the automaton into a table that the decode step looks up:

    rule -> ByteAutomaton [states, 256] -> (token bytes) -> StopTable [states, V]

Special tokens have no bytes and leave the state unchanged, so a match may run across them.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jax_power_smc.targets import regex_dfa, regex_nfa
from jax_power_smc.targets.regex_dfa import ByteAutomaton
from jax_power_smc.targets.token_bytes import token_bytes

# Open braces inside \boxed{...}, including its own.
LARGEST_BRACE_DEPTH = 16

_BOXED = rb"\boxed{"
_BACKSLASH = _BOXED[0]


@dataclasses.dataclass(frozen=True)
class StopString:
    """Stops when a given text has been generated.

    Attributes:
      text: at most 511 bytes of UTF-8. A special token's text is never generated as text, so it is
        refused once the tokenizer is known: put the token's id in ``eos_ids`` instead.

    Raises:
      ValueError: for a text that is empty or too long.
    """

    text: str

    def __post_init__(self) -> None:
        self.automaton()

    def automaton(self) -> ByteAutomaton:
        return _automaton("text", self.text, _from_string)


@dataclasses.dataclass(frozen=True)
class StopRegex:
    """Stops when a regular expression matches, like ``re.search`` on the text generated so far.

    The shortest match decides, so greedy and non-greedy repetitions are equivalent. Classes contain
    Unicode characters, which makes the automaton of, say, ``\\w{3}`` large; (?a) in front restricts
    them to ASCII. ``^`` is the start of the generated text, or with (?m) of any of its lines. Not
    supported: lookaround, backreferences, conditional and atomic groups, possessive quantifiers,
    and anchors that depend on what follows (``$``, ``\\Z``, ``\\b``, ``\\B``).

    Attributes:
      pattern: in the dialect of ``re``.

    Raises:
      ValueError: for a pattern that is invalid or not supported, that matches the empty string or
        can never match, or whose automaton has more than 512 states.
    """

    pattern: str

    def __post_init__(self) -> None:
        self.automaton()

    def automaton(self) -> ByteAutomaton:
        return _automaton("pattern", self.pattern, _from_regex)


@dataclasses.dataclass(frozen=True)
class StopBoxed:
    r"""Stops when a balanced \boxed{...} has been generated.

    * Only \boxed directly followed by the brace opens a box.
    * As in LaTeX, \{ and \} are printed characters and do not count, and \\ is a command: in \\{
      the brace counts.
    * Boxes inside a box, balanced or not, are also searched for, so the inner one of
      \boxed{\boxed{1}} completes first, and a box that is never closed does not hide the next.
    * Up to 16 braces may be open at once, including the box's own. A box nested more deeply does
      not match and is dropped; the search continues inside and after it.
    """

    def automaton(self) -> ByteAutomaton:
        return _from_boxed()


StopRule = StopString | StopRegex | StopBoxed
# By the name that saved results have for them.
STOP_RULES = {rule.__name__: rule for rule in (StopString, StopRegex, StopBoxed)}


class StopTable(NamedTuple):
    """A stop rule over the tokens of a vocabulary.

    Attributes:
      next_state: [states, V] int16, the state after a token.
      start: the state before the first generated token.
      accepting: [states] bool, the sequence has ended; such a state is never left.
    """

    next_state: np.ndarray
    start: int
    accepting: np.ndarray


def compile_stop(rule: StopRule, tokenizer: Any, vocab_size: int | None = None) -> StopTable:
    """The table of a rule over the vocabulary of a tokenizer.

    Args:
      rule: a stop rule.
      tokenizer: as for ``token_bytes``, or a list of every token's bytes.
      vocab_size: V of the model, if it differs from the tokenizer's; see ``token_bytes``.

    Raises:
      ValueError: if there is no tokenizer, the bytes of its tokens are unknown, or the rule looks
        for the text of a special token.
    """
    return token_table(rule.automaton(), checked_token_bytes(rule, tokenizer, vocab_size))


def checked_token_bytes(
    rule: StopRule, tokenizer: Any, vocab_size: int | None
) -> list[bytes | None]:
    """Each token's bytes, checked against the rule; arguments and errors of ``compile_stop``."""
    if tokenizer is None:
        raise ValueError(f"the target has stop={rule!r}; pass tokenizer= for the bytes of tokens.")
    if not isinstance(tokenizer, list):
        pieces = token_bytes(tokenizer, vocab_size)
        _refuse_special_tokens(rule, tokenizer)
        return pieces
    if not all(piece is None or isinstance(piece, bytes) for piece in tokenizer):
        raise ValueError(
            "tokenizer is a list; as such it must hold the bytes (or None) of each token."
        )
    if vocab_size is not None and len(tokenizer) != vocab_size:
        raise ValueError(
            f"tokenizer lists the bytes of {len(tokenizer)} tokens; the model has {vocab_size}."
        )
    return tokenizer


def _refuse_special_tokens(rule: StopRule, tokenizer: Any) -> None:
    """Refuses a rule that could never match because special tokens have no bytes."""
    if isinstance(rule, StopBoxed):
        return
    name, text = ("text", rule.text) if isinstance(rule, StopString) else ("pattern", rule.pattern)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    for i, token in backend.get_added_tokens_decoder().items():
        wanted = token.content if isinstance(rule, StopString) else re.escape(token.content)
        if token.special and wanted and wanted in text:
            raise ValueError(
                f"{name} is {text!r}; {token.content!r} is a special token, which is never "
                f"generated as text: put its id, {i}, in eos_ids instead."
            )


def token_table(automaton: ByteAutomaton, pieces: Sequence[bytes | None]) -> StopTable:
    """Runs the automaton over V tokens (see ``token_bytes``) from every state.

    A token is a map from states to states. Tokens are read in parallel, byte by byte, and those
    whose maps agree so far are read as one.
    """
    states = len(automaton.table)
    text = [piece or b"" for piece in pieces]
    length = np.fromiter(map(len, text), np.int64, len(text))
    begin = np.cumsum(length) - length
    stream = np.frombuffer(b"".join(text), np.uint8)
    columns, column_of = np.unique(automaton.table.T, axis=0, return_inverse=True)
    columns = columns.astype(np.int16)  # [K, states], the distinct maps of single bytes
    column_of = column_of.reshape(-1)

    by_token = np.empty((len(text), states), np.int16)
    order = np.argsort(-length, kind="stable")  # the longest first: unread tokens come first
    maps = np.arange(states, dtype=np.int16)[None]  # [M, states], of the bytes read so far
    map_of = np.zeros(len(text), np.int64)  # [V], in this order
    for position in range(int(length.max(initial=0)) + 1):
        unread = int(np.count_nonzero(length > position))
        by_token[order[unread : len(map_of)]] = maps[map_of[unread:]]
        column = column_of[stream[begin[order[:unread]] + position]]
        pairs, pair_of = np.unique(map_of[:unread] * len(columns) + column, return_inverse=True)
        before, then = np.divmod(pairs, len(columns))
        maps, merged = np.unique(columns[then[:, None], maps[before]], axis=0, return_inverse=True)
        map_of = merged.reshape(-1)[pair_of]
    return StopTable(np.ascontiguousarray(by_token.T), 0, automaton.accepting)


@functools.lru_cache(maxsize=64)
def _from_string(text: str) -> ByteAutomaton:
    content = regex_nfa.utf8(text)
    if not content:
        raise ValueError("it must not be empty")
    if len(content) >= regex_dfa.LARGEST_AUTOMATON:
        raise ValueError(
            f"it has {len(content)} bytes; at most {regex_dfa.LARGEST_AUTOMATON - 1} are allowed"
        )
    return regex_dfa.from_bytes(content)


_from_regex = functools.lru_cache(maxsize=64)(regex_dfa.from_regex)


@functools.cache
def _from_boxed() -> ByteAutomaton:
    return regex_dfa.from_steps(_read_boxed, _Boxed(0, 0), None)


def _automaton(name: str, value: Any, build: Callable[[str], ByteAutomaton]) -> ByteAutomaton:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}; it must be a string.")
    try:
        return build(value)
    except ValueError as error:
        raise ValueError(f"{name} is {value!r}; {error}.") from None


class _Boxed(NamedTuple):
    r"""The state of the search for a box.

    Attributes:
      depth: open braces since the last \boxed{. An earlier box that is still open has more of them,
        so it completes later and need not be tracked.
      seen: how many bytes of \boxed{ have just been read; 1 is a backslash, which escapes the next
        byte, and -1 the second backslash of a pair, which escapes nothing but may begin \boxed{.
    """

    depth: int
    seen: int


def _read_boxed(state: _Boxed, byte: int) -> _Boxed | None:
    r"""The state after a byte; None when the box is closed."""
    depth, seen = state
    escaped = seen == 1
    if byte == _BACKSLASH:
        return _Boxed(depth, -1 if escaped else 1)
    if seen and byte == _BOXED[abs(seen)]:
        seen = abs(seen) + 1
        return _Boxed(1, 0) if seen == len(_BOXED) else _Boxed(depth, seen)
    if depth and not escaped:
        depth += (byte == ord("{")) - (byte == ord("}"))
        if depth == 0:
            return None
        if depth > LARGEST_BRACE_DEPTH:
            depth = 0
    return _Boxed(depth, 0)
