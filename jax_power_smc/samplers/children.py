"""The children of a population: each particle's one-token continuations, with their weights.

All V children of a prefix are reduced to a few without changing any expectation (docs/math.md,
eqs. 23 and 24): each prefix has K explicit children, and the rest of its vocabulary is one *tail*
child that does not end the sequence and one that does. If a tail child is selected, its token is
drawn from p^a on that rest.

Tail masses are sums over the rest, never differences: at V = 152k and alpha = 4 a float32
difference gives 0 where the truth is 1e-16.

Letters: R prefixes, K explicit children, C = K + 1 columns with the tail, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_power_smc.core.top_k import top_k
from jax_power_smc.core.vocab_sharding import Logits, block_of
from jax_power_smc.samplers.proposal import (
    Normaliser,
    PowerProposal,
    bound,
    draw,
    log_prob,
    power_proposal,
    share_support,
)


class Children(NamedTuple):
    """The children of R prefixes, C columns each, the tail last.

    Attributes:
      token: [R, K] int32, tokens of the explicit children.
      log_p: [R, K], their log p at temperature 1; read where their mass is positive.
      live: [R, C] log mass ``log p(v)^a`` of those that do not end the sequence, else -inf.
      ending: [R, C] the same of those that end it.
      live_tail, ending_tail: what the token of a selected tail child is drawn from.
      rest: [R, V], the logits without those of the explicit children.
      normaliser: that of all logits.
    """

    token: jax.Array
    log_p: jax.Array
    live: jax.Array
    ending: jax.Array
    live_tail: PowerProposal
    ending_tail: PowerProposal
    rest: Logits
    normaliser: Normaliser

    @property
    def is_bad(self) -> jax.Array:
        """[R] bool, see ``Normaliser``."""
        return self.normaliser.is_bad

    def draw(
        self, row: jax.Array, column: jax.Array, tail: PowerProposal, uniforms: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Token and its log p of the children [n] at ``column`` of prefixes ``row``.

        Args:
          row, column: [n] int32.
          tail: ``live_tail`` or ``ending_tail``, whichever the children come from.
          uniforms: [n, 2] in [0, 1), for the tokens of tail children.
        """
        width = self.live.shape[1]
        is_tail, column = column == width - 1, jnp.minimum(column, width - 2)
        drawn = draw(tail, row, uniforms)
        token = jnp.where(is_tail, drawn, self.token[row, column])
        drawn_log_p = log_prob(self.rest, self.normaliser, row, drawn)
        return token, jnp.where(is_tail, drawn_log_p, self.log_p[row, column])


def expand(
    logits: Logits,
    normaliser: Normaliser,
    token: jax.Array,
    allowed: jax.Array,
    ends: jax.Array,
    exponent: jax.Array,
) -> Children:
    """All children of R prefixes.

    Args:
      logits: [R, V] of the next token.
      normaliser: that of the logits.
      token: [R, K] int32, the explicit children's tokens, distinct for each prefix.
      allowed: [R or 1, V] bool, the support; children outside it have no mass.
      ends: [R or 1, V] bool, whether a token ends the sequence.
      exponent: [] or [R], a_t.
    """
    values, sharding = logits.values, logits.sharding
    parent = jnp.broadcast_to(jnp.arange(token.shape[0], dtype=jnp.int32)[:, None], token.shape)
    log_p = log_prob(logits, normaliser, parent, token)
    possible = sharding.lookup(allowed, parent, token) & (log_p > -jnp.inf)
    possible = possible & ~normaliser.is_bad[:, None]
    log_p = jnp.where(possible, log_p, 0)
    exponents = jnp.broadcast_to(exponent, (token.shape[0],))[:, None]
    explicit = jnp.where(possible, exponents * log_p, -jnp.inf)
    explicit_ends = sharding.lookup(ends, parent, token)
    # Tokens without mass need not be taken out. Doing it after all other reads of the logits lets
    # the compiler do it in place.
    local, mine = sharding.to_local(token, values.shape[1])
    out = jnp.where(possible & mine, local, jnp.int32(values.shape[1]))
    rest = Logits(values.at[parent, out].set(-jnp.inf, mode="drop"), sharding)
    live_tail, ending_tail = (
        power_proposal(rest, allowed & which, exponent, normaliser=normaliser)
        for which in (~ends, ends)
    )
    none = jnp.full_like(explicit, -jnp.inf)
    live = jnp.where(explicit_ends, none, explicit)
    ending = jnp.where(explicit_ends, explicit, none)
    return Children(
        token,
        log_p,
        jnp.concatenate([live, live_tail.log_sum[:, None]], axis=1),
        jnp.concatenate([ending, ending_tail.log_sum[:, None]], axis=1),
        live_tail,
        ending_tail,
        rest,
        normaliser,
    )


def most_probable(logits: Logits, allowed: jax.Array, count: int) -> jax.Array:
    """[N, K] int32: the K = ``count`` most probable tokens, those allowed [N or 1, V] first."""
    x, sharding = logits.values, logits.sharding
    if sharding.axis is None:
        return _largest(x, allowed, count)
    # The largest of all are among the largest of every shard.
    own = _largest(x, allowed, min(count, x.shape[1]))
    particle = jnp.arange(x.shape[0], dtype=jnp.int32)[:, None]
    is_allowed = allowed[particle if allowed.shape[0] > 1 else jnp.zeros_like(particle), own]
    value = sharding.all_gather(jnp.where(is_allowed, x[particle, own], -jnp.inf))
    token = sharding.all_gather(own + sharding.first(x.shape[1]))
    best = top_k(value, count)[1]
    return jnp.take_along_axis(token, best, axis=1)


def _largest(x: jax.Array, allowed: jax.Array, count: int) -> jax.Array:
    """[N, K] int32: where the K largest of x [N, V] are, those allowed [N or 1, V] first.

    They lie in the K blocks with the largest maxima (a value in another block has K maxima above
    it). Where that leaves out most of a large vocabulary, it is twice as fast as searching all of
    it. Ties may then be broken in any way.
    """
    num, vocab = x.shape
    block = block_of(vocab)
    blocks = vocab // block
    if blocks * block != vocab or blocks < 4 * count:
        return top_k(jnp.where(allowed, x, -jnp.inf), count)[1]
    x, allowed = share_support(x, allowed)
    x, allowed = x.reshape(num, blocks, block), allowed.reshape(blocks, block)
    particle = jnp.arange(num, dtype=jnp.int32)[:, None]
    highest = jnp.max(jnp.minimum(x, bound(allowed[None], x.dtype)), axis=-1)
    chosen = top_k(highest, count)[1]
    # The same values computed again: an operand shared by two operations would be written out.
    inside = jnp.where(allowed[chosen], x[particle, chosen], -jnp.inf)
    found = top_k(inside.reshape(num, count * block), count)[1]
    return chosen[particle, found // block] * block + found % block
