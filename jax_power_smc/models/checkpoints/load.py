"""``psmc.load``: a model, its parameters and its tokenizer from one name."""

import dataclasses
import datetime
import functools
import hashlib
import importlib.resources
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jax_power_smc.core.mesh import DATA, MODEL
from jax_power_smc.models.checkpoints import checkpoint, hub
from jax_power_smc.models.checkpoints.fingerprint import file_digests, hub_commit, of_digests
from jax_power_smc.models.checkpoints.hf_config import read_config
from jax_power_smc.models.checkpoints.safetensors_index import WEIGHTS, weight_files
from jax_power_smc.models.checkpoints.template_date import dated
from jax_power_smc.models.checkpoints.tokenizer import (
    begins_with_bos,
    load_tokenizer,
    read_eos_ids,
    refuse_tokens_without_embedding,
    special_tokens,
)
from jax_power_smc.models.transformer import tensor_parallel
from jax_power_smc.models.transformer.config import CheckpointError, TransformerConfig
from jax_power_smc.models.transformer.transformer import TransformerLM

# name -> directory inside the package
EMBEDDED = {"tiny-reasoner": "data/tiny_reasoner"}


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A language model ready to sample from.

    Attributes:
      model: implements the ``LanguageModel`` protocol.
      params: its parameters, a pytree.
      tokenizer: a ``transformers`` tokenizer, as tokenizer.json describes it.
      eos_ids: the ids that end a sequence, by generation_config.json, or else config.json, or else
        the tokenizer; empty if none says.
      config: the sizes.
      directory: where it was read from.
      random_weights: whether the parameters are random, and only the tokenizer is from there.
    """

    model: TransformerLM
    params: nnx.State
    tokenizer: Any
    eos_ids: tuple[int, ...]
    config: TransformerConfig
    directory: pathlib.Path
    random_weights: bool = False

    @functools.cached_property
    def file_digests(self) -> dict[str, str]:
        """A digest of each file that it was loaded from, as they are now, by name.

        The first use reads all of them; see ``fingerprint.file_digests``. With random weights the
        place of the weights is taken by the config.
        """
        if not self.random_weights:
            return file_digests(self.directory)
        own = hashlib.blake2b(repr(self.config).encode(), digest_size=16).hexdigest()
        return file_digests(self.directory, weights=False) | {"random weights": own}

    @property
    def fingerprint(self) -> str:
        """One digest of all that, 32 hexadecimal digits: equal ones mean the same model."""
        return of_digests(self.file_digests)

    @property
    def commit(self) -> str | None:
        """The commit of a model of the hub; None for other models."""
        return hub_commit(self.directory)

    @functools.cached_property
    def is_chat(self) -> bool:
        """Whether prompts go through the tokenizer's chat template.

        Base models of some families carry the template of their chat models. They never learnt it:
        the token with which it ends an answer is then not one of their eos ids. A template that
        does not say how answers end is meant to be used.
        """
        if self.tokenizer.chat_template is None:
            return False
        answer = "An answer"
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        try:
            text = self._render(turns)
        except ValueError:  # it takes no answers; whether it takes prompts will show
            return True
        _, found, rest = text.rpartition(answer)
        after = self.tokenizer.encode(rest if found else "", add_special_tokens=False)
        ends = set(after) & special_tokens(self.tokenizer).keys()
        return not ends or not ends.isdisjoint(self.eos_ids)

    def describe(self, chat: bool | None = None) -> str:
        """What was decided about prompts and answers, in one sentence.

        Args:
          chat: as for ``encode``.
        """
        chat = self.is_chat if chat is None else chat
        kind = "chat model" if chat else "base model"
        bos = self.tokenizer.bos_token
        has_bos = begins_with_bos(self.tokenizer, self.encode("?", chat=chat))
        start = f"prompts begin with {bos}" if has_bos else "no BOS"
        names = self.tokenizer.convert_ids_to_tokens(list(self.eos_ids))
        ends = ", ".join(f"{name} ({i})" for name, i in zip(names, self.eos_ids, strict=True))
        return f"{kind}, {start}, " + (
            f"answers end at {ends}" if ends else "no token ends answers"
        )

    def encode(
        self, prompt: str, *, chat: bool | None = None, date: datetime.date | None = None
    ) -> list[int]:
        """The token ids of a prompt.

        Args:
          prompt: some text.
          chat: whether it goes through the chat template; None for ``is_chat``.
          date: what a template that tells today's date (``strftime_now``) takes for it; None for
            the date and time of the clock.

        Raises:
          ValueError: for an empty prompt, one with a token for which the model has no embedding, or
            one that the chat template cannot render; or if there is no template and one is asked
            for.
        """
        if not prompt.strip():
            raise ValueError(f"the prompt is {prompt!r}; it must hold some text.")
        if chat and self.tokenizer.chat_template is None:
            raise ValueError(f"chat is {chat!r}; the tokenizer has no chat template.")
        if self.is_chat if chat is None else chat:
            turns = [{"role": "user", "content": prompt}]
            options: dict[str, Any] = {"add_generation_prompt": True}
            if date is not None:
                options["chat_template"] = dated(self.tokenizer.get_chat_template(), date)
            text = self._render(turns, **options)
            ids = self.tokenizer.encode(text, add_special_tokens=False)
        else:
            ids = self.tokenizer.encode(prompt)
        for i in ids:
            if i >= self.config.vocab_size:
                raise ValueError(
                    f"the prompt holds {self.tokenizer.convert_ids_to_tokens(i)!r}, token {i}; the "
                    f"model has an embedding only for ids below {self.config.vocab_size}."
                )
        return list(ids)

    def _render(self, turns: list[dict[str, str]], **options: Any) -> str:
        """Some turns as the chat template writes them; ValueError if it cannot."""
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, **options)
        except Exception as error:  # templates raise what they like
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(
                f"the chat template in {self.directory} cannot render a prompt "
                f"({type(error).__name__}: {reason}); chat=False leaves it out."
            ) from error
        return str(text)


def load(
    name: str | os.PathLike[str],
    *,
    dtype: Any = jnp.float32,
    mesh: jax.sharding.Mesh | None = None,
    shardings: Any = None,
    revision: str | None = None,
    progress: bool | None = None,
    max_positions: int | None = None,
) -> LoadedModel:
    """Loads a model.

    No code of a checkpoint is ever run, and no pickle opened.

    Args:
      name: "tiny-reasoner"; or a directory with config.json, safetensors and tokenizer.json; or a
        model of the Hugging Face hub, such as "Qwen/Qwen2.5-Math-7B", which the hub's library
        downloads to its cache.
      dtype: of parameters and cache, float32, bfloat16 or float16.
      mesh: devices with the axes "data" and "model" (``make_mesh``): each "model" group gets the
        parameters, cut as ``tensor_parallel.RULES`` say; or of other axes, each then gets all of them.
        Unless shardings says otherwise.
      shardings: where the parameters go: a function (path, shape) -> jax.sharding.Sharding, or a
        pytree of shardings; see ``placement.resolve_shardings``.
      revision: branch, tag or commit of a model of the hub.
      progress: whether to draw a bar on stderr if that is a terminal; None draws it for large
        checkpoints.
      max_positions: the longest sequence that the model will be used for, see
        ``hf_config.config_from_hf``.

    Raises:
      ValueError: for another dtype, shardings that do not fit, or a revision of a model that is
        not on the hub.
      CheckpointError: if there is no such model, or a file is missing, does not fit the others or
        holds weights that are not finite.
      UnsupportedModelError: if the architecture or a feature of it is not implemented.
    """
    on_hub = _is_on_hub(name)
    directory = hub.fetch(str(name), revision, hub.SMALL) if on_hub else _local(name, revision)
    config = read_config(directory, max_positions)
    if shardings is None and mesh is not None:
        shardings = _shardings(mesh, config)
    model = TransformerLM(config, dtype)
    tokenizer = load_tokenizer(directory)
    refuse_tokens_without_embedding(tokenizer, config.vocab_size, directory)
    eos_ids = read_eos_ids(directory, tokenizer)
    outside = [i for i in eos_ids if not 0 <= i < config.vocab_size]
    if outside:
        raise CheckpointError(
            f"{directory} names eos ids {outside}, outside its vocabulary of {config.vocab_size}."
        )
    if on_hub:
        # Gigabytes, and so after everything that may be wrong with the rest; of the same commit.
        wanted = (*hub.SMALL, *(weight_files(directory) or [WEIGHTS]))
        directory = hub.fetch(str(name), directory.name, wanted)
    params = checkpoint.load_params(
        directory, config, dtype, shardings=shardings, progress=progress
    )
    return LoadedModel(model, params, tokenizer, eos_ids, config, directory)


def _shardings(mesh: jax.sharding.Mesh, config: TransformerConfig) -> Any:
    if mesh.axis_names == (DATA, MODEL):
        # Those of jax.make_mesh have axes in the types of arrays, of which the models know nothing.
        own = jax.sharding.Mesh(mesh.devices, mesh.axis_names)
        return lambda path, shape: tensor_parallel.sharding(path, config, own)
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def local_directory(name: str | os.PathLike[str]) -> pathlib.Path | None:
    """Where the files of a model lie that is not on the hub; None if there are none."""
    try:
        return None if _is_on_hub(name) else _local(name, None)
    except CheckpointError:
        return None


def _is_on_hub(name: str | os.PathLike[str]) -> bool:
    # A path object means a directory.
    return isinstance(name, str) and hub.is_hub_id(name) and not pathlib.Path(name).exists()


def _local(name: str | os.PathLike[str], revision: str | None) -> pathlib.Path:
    """The directory of a model that is not on the hub."""
    embedded, directory = EMBEDDED.get(str(name)), pathlib.Path(name).expanduser()
    if not str(name):
        raise CheckpointError(f"model is ''; allowed are a directory and {', '.join(EMBEDDED)}.")
    if embedded is None and not directory.is_dir():
        raise CheckpointError(
            f"model {str(name)!r} is neither a directory nor an embedded model "
            f"({', '.join(EMBEDDED)})."
        )
    if revision is not None:
        raise ValueError(
            f"revision is {revision!r}; it must be None for model {str(name)!r}, which is not on "
            "the hub."
        )
    if embedded is None:
        return directory
    return pathlib.Path(str(importlib.resources.files("jax_power_smc"))) / embedded
