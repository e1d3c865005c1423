"""Tiny transformers of every shape, written as checkpoints."""

import json
import re

import jax
import numpy as np
from safetensors.numpy import save_file

from jax_power_smc.models.checkpoints.hf_config import config_to_hf
from jax_power_smc.models.checkpoints.safetensors_io import load_params
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import TransformerLM
from tests.models import oracle

_SIZES = {"vocab_size": 23, "hidden_size": 16, "num_layers": 2, "mlp_size": 20}
_QWEN2 = {"family": "qwen2", "rope_theta": 1e6, "norm_eps": 1e-6}

# The head dimension is not always hidden_size / num_heads.
CONFIGS = {
    "llama-grouped-tied": TransformerConfig(**_SIZES, num_heads=4, num_kv_heads=2, head_dim=6),
    "llama-ungrouped-untied": TransformerConfig(
        **_SIZES, num_heads=2, num_kv_heads=2, head_dim=8, tied_embeddings=False
    ),
    "qwen2-grouped-untied": TransformerConfig(
        **_SIZES, **_QWEN2, num_heads=6, num_kv_heads=2, head_dim=4, tied_embeddings=False
    ),
    "qwen2-one-key-head-tied": TransformerConfig(
        **_SIZES, **_QWEN2, num_heads=4, num_kv_heads=1, head_dim=4
    ),
}


def write(directory, config, tensors=None, **extra):
    """A checkpoint directory with config.json and model.safetensors; returns its tensors."""
    tensors = oracle.random_tensors(config) if tensors is None else tensors
    (directory / "config.json").write_text(json.dumps(config_to_hf(config, **extra)))
    save_file(tensors, directory / "model.safetensors")
    return tensors


def save_tokenizer(directory, size):
    """tokenizer.json of words w0, w1, ..., and its config."""
    # Imported here: it takes a second, and most tests do not need it.
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(size)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0").save_pretrained(directory)


def build(name, directory):
    """The model and the random parameters of ``CONFIGS[name]``."""
    config = CONFIGS[name]
    write(directory, config)
    return TransformerLM(config), load_params(directory, config)


def assert_one_sentence(error, *parts):
    """The message of a caught error is one sentence and contains every part."""
    assert_sentence(str(error.value), *parts)


def assert_sentence(message, *parts):
    """One sentence on one line, which contains every part."""
    assert "\n" not in message
    assert message.endswith(".")
    assert not re.search(r"[.!?] [A-Z]", message)
    for part in parts:
        assert str(part) in message


def assert_equal_trees(a, b):
    """Bit-equal leaves, equal dtypes, equal structure."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
