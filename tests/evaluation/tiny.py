"""Checkpoints of one tiny Llama: one with random weights, and one whose answers are known.

Both have the same sizes, so what is compiled for one is used for the other as well.
"""

import contextlib
import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

import jax_power_smc as psmc
from jax_power_smc.models.checkpoints.safetensors_io import save_pretrained
from jax_power_smc.tiny_reasoner.tokenizer import END_ID, corpus, save_tokenizer, train_tokenizer

# So few that a question of the problem generator has 65 to 128 tokens, or hardly more: the engine
# pads all of them to one length, and compiles once.
VOCABULARY = 290
CONFIG = psmc.TransformerConfig(
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    mlp_size=16,
    tied_embeddings=False,
    max_positions=256,
)
# What the known model answers, with the probability of each.
DIGITS = {3: 0.5, 4: 0.3, 5: 0.2}
# Tokens of one answer: "answer", " ", the digit and the end.
LENGTH = 4


@contextlib.contextmanager
def compiled_once(tmp_path_factory):
    """Inside, compilation is quick, and kept for later modules and other processes."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # the workers of a run share what is one level up
        root = root.parent
    values = {
        "jax_compilation_cache_dir": str(root / "compiled-tiny"),
        "jax_persistent_cache_min_compile_time_secs": 0.05,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in values}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        compilation_cache.reset_cache()
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def write_random(directory, **changes):
    """A model whose output depends on all of the prompt and ends after a few tokens.

    ``changes`` are of the config.
    """
    config = dataclasses.replace(CONFIG, **changes)
    params = psmc.TransformerLM(config).init(jax.random.key(0))
    save_pretrained(directory, config, params, eos_ids=tuple(range(0, VOCABULARY, 8)))
    save_tokenizer(_tokenizer(), directory)
    return directory


def write_known(directory):
    """A model that says "answer 3", "answer 4" or "answer 5", whatever the question.

    Attention and MLP add nothing, so the next token depends on the last one alone: its embedding
    selects a column of the head, which holds the logarithms of the next token's probabilities.

        newline  ->  "answer"  ->  " "  ->  3, 4 or 5  ->  end
    """
    tokenizer = _tokenizer()
    (newline,) = tokenizer.encode("\n").ids
    answer, space, _ = tokenizer.encode("answer 0").ids
    digits = {tokenizer.encode(str(digit)).ids[0]: p for digit, p in DIGITS.items()}
    column = {newline: 0, answer: 1, space: 2} | dict.fromkeys(digits, 3)
    following = [{answer: 1.0}, {space: 1.0}, digits, {END_ID: 1.0}]

    size = CONFIG.hidden_size
    embedding = np.zeros((VOCABULARY, size), np.float32)
    head = np.full((VOCABULARY, size), -40.0, np.float32)
    for token in range(VOCABULARY):
        embedding[token, column.get(token, 0)] = 100.0  # large beside the epsilon of the norm
    for place, step in enumerate(following):
        for token, p in step.items():
            head[token, place] = np.log(p)
    head /= np.sqrt(size)  # the norm makes a vector with one entry sqrt(size) long

    leaves = []
    for path, leaf in nnx.to_flat_state(psmc.TransformerLM(CONFIG).init(jax.random.key(0))):
        value = np.array({"embedding": embedding, "head": head}.get(path[-1], leaf[...]))
        if path[-1] in ("out", "down"):
            value[:] = 0
        leaves.append((path, leaf.replace(jnp.asarray(value))))
    save_pretrained(directory, CONFIG, nnx.from_flat_state(leaves), eos_ids=(END_ID,))
    save_tokenizer(tokenizer, directory)
    return directory


def _tokenizer():
    return train_tokenizer(corpus(100, seed=0), VOCABULARY)
