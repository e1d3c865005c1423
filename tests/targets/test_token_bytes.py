"""What tokens add to the text, against what tokenizers decode."""

import random
import re
import unicodedata

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from jax_power_smc.targets import stop_rules
from jax_power_smc.targets.stop_rules import StopString
from jax_power_smc.targets.token_bytes import token_bytes
from tests.targets.stop_cases import TOKENIZERS

# Accents and scripts, spaces in rows, controls, four-byte characters.
TEXTS = [
    "",
    "a",
    "One day, 12 + 30 = 42.\n\n",
    "  two  spaces\tand a tab \r\n",
    "caf\u00e9 \u6570\u5b66 \u0434\u0430 \U0001f600\u200d\U0001f525 \u00a0\x00\x7f",
    "<0x0A> \u0120\u010a <tool_call>",
]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(name, vocabulary):
    tokenizer, pieces = vocabulary(name)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    rng = random.Random(4)
    characters = [*range(0x20, 0x180), 0x0A, 0x3B1, 0x4E00, 0xAC00, 0x1F600, 0x10FFFD]
    texts = [*TEXTS, *("".join(map(chr, rng.choices(characters, k=20))) for _ in range(100))]
    for text in texts:
        text = unicodedata.normalize("NFC", text)  # as qwen2.5 does
        ids = backend.encode(text, add_special_tokens=False).ids
        expected = text.encode()
        if name == "stories" and text:
            expected = b" " + expected  # SentencePiece puts one in front
        assert b"".join(pieces[i] for i in ids) == expected


@pytest.mark.parametrize("name", TOKENIZERS)
def test_special_tokens_have_no_bytes(name, vocabulary):
    tokenizer, pieces = vocabulary(name)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    assert special
    assert {i for i, piece in enumerate(pieces) if piece is None} == special
    assert len(pieces) == backend.get_vocab_size()


def test_added_tokens_are_text(tiny):
    backend = Tokenizer.from_str(tiny.to_str())
    backend.add_tokens([AddedToken("\u00e9\u00e9"), AddedToken("<think>\n"), AddedToken("a ")])
    added = ["\u00e9\u00e9".encode(), b"<think>\n", b"a "]
    assert token_bytes(backend) == token_bytes(tiny) + added


def test_named_tokens_of_qwen(vocabulary):
    tokenizer, pieces = vocabulary("qwen")
    assert pieces[tokenizer.token_to_id("<tool_call>")] == b"<tool_call>"
    assert pieces[tokenizer.token_to_id("<|im_end|>")] is None


def test_a_transformers_tokenizer_is_read_like_the_one_inside(tiny):
    wrapped = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tiny.to_str()))
    assert token_bytes(wrapped) == token_bytes(tiny)


def test_space_marks_and_byte_tokens():
    vocabulary = {"\u2581": 0, "\u2581a\u2581b": 1, "<0xe2>": 2, "<0x0A>": 3, "<0x0A>b": 4, "é": 6}
    backend = Tokenizer(models.BPE(vocabulary, []))
    mark = decoders.Replace("\u2581", " ")
    backend.decoder = decoders.Sequence([mark, decoders.ByteFallback(), decoders.Fuse()])
    pieces = [b" ", b" a b", b"\xe2", b"\n", b"<0x0A>b", None, "é".encode()]
    assert token_bytes(backend) == pieces
    backend.decoder = decoders.Metaspace()
    assert token_bytes(backend) == [*pieces[:2], b"<0xe2>", b"<0x0A>", *pieces[4:]]


def test_a_model_may_have_more_or_fewer_ids_than_its_tokenizer(tiny):
    pieces = token_bytes(tiny)
    assert token_bytes(tiny, len(pieces) + 3) == [*pieces, None, None, None]
    assert token_bytes(tiny, len(pieces) - 3) == pieces[:-3]
    table = stop_rules.compile_stop(StopString("a"), tiny, len(pieces) + 3)
    assert table.next_state.shape == (2, len(pieces) + 3)


@pytest.mark.parametrize(
    ("decoder", "name"),
    [
        (None, "None"),
        (decoders.WordPiece(), "WordPiece"),
        (decoders.BPEDecoder(), "BPEDecoder"),
        (decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()]), "ByteFallback + Fuse"),
        (
            decoders.Sequence(
                [decoders.Replace("_", "-"), decoders.ByteFallback(), decoders.Fuse()]
            ),
            "Replace + ByteFallback + Fuse",
        ),
    ],
)
def test_tokenizers_of_other_kinds_are_refused(decoder, name):
    backend = Tokenizer(models.BPE({"a": 0}, []))
    if decoder is not None:
        backend.decoder = decoder
    with pytest.raises(ValueError, match=re.escape(f"the tokenizer's decoder is {name}; ")):
        stop_rules.compile_stop(StopString("a"), backend)
