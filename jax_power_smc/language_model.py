"""What the decode engine asks of a language model.

A model is written for ONE prompt with N particles; the library vmaps it over prompts.
Letters: N particles, S prompt length, T generated tokens, V vocabulary.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp


class LanguageModel(Protocol):
    """A causal language model with a prompt that particles share and a cache that they do not.

    A model is a static argument of jitted functions: it must be hashable, and two equal models
    must compute the same function.

    Two optional members are used where present: ``max_positions: int``, the longest prompt plus
    generated tokens, and ``move(cache, ancestors)``, which replaces the default cache move.
    """

    vocab_size: int

    def prefill(self, params: Any, prompt: jax.Array, length: jax.Array) -> tuple[jax.Array, Any]:
        """prompt [S] int32 of which ``length`` [] tokens count -> (logits [V], context).

        The logits are those of the first generated token; the context is what particles share.
        """

    def init_cache(self, params: Any, num_particles: int, capacity: int) -> Any:
        """An empty cache for ``capacity`` tokens: a pytree whose leaves lead with N."""

    def decode(
        self,
        params: Any,
        context: Any,
        cache: Any,
        token: jax.Array,
        step: jax.Array,
        clock: jax.Array,
    ) -> tuple[jax.Array, Any]:
        """token [N] int32 at generated index ``step`` -> (logits [N, V] of the next, cache).

        ``step`` [] is the sequence's own index and gives positions; ``clock`` [] is the index at
        which the cache is written, the same for all prompts of a batch.
        """


def take_ancestors(cache: Any, ancestors: jax.Array) -> Any:
    """The reference cache move: slot i receives the rows of slot ``ancestors[i]``, [N] int32."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, ancestors, axis=0, mode="clip"), cache)


def move_cache(model: LanguageModel, cache: Any, ancestors: jax.Array) -> Any:
    """The model's own cache move if it has one, else ``take_ancestors``."""
    move = getattr(model, "move", None)
    return take_ancestors(cache, ancestors) if move is None else move(cache, ancestors)
