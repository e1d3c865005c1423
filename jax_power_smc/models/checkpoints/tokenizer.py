"""The tokenizer of a checkpoint, what its prompts begin with and what ends its answers."""

import json
import os
import pathlib
from typing import Any

from jax_power_smc.models.transformer.config import CheckpointError

_CONFIG = "tokenizer_config.json"
# Classes that by their documentation begin a text with BOS as add_bos_token says.
_BOS_BY_CONFIG = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer")


def load_tokenizer(directory: pathlib.Path) -> Any:
    """The tokenizer that tokenizer.json of a directory describes.

    Raises:
      CheckpointError: if it is missing or cannot be read.
    """
    if not (directory / "tokenizer.json").is_file():
        raise CheckpointError(f"{directory} has no tokenizer.json.")
    settings = _read_object(directory / _CONFIG)
    # Imported here: it takes a second, and a pipeline with its own tokens does not need it.
    # Not AutoTokenizer: it goes by config.json's model_type, and for "qwen2" it builds a byte-pair
    # tokenizer of its own from a tokenizer.json that may hold another kind. This one reads the
    # file as it is.
    # Without the variable it complains on stderr that PyTorch is absent, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
        _follow_add_bos_token(tokenizer, settings)
    except Exception as error:  # the library raises many kinds for a broken file
        reason = " ".join(str(error).split())
        raise CheckpointError(f"the tokenizer in {directory} cannot be read ({reason}).") from error
    return tokenizer


def _follow_add_bos_token(tokenizer: Any, settings: dict[str, Any]) -> None:
    """Lets add_bos_token decide where the class that the checkpoint names is documented to.

    Version 5 of transformers ignores the name beside a tokenizer.json. Until version 4 these
    classes obeyed it whatever tokenizer.json did, so models were trained and published with it:
    for DeepSeek-R1-Distill-Qwen it says true and tokenizer.json adds nothing. Other classes ignored
    it then as now. Where the name is absent tokenizer.json decides, although the default of these
    classes is true: version 5 leaves the name out of what it saves.
    """
    name, wanted = settings.get("tokenizer_class"), settings.get("add_bos_token")
    if not isinstance(name, str) or name.removesuffix("Fast") not in _BOS_BY_CONFIG:
        return
    if isinstance(wanted, bool) and wanted != begins_with_bos(tokenizer, tokenizer.encode("")):
        tokenizer.add_bos_token = wanted


def begins_with_bos(tokenizer: Any, ids: list[int]) -> bool:
    """Whether the first of these ids is the tokenizer's BOS."""
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """The tokens that no text spells, by id: those with a role, and all others marked special."""
    added = tokenizer.added_tokens_decoder.items()
    return {i: token.content for i, token in added if token.special}


def read_eos_ids(directory: pathlib.Path, tokenizer: Any) -> tuple[int, ...]:
    """The eos set: that of generation_config.json, or config.json, or the tokenizer's, or empty.

    Raises:
      CheckpointError: for a file that is not a JSON object, or values that are not ids.
    """
    for file in ("generation_config.json", "config.json"):
        value = _read_object(directory / file).get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
            raise CheckpointError(
                f"{directory / file} has eos_token_id {value!r}; it must be an integer or a list "
                "of them."
            )
        return tuple(ids)
    return () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)


def refuse_tokens_without_embedding(tokenizer: Any, vocab_size: int, source: object) -> None:
    """Refuses a tokenizer that is not the model's.

    Added tokens may lie beyond the embedding, such as a padding token of a fine-tune, or the image
    token of Gemma 3, which its models of text do not know; prompts that use them are refused.

    Raises:
      CheckpointError: if others lie there.
    """
    added = tokenizer.added_tokens_decoder
    beyond = [i for i in tokenizer.get_vocab().values() if i >= vocab_size and i not in added]
    if beyond:
        raise CheckpointError(
            f"the tokenizer in {source} has ids up to {max(beyond)}, the embedding only "
            f"{vocab_size} rows."
        )


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object of a file; an empty one if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not a JSON object ({error}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object (it is a {type(value).__name__}).")
    return value
