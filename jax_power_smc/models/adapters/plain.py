"""``PlainLM``: a model without a cache, given as a function of whole sequences.

Letters: R rows, B tokens of a block, S positions, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_power_smc.core.types import Params
from jax_power_smc.models.adapters import validation
from jax_power_smc.models.cache_moves import write_entries


@dataclasses.dataclass(frozen=True)
class PlainLM:
    """A model without a cache, given as a function of whole sequences.

    Rows hold their tokens. Every step runs the function on all R rows, S tokens each, with S the
    cache's capacity, and uses the logits at one position of each row. That is S times the
    arithmetic of a step with a cache. The logits alone take R S V numbers, and these are all that
    the memory plan knows about; set ``prompts_per_batch`` (or ``slots``) if that is too optimistic.

    Attributes:
      apply_fn: (params, tokens [R, S] int32) -> logits [R, S, V]. The logits at a position may
        depend only on the tokens up to it: what follows is padding.
      vocab_size: V.
      max_positions: the longest prompt plus generated tokens, and the longest sequence passed to
        ``apply_fn``; None for no limit.

    Raises:
      ValueError: for an invalid value; when sampling begins, for logits of the wrong shape or
        dtype.
    """

    apply_fn: Callable[..., Any]
    vocab_size: int
    max_positions: int | None = None

    def __post_init__(self) -> None:
        validation.check_sizes(self.vocab_size, self.max_positions)

    def init_cache(self, params: Params, num_rows: int, capacity: int) -> jax.Array:
        """[R, capacity] int32: the tokens of each row."""
        return jnp.zeros((num_rows, capacity), jnp.int32)

    def extend(
        self,
        params: Params,
        cache: jax.Array,
        tokens: jax.Array,
        position: jax.Array,
        count: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """tokens [R, B], ``count`` [R] of them at ``position`` [R] -> (logits [R, B, V], cache)."""
        cache = write_entries(cache, tokens, position, count)
        index = jnp.arange(self._width(cache.shape[1]), dtype=jnp.int32)[None, :]
        # Zeros for what is stale, so that results do not depend on what a row held before.
        known = jnp.where(index < (position + count)[:, None], cache[:, : index.shape[1]], 0)
        logits = self.apply_fn(params, known)
        validation.check_logits(logits, known, self.vocab_size)
        at = position[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
        return jnp.take_along_axis(logits, at[:, :, None], axis=1, mode="clip"), cache

    def temporaries(self, num_rows: int, block: int, capacity: int) -> int:
        """Bytes of the float32 logits at all positions; the rest is unknown."""
        return 4 * self.vocab_size * num_rows * self._width(capacity)

    def _width(self, capacity: int) -> int:
        return capacity if self.max_positions is None else min(capacity, self.max_positions)
