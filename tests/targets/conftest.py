"""Tokenizers of every kind that stop rules support."""

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from jax_power_smc.targets.token_bytes import token_bytes
from jax_power_smc.tiny_reasoner import tokenizer as reasoner
from tests.conftest import STORIES
from tests.paths import SHARED

QWEN = SHARED / "tokenizers/qwen2.5"


@pytest.fixture(scope="module")
def tiny():
    return reasoner.train_tokenizer(reasoner.corpus(50, seed=0), vocab_size=330)


@pytest.fixture(scope="module")
def qwen():
    if not QWEN.is_dir():
        pytest.skip(f"{SHARED}/tokenizers/qwen2.5 is absent")
    return Tokenizer.from_file(str(QWEN / "tokenizer.json"))


@pytest.fixture(scope="module")
def stories():
    if not STORIES.is_dir():
        pytest.skip(f"{SHARED}/models/stories260K is absent")
    return AutoTokenizer.from_pretrained(STORIES)


@pytest.fixture(scope="module")
def vocabulary(request):
    """A function from a name to (tokenizer, token bytes), each read once."""
    known = {}

    def read(name):
        if name not in known:
            tokenizer = request.getfixturevalue(name)
            known[name] = tokenizer, token_bytes(tokenizer)
        return known[name]

    return read
