"""``PlainLM``: a model without a cache, given as a function of whole sequences.

Letters: B rows, N particles, S prompt length, T capacity in generated tokens, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_power_smc.core.types import Params
from jax_power_smc.models.adapters import validation
from jax_power_smc.models.transformer import kv_cache


class PlainPrompt(NamedTuple):
    """What the particles of one prompt share: its tokens [S] int32 and its length [] int32."""

    tokens: jax.Array
    length: jax.Array


@dataclasses.dataclass(frozen=True)
class PlainLM:
    """A model without a cache, given as a function of whole sequences.

    Every step runs the function on N rows of S + T tokens, with T the number of generated tokens,
    rounded up, and uses the logits at one position of each row. That is S + T times the arithmetic
    of a step with a cache. The logits alone take N (S + T) V numbers, and these are all that the
    memory plan knows about; set ``prompts_per_batch`` (or ``slots``) if that is too optimistic.

    Attributes:
      apply_fn: (params, tokens [B, S] int32) -> logits [B, S, V]. The logits at a position may
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

    def prefill(
        self, params: Params, prompt: jax.Array, length: jax.Array
    ) -> tuple[jax.Array, PlainPrompt]:
        """prompt [S] int32, of which ``length`` tokens count -> (logits [V], context)."""
        return self._logits(params, prompt[None], length - 1)[0], PlainPrompt(prompt, length)

    def init_cache(self, params: Params, num_particles: int, capacity: int) -> jax.Array:
        """[N, T] int32: each particle's generated tokens, a ring buffer addressed by the clock."""
        return jnp.zeros((num_particles, capacity), jnp.int32)

    def decode(
        self,
        params: Params,
        context: PlainPrompt,
        cache: jax.Array,
        token: jax.Array,
        step: jax.Array,
        clock: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """token [N] int32 at generated index ``step`` [] -> (logits [N, V], cache)."""
        capacity = cache.shape[1]
        cache = kv_cache.write(cache, token[:, None], kv_cache.entry(clock, capacity), axis=-1)
        width = self._width(context.tokens.shape[0], capacity)
        # Position i holds prompt token i, then generated token i - length, then padding.
        index = jnp.arange(width, dtype=jnp.int32) - context.length
        prompt = jnp.take(context.tokens, index + context.length, mode="clip")
        generated = cache[:, kv_cache.entry(clock - step + index, capacity)]
        tokens = jnp.where(index < 0, prompt[None, :], generated)
        tokens = jnp.where((index <= step)[None, :], tokens, jnp.int32(0))
        # A finished prompt may be decoded beyond the end; its results are ignored.
        last = jnp.minimum(context.length + step, width - 1)
        return self._logits(params, tokens, last), cache

    def grow(self, cache: jax.Array, capacity: int, clock: jax.Array) -> jax.Array:
        """The cache with room for ``capacity`` tokens."""
        return kv_cache.resize(cache, 1, capacity, clock)

    def temporaries(self, num_particles: int, prompt_tokens: int, capacity: int) -> tuple[int, int]:
        """Bytes of a prompt's prefill and step: the float32 logits; the rest is unknown."""
        width = self._width(prompt_tokens, capacity)
        return 4 * self.vocab_size * prompt_tokens, 4 * self.vocab_size * num_particles * width

    def _width(self, prompt_tokens: int, capacity: int) -> int:
        width = prompt_tokens + capacity
        return width if self.max_positions is None else min(width, self.max_positions)

    def _logits(self, params: Params, tokens: jax.Array, position: jax.Array) -> jax.Array:
        """tokens [B, S] -> the logits [B, V] at one position []."""
        logits = self.apply_fn(params, tokens)
        validation.check_logits(logits, tokens, self.vocab_size)
        return jax.lax.dynamic_index_in_dim(logits, position, axis=1, keepdims=False)
