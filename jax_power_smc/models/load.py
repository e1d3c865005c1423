"""``psmc.load``: a model, its parameters and its tokenizer from one name."""

import dataclasses
import functools
import importlib.resources
import json
import os
import pathlib
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jax_power_smc.models import checkpoint
from jax_power_smc.models.config import CheckpointError, TransformerConfig
from jax_power_smc.models.hf_config import read_config
from jax_power_smc.models.transformer import TransformerLM

# name -> directory inside the package
EMBEDDED = {"tiny-reasoner": "data/tiny_reasoner"}


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A language model ready to sample from.

    Attributes:
      model: implements the ``LanguageModel`` protocol.
      params: its parameters, a pytree.
      tokenizer: a ``transformers`` tokenizer, as tokenizer.json describes it.
      eos_ids: the ids that end a sequence, by generation_config.json or config.json.
      config: the sizes.
      directory: where it was read from.
    """

    model: TransformerLM
    params: nnx.State
    tokenizer: Any
    eos_ids: tuple[int, ...]
    config: TransformerConfig
    directory: pathlib.Path

    @functools.cached_property
    def is_chat(self) -> bool:
        """Whether prompts go through the tokenizer's chat template.

        Base models of some families carry the template of their chat models. They never learnt it:
        the token with which it ends an answer is then not one of their eos ids.
        """
        if self.tokenizer.chat_template is None:
            return False
        answer = "An answer"
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False)
        _, found, rest = text.rpartition(answer)
        after = self.tokenizer.encode(rest if found else "", add_special_tokens=False)
        ends = set(after) & set(self.tokenizer.all_special_ids)
        return not ends or not ends.isdisjoint(self.eos_ids)

    def encode(self, prompt: str, *, chat: bool | None = None) -> list[int]:
        """The token ids of a prompt.

        Args:
          prompt: some text.
          chat: whether it goes through the chat template; None for ``is_chat``.

        Raises:
          ValueError: for an empty prompt, or if there is no template and one is asked for.
        """
        if not prompt.strip():
            raise ValueError(f"the prompt is {prompt!r}; it must hold some text.")
        if chat and self.tokenizer.chat_template is None:
            raise ValueError(f"chat is {chat!r}; the tokenizer has no chat template.")
        if not (self.is_chat if chat is None else chat):
            return list(self.tokenizer.encode(prompt))
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def load(name: str | os.PathLike[str], *, dtype: Any = jnp.float32) -> LoadedModel:
    """Loads an embedded model or a directory in Hugging Face format.

    Args:
      name: "tiny-reasoner", or a directory with config.json, safetensors and tokenizer.json.
      dtype: of parameters and cache, float32, bfloat16 or float16.

    Raises:
      ValueError: for another dtype.
      CheckpointError: if a file is missing or does not fit the others.
      UnsupportedModelError: if the architecture or a feature of it is not implemented.
    """
    directory = _resolve(name)
    config = read_config(directory)
    model = TransformerLM(config, dtype)
    tokenizer = _load_tokenizer(directory)
    if len(tokenizer) > config.vocab_size:
        raise CheckpointError(
            f"the tokenizer in {directory} has {len(tokenizer)} ids, the embedding only "
            f"{config.vocab_size} rows."
        )
    eos_ids = read_eos_ids(directory)
    outside = [i for i in eos_ids if not 0 <= i < config.vocab_size]
    if outside:
        raise CheckpointError(
            f"{directory} names eos ids {outside}, outside its vocabulary of {config.vocab_size}."
        )
    params = checkpoint.load_params(directory, config, dtype)
    return LoadedModel(model, params, tokenizer, eos_ids, config, directory)


def read_eos_ids(directory: pathlib.Path) -> tuple[int, ...]:
    """The eos set: that of generation_config.json, or else that of config.json, or empty."""
    for file in ("generation_config.json", "config.json"):
        path = directory / file
        if not path.is_file():
            continue
        try:
            value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} is not a JSON object ({error}).") from error
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
            raise CheckpointError(
                f"{path} has eos_token_id {value!r}; it must be an integer or a list of them."
            )
        return tuple(ids)
    return ()


def _resolve(name: str | os.PathLike[str]) -> pathlib.Path:
    if str(name) in EMBEDDED:
        package = importlib.resources.files("jax_power_smc")
        return pathlib.Path(str(package)) / EMBEDDED[str(name)]
    if not str(name):
        raise CheckpointError(f"model is ''; allowed are a directory and {', '.join(EMBEDDED)}.")
    directory = pathlib.Path(name).expanduser()
    if not directory.is_dir():
        raise CheckpointError(
            f"model {str(name)!r} is neither a directory nor an embedded model "
            f"({', '.join(EMBEDDED)})."
        )
    return directory


def _load_tokenizer(directory: pathlib.Path) -> Any:
    if not (directory / "tokenizer.json").is_file():
        raise CheckpointError(f"{directory} has no tokenizer.json.")
    # Imported here: it takes a second, and a pipeline with its own tokens does not need it.
    # Not AutoTokenizer: it goes by config.json's model_type, and for "qwen2" it builds a byte-pair
    # tokenizer of its own from a tokenizer.json that may hold another kind. This one reads the
    # file as it is.
    # Without the variable it complains on stderr that PyTorch is absent, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # the library raises many kinds for a broken file
        reason = " ".join(str(error).split())
        raise CheckpointError(f"the tokenizer in {directory} cannot be read ({reason}).") from error
