"""What a tokenizer's files may hold: more than any published tokenizer needs, and no more.

They are checked before the tokenizers library reads them. What it builds is as large as they say,
and a normalizer or decoder can make a page of text of every letter.
"""

import base64
import pathlib
from collections.abc import Iterator
from typing import Any

from jax_power_smc.core import checks
from jax_power_smc.models.checkpoints.model_files import read_object
from jax_power_smc.models.transformer.config import CheckpointError
from jax_power_smc.models.transformer.limits import LIMITS

# The tokenizer.json of Gemma 3 has 33 MB and 262,145 tokens, 6,415 of them added ones; speech
# models have 28,683 added ones.
LARGEST_FILE = 256 * 2**20
MOST_TOKENS = int(LIMITS["vocab_size"].high)
MOST_ADDED = 100_000
# Lists of names that the library compares pair by pair.
MOST_NAMED = 5000
# Characters of one token, of which an answer may have thousands.
LONGEST_TOKEN = 4096
# Steps of normalizer, decoder and so on, and parts of steps.
MOST_STEPS = 1000
# By which all replacements together may lengthen a text; Unicode's own, NFKC, by 18.
LARGEST_GROWTH = 100
MOST_PADDING = 2**20

_CONFIG = "tokenizer_config.json"
_NAMED = ("additional_special_tokens", "extra_special_tokens")


def check(directory: pathlib.Path) -> None:
    """Raises CheckpointError, naming file and field, for a tokenizer beyond these limits."""
    file = directory / "tokenizer.json"
    raw = read_object(file, LARGEST_FILE)
    _check_vocabulary(raw, file)
    _check_steps(raw, file)
    _check_padding(raw.get("padding"), file)
    for settings in (directory / _CONFIG, directory / "special_tokens_map.json"):
        _check_settings(read_object(settings), settings)
    added = directory / "added_tokens.json"
    for text, i in _all_of(read_object(added), MOST_ADDED, "its object", added).items():
        _check_token(text, i, "the token", added)


def _check_vocabulary(raw: dict[str, Any], file: pathlib.Path) -> None:
    given = raw.get("model")
    model: dict[str, Any] = given if isinstance(given, dict) else {}
    vocab = model.get("vocab", {})
    _all_of(vocab, MOST_TOKENS, "model.vocab", file)
    if isinstance(vocab, dict):
        for text, i in vocab.items():
            _check_token(text, i, "model.vocab", file)
    elif isinstance(vocab, list):  # of a Unigram model: tokens with their scores
        for pair in vocab:
            _check_token(pair[0] if isinstance(pair, list) and pair else "", 0, "model.vocab", file)
    for name, value in model.items():  # prefixes and the like
        if isinstance(value, str):
            _check_token(value, 0, f"model.{name}", file)
    for token in _all_of(raw.get("added_tokens") or [], MOST_ADDED, "added_tokens", file):
        token = token if isinstance(token, dict) else {}
        _check_token(token.get("content"), token.get("id", 0), "added_tokens", file)


def _check_settings(settings: dict[str, Any], file: pathlib.Path) -> None:
    decoder = settings.get("added_tokens_decoder") or {}
    for i, token in dict(_all_of(decoder, MOST_ADDED, "added_tokens_decoder", file)).items():
        number = int(i) if i.isascii() and i.isdecimal() and len(i) < 20 else i
        text = token.get("content") if isinstance(token, dict) else token
        _check_token(text, number, "added_tokens_decoder", file)
    for name in _NAMED:
        _all_of(settings.get(name) or [], MOST_NAMED, name, file)
    # Other files than those that are checked here.
    others = settings.get("fast_tokenizer_files")
    if others is not None and others != ["tokenizer.json"]:
        raise CheckpointError(
            f"{file} has fast_tokenizer_files {checks.shown(others)}; only tokenizer.json is read."
        )


def _check_token(text: Any, i: Any, field: str, file: pathlib.Path) -> None:
    if checks.as_integer(i) is None or not 0 <= i < MOST_TOKENS:
        raise CheckpointError(
            f"{file} has id {checks.shown(i)} for {checks.shown(text)} in {field}; it must be an "
            f"integer of at least 0 and less than {MOST_TOKENS}."
        )
    if isinstance(text, str) and len(text) > LONGEST_TOKEN:
        raise CheckpointError(
            f"{file} has a token of {len(text)} characters in {field}; at most {LONGEST_TOKEN} are "
            "allowed."
        )


def _all_of(values: Any, most: int, field: str, file: pathlib.Path) -> Any:
    """A list or an object with at most so many entries."""
    if not isinstance(values, list | dict):
        raise CheckpointError(f"{file} has {field} {checks.shown(values)}; it must be a list.")
    if len(values) > most:
        raise CheckpointError(
            f"{file} has {len(values)} entries in {field}; at most {most} are allowed."
        )
    return values


def _check_steps(raw: dict[str, Any], file: pathlib.Path) -> None:
    for field in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        steps, growth = 0, 1.0
        for step in _objects(raw.get(field)):
            steps, growth = steps + 1, growth * _growth(step, f"{field} of {file}")
        if steps > MOST_STEPS:
            raise CheckpointError(f"{file} has a {field} of more than {MOST_STEPS} steps.")
        if growth > LARGEST_GROWTH:
            raise CheckpointError(
                f"{file} has a {field} that can make texts {growth:.3g} times as long; at most "
                f"{LARGEST_GROWTH} times is allowed."
            )


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """All objects inside a value; more than ``MOST_STEPS`` are not looked at."""
    waiting, count = [value], 0
    while waiting and count <= MOST_STEPS:
        each = waiting.pop()
        if isinstance(each, dict):
            count += 1
            yield each
        if isinstance(each, dict | list):
            waiting += each.values() if isinstance(each, dict) else each


def _growth(step: dict[str, Any], where: str) -> float:
    """By how much a step can lengthen a text of some length.

    Its type is not asked for: the library recognizes a step without one by its other entries.
    """
    content, prefix, packed = map(step.get, ("content", "prepend", "precompiled_charsmap"))
    growth = 1.0
    if isinstance(content, str) and "pattern" in step:
        pattern = step["pattern"]
        text = pattern.get("String") if isinstance(pattern, dict) else None
        # An expression may match between any two characters.
        growth *= max(1.0, len(content) / len(text)) if text else 1.0 + len(content)
    if isinstance(prefix, str):
        growth *= 1.0 + len(prefix)
    if packed is not None:
        try:
            charsmap = base64.b64decode(packed, validate=True)
        except (TypeError, ValueError):
            raise CheckpointError(
                f"the {where} has a precompiled_charsmap that is no map."
            ) from None
        # A trie, after its size, and the texts that it leads to, with a zero byte after each.
        texts = charsmap[4 + int.from_bytes(charsmap[:4], "little") :]
        growth *= max(1.0, max(map(len, texts.split(b"\0")), default=0) / 4)
    return growth


def _check_padding(padding: Any, file: pathlib.Path) -> None:
    """Checks the numbers to which the library would fill up the ids of a text."""
    given = padding if isinstance(padding, dict) else {}
    strategy = given.get("strategy")
    fixed = strategy.get("Fixed") if isinstance(strategy, dict) else None
    for name, value in (("strategy.Fixed", fixed), ("multiple", given.get("pad_to_multiple_of"))):
        whole = checks.as_integer(value)
        if value is not None and (whole is None or not 0 <= whole <= MOST_PADDING):
            raise CheckpointError(
                f"{file} has padding.{name} {checks.shown(value)}; it must be an integer of at "
                f"least 0 and at most {MOST_PADDING}."
            )
