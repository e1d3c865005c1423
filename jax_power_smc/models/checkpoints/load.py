"""``psmc.load``: a model, its parameters and its tokenizer from one name."""

import importlib.resources
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from jax_power_smc.core import checks
from jax_power_smc.core.deadline import MOST_SECONDS
from jax_power_smc.core.forks import refuse_forked
from jax_power_smc.core.mesh import DATA, MODEL
from jax_power_smc.models.checkpoints import hub
from jax_power_smc.models.checkpoints.chat_template import TEMPLATE_SECONDS
from jax_power_smc.models.checkpoints.hf_config import read_config
from jax_power_smc.models.checkpoints.loaded_model import LoadedModel
from jax_power_smc.models.checkpoints.safetensors_index import WEIGHTS, weight_files
from jax_power_smc.models.checkpoints.safetensors_io import load_params
from jax_power_smc.models.checkpoints.tokenizer import (
    TOKENIZER_SECONDS,
    load_tokenizer,
    read_eos_ids,
    refuse_tokens_without_embedding,
)
from jax_power_smc.models.transformer import tensor_parallel
from jax_power_smc.models.transformer.config import CheckpointError, TransformerConfig
from jax_power_smc.models.transformer.transformer import TransformerLM

# name -> directory inside the package
EMBEDDED = {"tiny-reasoner": "data/tiny_reasoner"}


def load(
    name: str | os.PathLike[str],
    *,
    dtype: Any = jnp.float32,
    mesh: jax.sharding.Mesh | None = None,
    shardings: Any = None,
    revision: str | None = None,
    progress: bool | None = None,
    max_positions: int | None = None,
    hub_seconds: float = hub.HUB_SECONDS,
    tokenizer_seconds: float = TOKENIZER_SECONDS,
    template_seconds: float = TEMPLATE_SECONDS,
) -> LoadedModel:
    """Loads a model.

    Code that comes with a checkpoint is never run, and no pickle is ever opened.

    Args:
      name: "tiny-reasoner"; or a directory with config.json, safetensors and tokenizer.json; or a
        model of the Hugging Face hub, such as "Qwen/Qwen2.5-Math-7B", which the hub's library
        downloads to its cache.
      dtype: of parameters and cache, float32, bfloat16 or float16.
      mesh: with the axes "data" and "model" (``make_mesh``), the parameters are sharded over
        "model" by ``tensor_parallel.RULES`` and replicated over "data"; with other axes, they are
        replicated on all devices. ``shardings`` takes precedence.
      shardings: where the parameters go: a function (path, shape) -> jax.sharding.Sharding, or a
        pytree of shardings; see ``placement.resolve_shardings``.
      revision: branch, tag or commit of a model on the hub.
      progress: whether to show a progress bar if stderr is a terminal; None shows it for large
        checkpoints.
      max_positions: the longest sequence that the model will be used for, see
        ``hf_config.config_from_hf``.
      hub_seconds: how long a download may go without progress.
      tokenizer_seconds: time limit for reading the tokenizer, and then for each text that it
        encodes or decodes.
      template_seconds: time limit for rendering a prompt by the chat template.

    Raises:
      ValueError: for a dtype other than these, shardings that do not fit, or a revision given for
        a model that is not on the hub.
      CheckpointError: if there is no such model, or a file is missing, contradicts the others or
        holds weights that are not finite.
      UnsupportedModelError: if the architecture or one of its features is not implemented.
    """
    limits = {"hub_seconds": hub_seconds, "tokenizer_seconds": tokenizer_seconds}
    for field, value in (limits | {"template_seconds": template_seconds}).items():
        checks.number(field, value, above=0, at_most=MOST_SECONDS)
    on_hub = _is_on_hub(name)
    if on_hub:
        directory = hub.fetch(str(name), revision, hub.SMALL, hub_seconds)
    else:
        directory = _local(name, revision)
    config = read_config(directory, max_positions)
    if shardings is None and mesh is not None:
        shardings = _shardings(mesh, config)
    model = TransformerLM(config, dtype)
    tokenizer = load_tokenizer(directory, tokenizer_seconds)
    refuse_tokens_without_embedding(tokenizer, config.vocab_size, directory)
    eos_ids = read_eos_ids(directory, tokenizer)
    outside = [i for i in eos_ids if not 0 <= i < config.vocab_size]
    if outside:
        raise CheckpointError(
            f"{directory} names eos ids {checks.shown(outside)}, outside its vocabulary of "
            f"{config.vocab_size}."
        )
    if on_hub:
        # Gigabytes, so only once everything else has passed its checks; from the same commit.
        wanted = (*hub.SMALL, *(weight_files(directory) or [WEIGHTS]))
        directory = hub.fetch(str(name), directory.name, wanted, hub_seconds)
    refuse_forked()
    params = load_params(directory, config, dtype, shardings=shardings, progress=progress)
    return LoadedModel(
        model, params, tokenizer, eos_ids, config, directory, template_seconds=template_seconds
    )


def _shardings(mesh: jax.sharding.Mesh, config: TransformerConfig) -> Any:
    if mesh.axis_names == (DATA, MODEL):
        # A mesh of jax.make_mesh has explicit axes, which the models are not written for.
        own = jax.sharding.Mesh(mesh.devices, mesh.axis_names)
        return lambda path, shape: tensor_parallel.sharding(path, config, own)
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def local_directory(name: str | os.PathLike[str]) -> pathlib.Path | None:
    """The directory of a model that is not on the hub; None if there is no such directory."""
    try:
        return None if _is_on_hub(name) else _local(name, None)
    except CheckpointError:
        return None


def _is_on_hub(name: str | os.PathLike[str]) -> bool:
    # A path object always means a directory.
    return isinstance(name, str) and hub.is_hub_id(name) and not pathlib.Path(name).exists()


def _local(name: str | os.PathLike[str], revision: str | None) -> pathlib.Path:
    """The directory of a model that is not on the hub."""
    is_embedded, directory = str(name) in EMBEDDED, pathlib.Path(name).expanduser()
    if not str(name):
        raise CheckpointError(f"model is ''; allowed are a directory and {', '.join(EMBEDDED)}.")
    if not is_embedded and not directory.is_dir():
        raise CheckpointError(
            f"model {str(name)!r} is neither a directory nor an embedded model "
            f"({', '.join(EMBEDDED)})."
        )
    if revision is not None:
        raise ValueError(
            f"revision is {revision!r}; it must be None for model {str(name)!r}, which is not on "
            "the hub."
        )
    return embedded_directory(str(name)) if is_embedded else directory


def embedded_directory(name: str) -> pathlib.Path:
    """The directory of a model that comes with the package, a key of ``EMBEDDED``."""
    return pathlib.Path(str(importlib.resources.files("jax_power_smc"))) / EMBEDDED[name]
