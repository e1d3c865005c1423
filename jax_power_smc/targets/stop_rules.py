"""Stop rules: a sequence ends after the token in which the first match completes (MATH: target).

    psmc.StopString("\\n\\n")      psmc.StopRegex(r"answer is \\d+\\.")      psmc.StopBoxed()

A rule is an automaton over the bytes of the generated tokens, from the first one on; the prompt is
not searched. A match may start and complete inside a token, and a token may hold a part of a
character. Compiled with a tokenizer it is a table that the decode step looks up:

    rule -> ByteAutomaton [states, 256] -> (token bytes) -> StopTable [states, V]

Special tokens have no bytes and leave the state as it is, so a match may run across one.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from jax_power_smc.targets import regex_dfa
from jax_power_smc.targets.regex_dfa import ByteAutomaton

# Open braces inside \boxed{...}, its own one included.
LARGEST_BRACE_DEPTH = 16

_BOXED = rb"\boxed{"
_BACKSLASH = _BOXED[0]
# A byte token of a tokenizer with byte fallback.
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
# Kinds of decoders, in order, in which a mark stands for the space.
_SPACE_MARKED = (
    ("Replace", "ByteFallback", "Fuse", "Strip"),
    ("Replace", "ByteFallback", "Fuse"),
    ("Metaspace",),
)


@dataclasses.dataclass(frozen=True)
class StopString:
    """Stops when the text has been generated.

    Attributes:
      text: what to look for; at most 511 bytes of UTF-8. The text of a special token is never
        generated as text, and refused once the tokenizer is known: name its id in ``eos_ids``
        instead.

    Raises:
      ValueError: for a text that is empty or too long.
    """

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ValueError(f"text is {self.text!r}; it must be a string.")
        self.automaton()

    def automaton(self) -> ByteAutomaton:
        """The automaton that finds the text."""
        try:
            return _from_string(self.text)
        except ValueError as error:
            raise ValueError(f"text is {self.text!r}; {error}.") from None


@dataclasses.dataclass(frozen=True)
class StopRegex:
    """Stops when a regular expression has matched, like ``re.search`` on the text so far.

    The shortest match decides, so greedy and non-greedy repetitions are the same. Classes are of
    Unicode characters, which makes large automata of, say, ``\\w{3}``; with (?a) in front they are
    of ASCII. ``^`` is the start of the generated text, with (?m) of any line of it. Refused:
    lookaround, backreferences, conditional and atomic groups, possessive quantifiers, and what
    depends on what comes after (``$``, ``\\Z``, ``\\b``, ``\\B``).

    Attributes:
      pattern: in the dialect of ``re``.

    Raises:
      ValueError: for a pattern that is not valid or not supported, that matches the empty string or
        nothing at all, or whose automaton has more than 512 states.
    """

    pattern: str

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise ValueError(f"pattern is {self.pattern!r}; it must be a string.")
        self.automaton()

    def automaton(self) -> ByteAutomaton:
        """The automaton that finds a match."""
        try:
            return _from_regex(self.pattern)
        except ValueError as error:
            raise ValueError(f"pattern is {self.pattern!r}; {error}.") from None


@dataclasses.dataclass(frozen=True)
class StopBoxed:
    r"""Stops when a balanced \boxed{...} has been generated.

    * Only \boxed with the brace directly after it opens a box.
    * As in LaTeX, \{ and \} are printed characters and do not count, and \\ is a command of its
      own: in \\{ the brace counts.
    * A box inside a box, balanced or not, is searched for as well, so the inner one of
      \boxed{\boxed{1}} completes first, and one that was never closed does not hide the next.
    * Up to 16 braces may be open at once, the box's own included. A box that goes deeper is no
      match and is forgotten; the search goes on inside it and after it.
    """

    def automaton(self) -> ByteAutomaton:
        """The automaton that finds the box."""
        return _from_boxed()


StopRule = StopString | StopRegex | StopBoxed


class StopTable(NamedTuple):
    """A stop rule as the decode step reads it.

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
      tokenizer: as for ``token_bytes``, or a list of the bytes of every token.
      vocab_size: V of the model, where it differs from the tokenizer's; see ``token_bytes``.

    Raises:
      ValueError: without a tokenizer, for one whose tokens have no known bytes, or for a rule that
        looks for the text of a special token.
    """
    return token_table(rule.automaton(), spelled(rule, tokenizer, vocab_size))


def spelled(rule: StopRule, tokenizer: Any, vocab_size: int | None) -> list[bytes | None]:
    """What each token adds to the text, for a rule that needs it; see ``compile_stop``."""
    if tokenizer is None:
        raise ValueError(f"the target has stop={rule!r}; pass tokenizer= to say what tokens spell.")
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
    """Refuses what would never match, since special tokens have no bytes."""
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


def token_bytes(tokenizer: Any, vocab_size: int | None = None) -> list[bytes | None]:
    """What each token adds to the text.

    Tokenizers with byte-level tokens (GPT-2, Llama 3, Qwen) and with a mark for the space
    (SentencePiece: Llama 2, Gemma) are known. With a mark, a token at the start of a word has its
    space, also where it is the first one generated; decoding a text from its start may drop that.

    Args:
      tokenizer: a fast tokenizer of transformers, or a ``tokenizers.Tokenizer``.
      vocab_size: number of ids, for a model that has more than the tokenizer (rows added to reach
        a round number: no bytes) or fewer (the tokenizer's last ids are left out).

    Returns:
      The bytes of every id; None for ids without a token and for special tokens, that is those
      that decoding with ``skip_special_tokens`` skips.

    Raises:
      ValueError: for a tokenizer of another kind.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ValueError(
            f"tokenizer is a {type(tokenizer).__name__}; stop rules need a tokenizers.Tokenizer or "
            "a fast tokenizer of transformers."
        )
    read = _reader(backend)
    vocabulary = backend.get_vocab(with_added_tokens=True)
    added = backend.get_added_tokens_decoder()
    special = {i for i, token in added.items() if token.special}
    if vocab_size is None:
        vocab_size = max(vocabulary.values(), default=-1) + 1
    pieces: list[bytes | None] = [None] * vocab_size
    for token, i in vocabulary.items():
        if i < vocab_size and i not in special:
            pieces[i] = added[i].content.encode() if i in added else read(token)
    return pieces


def token_table(automaton: ByteAutomaton, pieces: Sequence[bytes | None]) -> StopTable:
    """Runs the automaton over every token from every state.

    What a token does is a map from states to states. Tokens are read in parallel, byte by byte, and
    those that have done the same so far are read as one.

    Args:
      automaton: of a stop rule.
      pieces: V tokens, as ``token_bytes`` returns them.
    """
    states = len(automaton.table)
    text = [piece or b"" for piece in pieces]
    length = np.fromiter(map(len, text), np.int64, len(text))
    begin = np.cumsum(length) - length
    stream = np.frombuffer(b"".join(text), np.uint8)
    columns, column_of = np.unique(automaton.table.T, axis=0, return_inverse=True)
    columns = columns.astype(np.int16)  # [K, states], the map of every byte
    column_of = column_of.reshape(-1)

    by_token = np.empty((len(text), states), np.int16)
    order = np.argsort(-length, kind="stable")  # the longest first: those being read come first
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
    content = regex_dfa.utf8(text)
    if not content:
        raise ValueError("it must not be empty")
    if len(content) >= regex_dfa.LARGEST_AUTOMATON:
        raise ValueError(
            f"it has {len(content)} bytes; at most {regex_dfa.LARGEST_AUTOMATON - 1} are allowed"
        )
    return regex_dfa.from_bytes(content)


@functools.lru_cache(maxsize=64)
def _from_regex(pattern: str) -> ByteAutomaton:
    return regex_dfa.from_regex(pattern)


@functools.cache
def _from_boxed() -> ByteAutomaton:
    return regex_dfa.from_steps(_read_boxed, _Boxed(0, 0), None)


class _Boxed(NamedTuple):
    r"""Where the search for a box stands.

    Attributes:
      depth: open braces since the last \boxed{. An earlier box that is still open has more of them,
        so it completes later and need not be remembered.
      seen: how many bytes of \boxed{ have just been read; 1 is a backslash that escapes what comes
        next, and -1 the second one of a pair, which escapes nothing but may begin \boxed{.
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


def _reader(backend: tokenizers.Tokenizer) -> Any:
    """The function from a token's name in the vocabulary to its bytes, by the decoder's kind."""
    # Its pickled state is JSON; the whole tokenizer as JSON has the same, and megabytes besides.
    state: Any = backend.decoder.__getstate__() if backend.decoder else '{"type": "None"}'
    decoder = json.loads(state)
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = tuple(part["type"] for part in parts)
    if kinds == ("ByteLevel",):
        return _read_byte_level
    if kinds in _SPACE_MARKED:
        mark = parts[0].get("replacement") or parts[0]["pattern"].get("String")
        if mark and parts[0].get("content", " ") == " ":
            return functools.partial(_read_marked, mark=mark, fallback="ByteFallback" in kinds)
    raise ValueError(
        f"the tokenizer's decoder is {' + '.join(kinds)}; stop rules know the bytes of byte-level "
        "tokens and of SentencePiece tokens only."
    )


def _read_byte_level(token: str) -> bytes:
    """The bytes of a byte-level token; a name that is not made of bytes stands for itself."""
    table = _byte_level_alphabet()
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return token.encode()


def _read_marked(token: str, mark: str, fallback: bool) -> bytes:
    """The bytes of a token in which a mark stands for the space."""
    byte = _BYTE_TOKEN.fullmatch(token) if fallback else None
    return bytes([int(byte[1], 16)]) if byte else token.replace(mark, " ").encode()


@functools.cache
def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's names of the bytes: printable ones stand for themselves, others follow U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {chr(byte): byte for byte in printable}
    return names | {chr(0x100 + i): byte for i, byte in enumerate(others)}
