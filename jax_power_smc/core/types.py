"""Names for what passes between the parts: a model's pytrees, and what is asked of a tokenizer.

What a model keeps in its parameters, cache and context is its own business, so these are pytrees of
arrays and nothing more is known of them here.
"""

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from jax.typing import ArrayLike

# A model's parameters.
Params: TypeAlias = Any
# What a model remembers of the generated tokens of N particles; leaves lead with N.
Cache: TypeAlias = Any
# What a model keeps of one prompt, shared by its particles.
Context: TypeAlias = Any
# One prompt.
TokenIds: TypeAlias = Sequence[int] | np.ndarray
# Real scalars that may be traced.
Real: TypeAlias = ArrayLike


class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of ``transformers`` have it."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
