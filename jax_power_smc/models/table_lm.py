"""``TableLM``: a language model that is a table, small enough to enumerate.

The next token's distribution depends on the last ``order`` tokens and, if there is a table per
step, on the step. If ``order`` is at least the number of generated tokens, it is an arbitrary
distribution over a tree. The cache holds each particle's history, so a wrong cache move shows.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jax_power_smc.core import checks
from jax_power_smc.core.mesh import MODEL
from jax_power_smc.core.vocab_sharding import UNSHARDED, VocabSharding, can_shard
from jax_power_smc.models.transformer import kv_cache


class TableParams(NamedTuple):
    """Logits of a table model.

    Attributes:
      logits: [steps, (V+1)^order, V]; with one step, the same table at every step. The index of a
        history reads its tokens as digits in base V+1, oldest first; V stands for "no token yet".
    """

    logits: jax.Array


@dataclasses.dataclass(frozen=True)
class TableLM:
    """A Markov model of finite order, given by its table; implements ``LanguageModel``.

    Attributes:
      vocab_size: V.
      order: number of previous tokens (of prompt and output) that matter, at least 1.
      parts: number of devices over which the vocabulary is sharded, see ``on``.
    """

    vocab_size: int
    order: int = 1
    parts: int = 1

    def __post_init__(self) -> None:
        checks.settle(
            self,
            vocab_size=checks.integer("vocab_size", self.vocab_size, at_least=1),
            order=checks.integer("order", self.order, at_least=1),
        )

    def on(self, size: int) -> "TableLM":
        """The model that each of ``size`` devices runs, with the logits of V/size tokens.

        Raises:
          ValueError: if the vocabulary cannot be split into that many parts.
        """
        if not can_shard(self.vocab_size, size):
            raise ValueError(
                f"the mesh has {size} devices on its axis {MODEL!r}, over which a vocabulary of "
                f"{self.vocab_size} cannot be sharded."
            )
        return dataclasses.replace(self, parts=size)

    @property
    def vocabulary(self) -> VocabSharding:
        """How the vocabulary axis of the logits [N, V] is sharded."""
        return VocabSharding(MODEL, self.parts) if self.parts > 1 else UNSHARDED

    def param_specs(self, params: TableParams) -> TableParams:
        """How the table [steps, histories, V] is sharded over a mesh."""
        del params
        return TableParams(PartitionSpec(None, None, self.vocabulary.axis))  # type: ignore[arg-type]

    @property
    def num_histories(self) -> int:
        """(V+1)^order."""
        return (self.vocab_size + 1) ** self.order

    def init(
        self, key: jax.Array, *, steps: int = 1, scale: float = 1.0, dtype: Any = jnp.float32
    ) -> TableParams:
        """Random logits, normal with standard deviation ``scale``."""
        shape = (steps, self.num_histories, self.vocab_size)
        return TableParams(scale * jax.random.normal(key, shape, dtype))

    def prefill(
        self, params: TableParams, prompt: jax.Array, length: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """prompt [S], length [] -> (logits [V], history [order] of the prompt)."""
        position = length - self.order + jnp.arange(self.order, dtype=jnp.int32)
        token = prompt[jnp.maximum(position, 0)]
        history = jnp.where(position >= 0, token, jnp.int32(self.vocab_size))
        return self._logits(params, history[None], jnp.zeros((), jnp.int32))[0], history

    def init_cache(self, params: TableParams, num_particles: int, capacity: int) -> jax.Array:
        """[N, T] int32: each particle's generated tokens, a ring buffer addressed by the clock."""
        return jnp.zeros((num_particles, capacity), jnp.int32)

    def decode(
        self,
        params: TableParams,
        context: jax.Array,
        cache: jax.Array,
        token: jax.Array,
        step: jax.Array,
        clock: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """token [N] at index ``step`` -> (logits [N, V], cache)."""
        capacity = cache.shape[1]
        entry = kv_cache.entry(clock, capacity)
        cache = kv_cache.write(cache, token[:, None], entry, axis=-1)
        # The history, oldest first: entry i was written age[i] steps ago, if that step exists.
        age = jnp.arange(self.order, dtype=jnp.int32)[::-1]
        generated = cache[:, kv_cache.entry(clock - age, capacity)]
        # After k generated tokens, the first order - k entries of the history are the last ones of
        # the prompt's history.
        shifted = jnp.roll(context, -(step + 1))
        history = jnp.where((age <= step)[None, :], generated, shifted[None, :])
        return self._logits(params, history, step + 1), cache

    def grow(self, cache: jax.Array, capacity: int, clock: jax.Array) -> jax.Array:
        """The cache with room for ``capacity`` tokens."""
        return kv_cache.resize(cache, 1, capacity, clock)

    def _logits(self, params: TableParams, history: jax.Array, step: jax.Array) -> jax.Array:
        """history [N, order] -> [N, V]."""
        base = self.vocab_size + 1
        powers = jnp.asarray([base**i for i in reversed(range(self.order))], jnp.int32)
        index = jnp.sum(history * powers[None, :], axis=1)
        # One gather: indexing by step first would copy that step's table for every prompt.
        return params.logits[jnp.minimum(step, params.logits.shape[0] - 1), index]
