"""Names for what passes between modules: a model's pytrees, token ids, and a tokenizer.

A model decides what its parameters, cache and context hold, so these are pytrees of arrays, about
which nothing more is assumed here.
"""

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import jax
import numpy as np

# A model's parameters.
Params: TypeAlias = Any
# What a model keeps about the generated tokens of N particles; leaves lead with N.
Cache: TypeAlias = Any
# What a model keeps about one prompt; all its particles share it.
Context: TypeAlias = Any
# One prompt.
TokenIds: TypeAlias = Sequence[int] | np.ndarray | jax.Array


class Tokenizer(Protocol):
    """The part of a ``transformers`` tokenizer that this package uses."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False, **options: Any) -> str:
        """The text of token ids."""
