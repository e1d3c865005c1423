"""A small tokenizer, trained once."""

import pytest

from jax_power_smc.tiny_reasoner import tokenizer as tokenizers


@pytest.fixture(scope="session")
def tokenizer():
    return tokenizers.train_tokenizer(tokenizers.corpus(200, seed=0), vocab_size=400)
