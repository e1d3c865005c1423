"""The vocabulary axis, whole on one device or sharded over several.

With tensor parallelism every device of a "model" group has the logits of V/m tokens, in device
order. From a particle's logits the samplers need a maximum, a sum, or the value of one token: the
group exchanges a few numbers per particle, never the logits. All its devices end up with the same
values.

Letters: N particles, V vocabulary, m shards.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class VocabSharding:
    """How the last axis of arrays [..., V] is sharded: over which mesh axis, and its size m.

    The axis is one inside ``shard_map``; None if the arrays are unsharded.
    """

    axis: str | None = None
    num_shards: int = 1

    def max(self, x: jax.Array) -> jax.Array:
        """The largest over all shards, given each shard's own largest value."""
        return x if self.axis is None else jax.lax.pmax(x, self.axis)

    def sum(self, x: jax.Array) -> jax.Array:
        """The sum over all shards, given each shard's own sum."""
        return x if self.axis is None else jax.lax.psum(x, self.axis)

    def all_gather(self, x: jax.Array) -> jax.Array:
        """All shards side by side: [..., B/m] -> [..., B]."""
        if self.axis is None:
            return x
        return jax.lax.all_gather(x, self.axis, axis=x.ndim - 1, tiled=True)

    def local_slice(self, x: jax.Array) -> jax.Array:
        """This device's shard of a replicated array: [..., V] -> [..., V/m]."""
        if self.axis is None:
            return x
        size = x.shape[-1] // self.num_shards
        return jax.lax.dynamic_slice_in_dim(x, self.first(size), size, axis=x.ndim - 1)

    def first(self, size: int) -> jax.Array:
        """[] int32, where this device's shard begins if each has this size."""
        if self.axis is None:
            return jnp.zeros((), jnp.int32)
        return jax.lax.axis_index(self.axis).astype(jnp.int32) * jnp.int32(size)

    def to_local(self, index: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        """Local indices within this device's shard of this size, and whether each lies in it.

        Returns:
          Indices clipped to the shard's bounds; and bools of the same shape.
        """
        if self.axis is None:
            return index, jnp.ones(index.shape, bool)
        local = index - self.first(size)
        mine = (local >= 0) & (local < size)
        return jnp.clip(local, 0, size - 1), mine

    def from_owner(self, value: jax.Array, mine: jax.Array) -> jax.Array:
        """Each value as its owner has it, which must be one device; bools or numbers, -inf too."""
        if self.axis is None:
            return value
        if value.dtype == jnp.bool_:
            return self.from_owner(value.astype(jnp.int32), mine) > 0
        mine = mine.reshape(*mine.shape, *(1,) * (value.ndim - mine.ndim))
        return jax.lax.psum(jnp.where(mine, value, jnp.zeros_like(value)), self.axis)

    def lookup(self, x: jax.Array, particles: jax.Array, tokens: jax.Array) -> jax.Array:
        """``x[particles, tokens]`` of x [N, V], or of [1, V] that holds for every particle.

        ``particles`` and ``tokens`` have the same shape, which is that of the result.
        """
        local, mine = self.to_local(tokens, x.shape[1])
        particles = particles if x.shape[0] > 1 else jnp.zeros_like(particles)
        return self.from_owner(x[particles, local], mine)

    def argmax(self, x: jax.Array) -> jax.Array:
        """[N] int32, the index of each particle's largest value in x [N, V], the first if tied."""
        best = jnp.argmax(x, axis=-1).astype(jnp.int32)
        if self.axis is None:
            return best
        value = jnp.max(x, axis=-1)
        beyond = jnp.int32(x.shape[-1] * self.num_shards)
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
      values: [N, V]; this device's [N, V/m] if the vocabulary is sharded.
      sharding: that of the last axis.
    """

    values: jax.Array
    sharding: VocabSharding = UNSHARDED

    @property
    def vocab_size(self) -> int:
        """V, over all shards."""
        return self.values.shape[1] * self.sharding.num_shards


# --- Blocks, the upper level of the two-level token draw (``samplers.proposal``) ---

# The largest block.
BLOCK_SIZE = 512
_SMALLEST_BLOCK = 32
# A vocabulary may be sharded over up to this many devices without changing its blocks, where V
# allows it: draws then do not depend on the mesh.
_MAX_SHARDS = 16


def block_of(vocab: int) -> int:
    """The block size b for a vocabulary of V tokens.

    The divisor of V that is nearest to its square root, since padding would copy the logits. Where
    possible it divides V/16, so that each of 16 devices has whole blocks. A small vocabulary for
    which this fails is one block; a large one without a suitable divisor has the largest blocks.
    """
    smallest = 1 if vocab <= BLOCK_SIZE else _SMALLEST_BLOCK
    for shards in (_MAX_SHARDS, _MAX_SHARDS // 2, _MAX_SHARDS // 4, _MAX_SHARDS // 8, 1):
        if vocab % shards or (vocab <= BLOCK_SIZE and shards == 1):
            continue
        divisors = [b for b in range(smallest, BLOCK_SIZE + 1) if vocab // shards % b == 0]
        if divisors:
            return min(divisors, key=lambda b: abs(b - math.sqrt(vocab)))
    return min(vocab, BLOCK_SIZE)


def can_shard(vocab: int, num_shards: int) -> bool:
    """Whether V tokens can be sharded over that many devices with whole blocks on each."""
    return vocab % (num_shards * block_of(vocab)) == 0
