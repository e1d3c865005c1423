"""What each token of a tokenizer adds to the text, as bytes."""

import functools
import re
from collections.abc import Callable
from typing import Any

import tokenizers

from jax_power_smc.core.files import parse_json

# A byte token of a tokenizer with byte fallback.
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
# The decoders, by kind and in order, of tokenizers in which a mark stands for the space.
_SPACE_MARKED = (
    ("Replace", "ByteFallback", "Fuse", "Strip"),
    ("Replace", "ByteFallback", "Fuse"),
    ("Metaspace",),
)


def token_bytes(tokenizer: Any, vocab_size: int | None = None) -> list[bytes | None]:
    """The bytes that each token adds to the text.

    Supports byte-level tokens (GPT-2, Llama 3, Qwen) and tokens with a mark for the space
    (SentencePiece: Llama 2, Gemma). With a mark, a token that starts a word includes the space even
    if it is the first one generated; decoding a text from its start may drop that space.

    Args:
      tokenizer: a fast tokenizer of transformers, or a ``tokenizers.Tokenizer``.
      vocab_size: the model's number of ids, where it is larger than the tokenizer's (padded
        embeddings, which have no bytes) or smaller (the tokenizer's last ids are left out).

    Returns:
      The bytes of every id; None for ids without a token and for special tokens, which are those
      that decoding with ``skip_special_tokens`` skips.

    Raises:
      ValueError: for any other kind of tokenizer.
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


def _reader(backend: tokenizers.Tokenizer) -> Callable[[str], bytes]:
    """The function from a token's name in the vocabulary to its bytes, by the kind of decoder."""
    # A decoder's pickled state is JSON, and much smaller than that of the whole tokenizer.
    state: Any = backend.decoder.__getstate__() if backend.decoder else '{"type": "None"}'
    decoder = parse_json(state)
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = tuple(part["type"] for part in parts)
    if kinds == ("ByteLevel",):
        return _read_byte_level
    if kinds in _SPACE_MARKED:
        mark = parts[0].get("replacement") or parts[0]["pattern"].get("String")
        if mark and parts[0].get("content", " ") == " ":
            return functools.partial(_read_marked, mark=mark, fallback="ByteFallback" in kinds)
    raise ValueError(
        f"the tokenizer's decoder is {' + '.join(kinds)}; stop rules support only byte-level "
        "tokens and SentencePiece tokens."
    )


def _read_byte_level(token: str) -> bytes:
    """The bytes of a byte-level token; a name outside the alphabet stands for itself."""
    byte_of = _byte_level_alphabet()
    if all(character in byte_of for character in token):
        return bytes(byte_of[character] for character in token)
    return token.encode()


def _read_marked(token: str, mark: str, fallback: bool) -> bytes:
    """The bytes of a token in which a mark stands for the space."""
    byte = _BYTE_TOKEN.fullmatch(token) if fallback else None
    return bytes([int(byte[1], 16)]) if byte else token.replace(mark, " ").encode()


@functools.cache
def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's names for bytes: printable ones stand for themselves, the rest start at U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(i): i for i in printable} | {chr(0x100 + i): n for i, n in enumerate(others)}
