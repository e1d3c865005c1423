"""The vocabulary axis, whole on one device or sharded over several.

With tensor parallelism every device of a "model" group holds the logits of V/m tokens, in device
order. What the samplers need of a row of logits is a maximum, a sum, or the value of one token: a
few numbers per particle that the group exchanges, never the logits themselves. Every device of the
group ends up with the same values.

Letters: N particles, V vocabulary, m shards.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class VocabSharding:
    """How the last axis of arrays [..., V] is sharded.

    Attributes:
      axis: name of the mesh axis over which it is sharded, inside ``shard_map``; None if unsharded.
      parts: m, the size of that axis.
    """

    axis: str | None = None
    parts: int = 1

    def max(self, x: jax.Array) -> jax.Array:
        """The largest value over all parts, of each part's own largest."""
        return x if self.axis is None else jax.lax.pmax(x, self.axis)

    def sum(self, x: jax.Array) -> jax.Array:
        """The sum over all parts, of each part's own sum."""
        return x if self.axis is None else jax.lax.psum(x, self.axis)

    def all_gather(self, x: jax.Array) -> jax.Array:
        """All parts side by side: [..., B/m] -> [..., B]."""
        if self.axis is None:
            return x
        return jax.lax.all_gather(x, self.axis, axis=x.ndim - 1, tiled=True)

    def local_slice(self, x: jax.Array) -> jax.Array:
        """This device's part of what all have: [..., V] -> [..., V/m]."""
        if self.axis is None:
            return x
        size = x.shape[-1] // self.parts
        return jax.lax.dynamic_slice_in_dim(x, self.first(size), size, axis=x.ndim - 1)

    def first(self, size: int) -> jax.Array:
        """[] int32, where this device's part begins if each has this size."""
        if self.axis is None:
            return jnp.zeros((), jnp.int32)
        return jax.lax.axis_index(self.axis).astype(jnp.int32) * jnp.int32(size)

    def to_local(self, index: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        """Where each index lies in this device's part of this size, and whether it does at all.

        Returns:
          Local indices, within bounds in any case; and bools of the same shape.
        """
        if self.axis is None:
            return index, jnp.ones(index.shape, bool)
        local = index - self.first(size)
        mine = (local >= 0) & (local < size)
        return jnp.clip(local, 0, size - 1), mine

    def from_owner(self, value: jax.Array, mine: jax.Array) -> jax.Array:
        """Each value as the one device has it whose it is; bools and numbers, -inf too."""
        if self.axis is None:
            return value
        if value.dtype == jnp.bool_:
            return self.from_owner(value.astype(jnp.int32), mine) > 0
        mine = mine.reshape(*mine.shape, *(1,) * (value.ndim - mine.ndim))
        return jax.lax.psum(jnp.where(mine, value, jnp.zeros_like(value)), self.axis)

    def lookup(self, table: jax.Array, rows: jax.Array, tokens: jax.Array) -> jax.Array:
        """``table[rows, tokens]`` of a table [N, V], or of [1, V] that holds for every row.

        ``rows`` and ``tokens`` have one shape, and so has what comes back.
        """
        local, mine = self.to_local(tokens, table.shape[1])
        rows = rows if table.shape[0] > 1 else jnp.zeros_like(rows)
        return self.from_owner(table[rows, local], mine)

    def argmax(self, x: jax.Array) -> jax.Array:
        """[N] int32, the first of the largest values of each row of x [N, V]."""
        best = jnp.argmax(x, axis=-1).astype(jnp.int32)
        if self.axis is None:
            return best
        value = jnp.max(x, axis=-1)
        beyond = jnp.int32(x.shape[-1] * self.parts)
        index = jnp.where(value == self.max(value), best + self.first(x.shape[-1]), beyond)
        return jax.lax.pmin(index, self.axis)


UNSHARDED = VocabSharding()


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["sharding"]
)
@dataclasses.dataclass(frozen=True)
class Logits:
    """Logits of the next token at temperature 1, together with how their last axis is sharded.

    Attributes:
      values: [N, V]; of a sharded vocabulary, this device's [N, V/m].
      sharding: of the last axis.
    """

    values: jax.Array
    sharding: VocabSharding = UNSHARDED

    @property
    def vocab_size(self) -> int:
        """V, over all shards."""
        return self.values.shape[1] * self.sharding.parts


# The largest block. Smaller ones cost nothing, but see ``block_of``.
BLOCK_SIZE = 512


_SMALLEST_BLOCK = 32


# Devices over which a vocabulary may be cut without changing its blocks, where V allows it: what is
# drawn then does not depend on the mesh.
_PARTS = 16


def block_of(vocab: int) -> int:
    """b for a vocabulary of V tokens.

    A divisor of V, the one nearest to its square root: padding would copy the logits. If V allows
    it, one of V/16, so that each of 16 devices has whole blocks. A small vocabulary that does not
    is one block; a large one without a divisor of a suitable size has the largest blocks.
    """
    smallest = 1 if vocab <= BLOCK_SIZE else _SMALLEST_BLOCK
    for parts in (_PARTS, _PARTS // 2, _PARTS // 4, _PARTS // 8, 1):
        if vocab % parts or (vocab <= BLOCK_SIZE and parts == 1):
            continue
        divisors = [b for b in range(smallest, BLOCK_SIZE + 1) if vocab // parts % b == 0]
        if divisors:
            return min(divisors, key=lambda b: abs(b - math.sqrt(vocab)))
    return min(vocab, BLOCK_SIZE)


def can_shard(vocab: int, parts: int) -> bool:
    """Whether a vocabulary of V tokens can lie on so many devices, whole blocks on each."""
    return vocab % (parts * block_of(vocab)) == 0
