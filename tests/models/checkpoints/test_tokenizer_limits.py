"""Tokenizers that are too large, or make texts too large, are refused before they are built."""

import base64
import json
import os
import time

import pytest

from jax_power_smc.models.checkpoints import tokenizer_limits
from jax_power_smc.models.checkpoints.tokenizer import load_tokenizer, read_eos_ids
from jax_power_smc.models.transformer.config import CheckpointError
from tests.models import small
from tests.paths import ROOT, SHARED

PUBLISHED = [ROOT / "jax_power_smc/data/tiny_reasoner", SHARED / "tokenizers/qwen2.5"]


def replace(content, pattern=None):
    return {"type": "Replace", "pattern": pattern or {"String": "w"}, "content": content}


def added(number, **changes):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": f"<{number}>", **flags, "special": True} | changes


def charsmap(text):
    return base64.b64encode((4).to_bytes(4, "little") + bytes(4) + text + b"\0").decode()


def sequence(*steps, kind="normalizer"):
    return {"type": "Sequence", f"{kind}s": list(steps)}


def listed(name):
    return {name: [f"<{i}>" for i in range(10**4)]}


# What is in tokenizer.json -> what the sentence says.
MODEL = {"type": "WordLevel", "vocab": {"w0": 0, "w1": 1}, "unk_token": "w0"}
REFUSED = {
    "many added tokens": (
        {"added_tokens": [added(i) for i in range(10**5 + 1)]},
        "has 100001 entries in added_tokens; at most 100000",
    ),
    "an added token's id": (
        {"added_tokens": [added(2 * 10**9)]},
        "has id 2000000000 for '<2000000000>' in added_tokens; it must be an integer of at least 0",
    ),
    "no id": ({"added_tokens": [added(1, id="1")]}, "has id '1' for '<1>'"),
    "a long added token": (
        {"added_tokens": [added(1, content="x" * 10**6)]},
        "has a token of 1000000 characters in added_tokens",
    ),
    "a token's id": ({"model": MODEL | {"vocab": {"a": 2 * 10**9}}}, "has id 2000000000 for 'a'"),
    "a negative id": ({"model": MODEL | {"vocab": {"a": -1}}}, "has id -1 for 'a' in model.vocab"),
    "a long token": ({"model": MODEL | {"vocab": {"a" * 10**6: 0}}}, "of 1000000 characters"),
    "a long piece": (
        {"model": {"type": "Unigram", "vocab": [["a" * 10**6, 0.0]]}},
        "a token of 1000000 characters in model.vocab",
    ),
    "no vocabulary": ({"model": MODEL | {"vocab": 7}}, "has model.vocab 7; it must be a list"),
    "doubling": (
        {"normalizer": sequence(*[replace("ww")] * 30)},
        "has a normalizer that can make texts 1.07e+09 times as long; at most 100 times",
    ),
    "doubling of all": (
        {"normalizer": sequence(*[replace("xx", {"Regex": ""})] * 5)},
        "has a normalizer that can make texts 243 times as long",
    ),
    "nested doubling": (
        {"normalizer": sequence(sequence(sequence(*[replace("w" * 11)] * 2)))},
        "has a normalizer that can make texts 121 times as long",
    ),
    "doubling without a type": (
        {"normalizer": {"normalizers": [{"pattern": {"String": "w"}, "content": "w" * 101}]}},
        "has a normalizer that can make texts 101 times as long",
    ),
    "a long prefix": (
        {"model": MODEL | {"continuing_subword_prefix": "x" * 10**6}},
        "has a token of 1000000 characters in model.continuing_subword_prefix",
    ),
    "prepending": (
        {"normalizer": {"type": "Prepend", "prepend": "x" * 1000}},
        "has a normalizer that can make texts 1e+03 times as long",
    ),
    "a map of characters": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap(b"x" * 10**4)}},
        "has a normalizer that can make texts 2.5e+03 times as long",
    ),
    "no map": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "!"}},
        "the normalizer of",
    ),
    "doubling decoder": (
        {"decoder": sequence(*[replace("ww")] * 7, kind="decoder")},
        "has a decoder that can make texts 128 times as long",
    ),
    "many steps": (
        {"normalizer": sequence(*[{"type": "NFC"}] * 2000)},
        "has a normalizer of more than 1000 steps",
    ),
    "filled up": (
        {"padding": {"strategy": {"Fixed": 2 * 10**9}}},
        "has padding.strategy.Fixed 2000000000; it must be",
    ),
    "a multiple": (
        {"padding": {"strategy": "BatchLongest", "pad_to_multiple_of": 2 * 10**9}},
        "has padding.multiple 2000000000; it must be",
    ),
}
SETTINGS = {
    "id": ({"added_tokens_decoder": {"2000000000": added(1)}}, "has id 2000000000 for '<1>'"),
    "no id": ({"added_tokens_decoder": {"²": added(1)}}, "has id '²' for '<1>'"),
    "id of digits": ({"added_tokens_decoder": {"9" * 5000: added(1)}}, "has id '999"),
    "no object": ({"added_tokens_decoder": 7}, "has added_tokens_decoder 7"),
    "many special tokens": (listed("additional_special_tokens"), "has 10000 entries in additional"),
    "many other tokens": (listed("extra_special_tokens"), "has 10000 entries in extra_special"),
    "another file": (
        {"fast_tokenizer_files": ["tokenizer.json", "tokenizer.4.0.json"]},
        "has fast_tokenizer_files ['tokenizer.json', 'tokenizer.4.0.json']; only tokenizer.json",
    ),
}


def rewrite(path, **changes):
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


def refused(directory, *parts):
    start = time.process_time()
    with pytest.raises(CheckpointError) as error:
        load_tokenizer(directory)
    assert time.process_time() - start < 10 and len(str(error.value)) < 500
    small.assert_one_sentence(error, *parts)


@pytest.mark.parametrize("name", REFUSED)
def test_tokenizer_json(tmp_path, name):
    small.save_tokenizer(tmp_path, 2)
    changes, message = REFUSED[name]
    rewrite(tmp_path / "tokenizer.json", **changes)
    refused(tmp_path, tmp_path / "tokenizer.json", message)


@pytest.mark.parametrize("name", SETTINGS)
def test_tokenizer_config(tmp_path, name):
    small.save_tokenizer(tmp_path, 2)
    changes, message = SETTINGS[name]
    rewrite(tmp_path / "tokenizer_config.json", **changes)
    refused(tmp_path, tmp_path / "tokenizer_config.json", message)


def test_older_files(tmp_path):
    small.save_tokenizer(tmp_path, 2)
    rewrite(tmp_path / "added_tokens.json", **{"<x>": 2 * 10**9})
    refused(tmp_path, tmp_path / "added_tokens.json", "has id 2000000000 for '<x>'")
    (tmp_path / "added_tokens.json").unlink()
    rewrite(tmp_path / "special_tokens_map.json", **listed("additional_special_tokens"))
    refused(tmp_path, tmp_path / "special_tokens_map.json", "has 10000 entries")


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"],
)
def test_nested_and_huge_files(tmp_path, name):
    small.save_tokenizer(tmp_path, 2)
    (tmp_path / name).write_text('{"a": ' + "[" * 10**5 + "]" * 10**5 + "}")
    refused(tmp_path, tmp_path / name, "nested too deeply")
    os.truncate(tmp_path / name, 2**40)
    refused(tmp_path, tmp_path / name, "has 1099511627776 bytes; at most")


@pytest.mark.parametrize("directory", PUBLISHED, ids=lambda path: path.name)
def test_published_tokenizers(directory):
    if not directory.is_dir():
        pytest.skip(f"{directory} is absent")
    tokenizer_limits.check(directory)


def test_what_published_tokenizers_do_is_allowed(tmp_path):
    small.save_tokenizer(tmp_path, 2)
    space = {"String": " "}
    rewrite(
        tmp_path / "tokenizer.json",
        # As in Llama 2, and then some of T5's.
        normalizer=sequence(
            {"type": "Prepend", "prepend": "▁"},
            replace("▁", space),
            {"type": "Precompiled", "precompiled_charsmap": charsmap("﷽ is long".encode() * 3)},
            replace(" ", {"Regex": " {2,}"}),
        ),
        decoder=sequence(replace(" ", {"String": "▁"}), {"type": "Fuse"}, kind="decoder"),
        added_tokens=[added(i) for i in range(2, 30_000)],
        padding={"strategy": {"Fixed": 512}, "pad_to_multiple_of": None},
    )
    rewrite(
        tmp_path / "tokenizer_config.json",
        model_max_length=1000000000000000019884624838656,
        added_tokens_decoder={str(i): added(i) for i in range(2, 30_000)},
    )
    tokenizer_limits.check(tmp_path)


def test_end_tokens(tmp_path):
    small.save_tokenizer(tmp_path, 2)
    tokenizer = load_tokenizer(tmp_path)
    for value in (2 * 10**9, [1, 10**18], [1.5], True):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        with pytest.raises(CheckpointError) as error:
            read_eos_ids(tmp_path, tokenizer)
        path = tmp_path / "generation_config.json"
        small.assert_one_sentence(error, path, f"has eos_token_id {value}", "each below 4194304")
