"""``TableLM``: a language model that is a table, small enough to enumerate.

The next token's distribution depends on the last ``order`` tokens and, if there are several tables,
on the position. If ``order`` is at least the number of tokens, it is an arbitrary distribution over
a tree.

Letters: R rows, B tokens of a block, V vocabulary.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jax_power_smc.core import checks
from jax_power_smc.core.mesh import MODEL
from jax_power_smc.core.vocab_sharding import UNSHARDED, VocabSharding, can_shard
from jax_power_smc.models.cache_moves import write_entries


class TableParams(NamedTuple):
    """Logits of a table model.

    Attributes:
      logits: [steps, (V+1)^order, V], a table for each position. Table i holds the logits *at*
        position i, counted from 0 at the beginning of the prompt: those of the token after it. The
        last table serves all later positions too. So after a prompt of S tokens the first token is
        drawn from table S-1. The index of a history reads its tokens as digits in base V+1, oldest
        first; V stands for "no token yet".
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
        """How the vocabulary axis of the logits [R, B, V] is sharded."""
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

    def init_cache(self, params: TableParams, num_rows: int, capacity: int) -> jax.Array:
        """[R, capacity] int32: the tokens of each row."""
        return jnp.zeros((num_rows, capacity), jnp.int32)

    def extend(
        self,
        params: TableParams,
        cache: jax.Array,
        tokens: jax.Array,
        position: jax.Array,
        count: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """tokens [R, B] from ``position`` [R] on, ``count`` [R] each -> (logits [R, B, V], cache).

        Histories are read from the cache, so that a row that was copied wrongly shows.
        """
        cache = write_entries(cache, tokens, position, count)
        last = position[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
        index = jnp.zeros(tokens.shape, jnp.int32)
        for age in reversed(range(self.order)):
            token = jnp.take_along_axis(cache, jnp.maximum(last - age, 0), axis=1, mode="clip")
            digit = jnp.where(last >= age, token, self.vocab_size)
            index = index * (self.vocab_size + 1) + digit
        # One gather: indexing by position first would copy that position's table for every row.
        return params.logits[jnp.minimum(last, params.logits.shape[0] - 1), index], cache
