"""A tiny random model in place of a large one, for dry runs: only its sizes differ.

It has the real model's family, with every feature of that family, and, if they are on this machine,
its vocabulary, chat template and end tokens. Nothing is downloaded.
"""

import pathlib
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from jax_power_smc.core import prng
from jax_power_smc.models.checkpoints import hub
from jax_power_smc.models.checkpoints.hf_config import config_from_hf
from jax_power_smc.models.checkpoints.load import EMBEDDED, embedded_directory
from jax_power_smc.models.checkpoints.loaded_model import LoadedModel
from jax_power_smc.models.checkpoints.model_files import read_object
from jax_power_smc.models.checkpoints.tokenizer import load_tokenizer, read_eos_ids
from jax_power_smc.models.transformer.config import CheckpointError
from jax_power_smc.models.transformer.families import FAMILIES
from jax_power_smc.models.transformer.transformer import TransformerLM

_TOKENIZER = "tokenizer.json"
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 8192,
}
# Shorter than a question.
_WINDOW = {"sliding_window": 8}
_SOME_WINDOWS = {**_WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_SOFTCAPS = {
    "query_pre_attn_scalar": 16,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
# family -> its entries of config.json besides the sizes
_FEATURES: dict[str, dict[str, Any]] = {
    "llama": {
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
    },
    "mistral": _WINDOW,
    "qwen2": {**_SOME_WINDOWS, "use_sliding_window": True},
    "qwen3": {**_SOME_WINDOWS, "use_sliding_window": True},
    "phi3": {
        **_WINDOW,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 2.0, 4.0, 8.0],
        },
    },
    "gemma2": {**_SOME_WINDOWS, **_SOFTCAPS},
    "gemma3_text": {
        **_SOME_WINDOWS,
        **_SOFTCAPS,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "olmo2": {},
    "granite": {
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "logits_scaling": 2.0,
    },
}


def tiny_model(config: ConfigDict) -> LoadedModel:
    """A model of the config's family with random weights.

    The family is that of the model's config.json if that is on this machine, else
    ``config.architecture``; the tokenizer is the model's own if that is on this machine, else that
    of the embedded model.

    Raises:
      ValueError: if the family is unknown, not implemented, or named differently in two places.
      CheckpointError: if the model's name is invalid, or its tokenizer cannot be read.
    """
    is_local = config.model in EMBEDDED or pathlib.Path(config.model).expanduser().is_dir()
    if not is_local and not hub.is_hub_id(config.model):
        raise CheckpointError(
            f"model {config.model!r} is neither a directory nor a possible hub id."
        )
    family = _family(config)
    found = _find(config, _TOKENIZER)
    directory = found.parent if found else embedded_directory("tiny-reasoner")
    tokenizer = load_tokenizer(directory, config.limits.tokenizer_seconds)
    eos_ids = read_eos_ids(directory, tokenizer)
    raw = {
        "model_type": family,
        "architectures": [FAMILIES[family].architecture],
        "vocab_size": 1 + max(*tokenizer.get_vocab().values(), *eos_ids),
        **_SIZES,
        **_FEATURES[family],
    }
    tiny = config_from_hf(raw, f"the dry run's {family}", config.max_positions)
    model = TransformerLM(tiny, jnp.dtype(config.dtype or "float32"))
    params = model.init(prng.seed_key(0))
    return LoadedModel(
        model,
        params,
        tokenizer,
        eos_ids,
        tiny,
        directory,
        random_weights=True,
        template_seconds=config.limits.template_seconds,
    )


def _family(config: ConfigDict) -> str:
    """The key of ``families.FAMILIES``."""
    path = _find(config, "config.json")
    named = None if path is None else read_object(path).get("model_type")
    if named is not None and config.architecture not in (None, named):
        raise ValueError(f"config.architecture is {config.architecture!r}; {path} says {named!r}.")
    family = named or config.architecture
    if family is None:
        raise ValueError(
            f"config.architecture is None; {config.model!r} is not on this machine, so a dry run "
            f"needs its family, one of {', '.join(FAMILIES)}."
        )
    if family not in FAMILIES:
        raise ValueError(
            f"{config.model!r} is of family {family!r}; allowed are {', '.join(FAMILIES)}."
        )
    return family


def _find(config: ConfigDict, file: str) -> pathlib.Path | None:
    """Where a file of the config's model lies, if it is on this machine."""
    if config.model in EMBEDDED:
        return embedded_directory(config.model) / file
    path = pathlib.Path(config.model).expanduser() / file
    if path.is_file():
        return path
    if not path.parent.exists() and hub.is_hub_id(config.model):
        return hub.cached(config.model, file, config.revision)
    return None
