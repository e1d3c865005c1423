"""``psmc.load``: a model, its parameters and its tokenizer from one name."""

import dataclasses
import datetime
import functools
import hashlib
import importlib.resources
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jax_power_smc.mesh import DATA, MODEL
from jax_power_smc.models import checkpoint, hub, parallel, saved
from jax_power_smc.models.config import CheckpointError, TransformerConfig
from jax_power_smc.models.fingerprint import file_digests, hub_commit, of_digests
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
          ValueError: for an empty prompt, or if there is no template and one is asked for.
        """
        if not prompt.strip():
            raise ValueError(f"the prompt is {prompt!r}; it must hold some text.")
        if chat and self.tokenizer.chat_template is None:
            raise ValueError(f"chat is {chat!r}; the tokenizer has no chat template.")
        if not (self.is_chat if chat is None else chat):
            return list(self.tokenizer.encode(prompt))
        # What a template is given by name goes before the library's function of that name.
        clock = {} if date is None else {"strftime_now": date.strftime}
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            **clock,
        )
        return list(self.tokenizer.encode(text, add_special_tokens=False))


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
      name: "tiny-reasoner"; or a directory with config.json, safetensors and tokenizer.json, or
        one that ``saved.save`` wrote; or a model of the Hugging Face hub, such as
        "Qwen/Qwen2.5-Math-7B", which the hub's library downloads to its cache.
      dtype: of parameters and cache, float32, bfloat16 or float16.
      mesh: devices with the axes "data" and "model" (``make_mesh``): each "model" group gets the
        parameters, cut as ``parallel.RULES`` say; or of other axes, each then gets all of them.
        Unless shardings says otherwise.
      shardings: where the parameters go: a function (path, shape) -> jax.sharding.Sharding, or a
        pytree of shardings; see ``placement.resolve_shardings``.
      revision: branch, tag or commit of a model of the hub.
      progress: whether to draw a bar on stderr if that is a terminal; None draws it for large
        checkpoints. A saved model has none.
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
    if on_hub:
        # Gigabytes, and so after everything that may be wrong with the rest; of the same commit.
        directory = hub.fetch(str(name), directory.name)
    if saved.is_saved(directory):
        params = saved.load_params(directory, config, dtype, shardings=shardings)
    else:
        params = checkpoint.load_params(
            directory, config, dtype, shardings=shardings, progress=progress
        )
    return LoadedModel(model, params, tokenizer, eos_ids, config, directory)


def _shardings(mesh: jax.sharding.Mesh, config: TransformerConfig) -> Any:
    if mesh.axis_names == (DATA, MODEL):
        # Those of jax.make_mesh have axes in the types of arrays, of which the models know nothing.
        own = jax.sharding.Mesh(mesh.devices, mesh.axis_names)
        return lambda path, shape: parallel.sharding(path, config, own)
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def local_directory(name: str | os.PathLike[str]) -> pathlib.Path | None:
    """Where the files of a model lie that is not on the hub; None if there are none."""
    try:
        return None if _is_on_hub(name) else _local(name, None)
    except CheckpointError:
        return None


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


def load_tokenizer(directory: pathlib.Path) -> Any:
    """The tokenizer that tokenizer.json of a directory describes.

    Raises:
      CheckpointError: if it is missing or cannot be read.
    """
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
