"""Names for what passes between modules: a model's pytrees, token ids, and a tokenizer.

A model decides what its parameters and its cache hold, so these are pytrees of arrays, about which
nothing more is assumed here.
"""

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import jax
import numpy as np

# A model's parameters.
Params: TypeAlias = Any
# What a model keeps about the tokens of R rows, a sequence each; leaves lead with R.
Cache: TypeAlias = Any
# One prompt.
TokenIds: TypeAlias = Sequence[int] | np.ndarray | jax.Array


class Tokenizer(Protocol):
    """The part of a ``transformers`` tokenizer that this package uses."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False, **options: Any) -> str:
        """The text of token ids."""
