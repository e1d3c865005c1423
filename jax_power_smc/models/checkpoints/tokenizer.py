"""The tokenizer of a checkpoint, and the tokens that begin its prompts and end its answers."""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from jax_power_smc.core import checks
from jax_power_smc.core.types import Tokenizer
from jax_power_smc.models.checkpoints import chat_template, tokenizer_limits
from jax_power_smc.models.checkpoints.model_files import read_object
from jax_power_smc.models.checkpoints.tokenizer_limits import MOST_TOKENS
from jax_power_smc.models.transformer.config import CheckpointError

_CONFIG = "tokenizer_config.json"
TOKENIZER_SECONDS = 60.0
# Classes documented to follow add_bos_token in whether a text begins with BOS.
_BOS_BY_CONFIG = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer")


class HfTokenizer(Tokenizer, Protocol):
    """The part of the interface of a ``transformers`` tokenizer that is used here."""

    chat_template: Any
    bos_token: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    added_tokens_decoder: Mapping[int, Any]
    get_vocab: Callable[[], dict[str, int]]
    get_chat_template: Callable[[], str]
    special_tokens_map: Mapping[str, Any]
    convert_ids_to_tokens: Callable[..., Any]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with or without the tokens that every text begins or ends with."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False, **options: Any) -> str:
        """The text of token ids."""


def load_tokenizer(directory: pathlib.Path, seconds: float = TOKENIZER_SECONDS) -> HfTokenizer:
    """The tokenizer that the tokenizer.json of a directory describes.

    Args:
      directory: of the model.
      seconds: time limit for loading it, and then for each text that it encodes or decodes.

    Raises:
      CheckpointError: if it is missing, cannot be read, takes too long, or is larger than
        ``tokenizer_limits`` allow.
    """
    if not (directory / "tokenizer.json").is_file():
        raise CheckpointError(f"{directory} has no tokenizer.json.")
    chat_template.refuse_outside(directory)
    tokenizer_limits.check(directory)
    settings = read_object(directory / _CONFIG)
    # Imported here: it takes a second, and callers with their own tokens do not need it.
    # Not AutoTokenizer: it goes by config.json's model_type, and for "qwen2" it always builds a
    # byte-pair tokenizer, even if tokenizer.json holds another kind. This class follows the file.
    # Without the variable it warns on stderr that PyTorch is absent, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from jax_power_smc.models.checkpoints.guarded_tokenizer import GuardedTokenizer, guarded

    def load() -> Any:
        return GuardedTokenizer.from_pretrained(directory, local_files_only=True)

    try:
        tokenizer = guarded(seconds, f"reading the tokenizer in {directory}", load)
        tokenizer.seconds = seconds
        _follow_add_bos_token(tokenizer, settings)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises many types for a broken file
        reason = " ".join(str(error).split())
        raise CheckpointError(f"the tokenizer in {directory} cannot be read ({reason}).") from error
    return tokenizer


def _follow_add_bos_token(tokenizer: Any, settings: dict[str, Any]) -> None:
    """Applies add_bos_token if the checkpoint's tokenizer class is documented to follow it.

    Version 5 of transformers ignores this setting when there is a tokenizer.json. Up to version 4
    these classes obeyed it whatever tokenizer.json did, so models were trained and published that
    way: for DeepSeek-R1-Distill-Qwen it is true, and tokenizer.json adds no BOS. Other classes have
    always ignored it. If it is absent, tokenizer.json decides, although the default of these
    classes is true: version 5 omits the setting from what it saves.
    """
    name, wanted = settings.get("tokenizer_class"), settings.get("add_bos_token")
    if not isinstance(name, str) or name.removesuffix("Fast") not in _BOS_BY_CONFIG:
        return
    if isinstance(wanted, bool) and wanted != begins_with_bos(tokenizer, tokenizer.encode("")):
        tokenizer.add_bos_token = wanted


def begins_with_bos(tokenizer: HfTokenizer, ids: list[int]) -> bool:
    """Whether the first id is the tokenizer's BOS."""
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def special_tokens(tokenizer: HfTokenizer) -> dict[int, str]:
    """The tokens that no text encodes to, by id: those with a role and others marked special."""
    added = tokenizer.added_tokens_decoder.items()
    return {i: token.content for i, token in added if token.special}


def read_eos_ids(directory: pathlib.Path, tokenizer: HfTokenizer) -> tuple[int, ...]:
    """The eos ids: of generation_config.json, else config.json, else the tokenizer; may be empty.

    Raises:
      CheckpointError: for a file that is not a JSON object, or values that are not ids.
    """
    for file in ("generation_config.json", "config.json"):
        value = read_object(directory / file).get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if any(checks.as_integer(i) is None or i >= MOST_TOKENS for i in ids):
            raise CheckpointError(
                f"{directory / file} has eos_token_id {checks.shown(value)}; it must be an integer "
                f"or a list of them, each below {MOST_TOKENS}."
            )
        return tuple(ids)
    return () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)


def refuse_tokens_without_embedding(
    tokenizer: HfTokenizer, vocab_size: int, source: object
) -> None:
    """Refuses a tokenizer that belongs to another model.

    Added tokens may lie beyond the embedding, such as the padding token of a fine-tune, or the
    image token of Gemma 3, which its text models lack; prompts that use them are refused later.

    Raises:
      CheckpointError: if any other token lies beyond the embedding.
    """
    added = tokenizer.added_tokens_decoder
    beyond = [i for i in tokenizer.get_vocab().values() if i >= vocab_size and i not in added]
    if beyond:
        raise CheckpointError(
            f"the tokenizer in {source} has ids up to {max(beyond)}, but the embedding has only "
            f"{vocab_size} rows."
        )
