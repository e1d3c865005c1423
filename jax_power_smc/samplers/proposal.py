"""The power proposal q ∝ p^a on the support, its normaliser, and draws from it.

Theorem 1 of the paper (docs/math.md, eqs. 6 and 7): among proposals that see only the prefix,
``q* ∝ p^a``, which is temperature 1/a, alone minimises the variance of the incremental weight. The
weight is then the normaliser ``S_t = sum_v p(v)^a``, whatever token is drawn.

Draws use a two-level inverse CDF: a block of the vocabulary by its mass, then a token within the
block, one uniform number per level. Only the chosen block's prefix sum is ever formed, and the
second number gives back the resolution that one float32 number lacks at V = 152k.

At V = 152k the step must not write arrays the size of the logits: they cost more than the sums
over them. So nothing is stored per token. The sums are over maxima and exponentials of the logits,
which a compiler fuses, and the masses of the one block that is drawn from are recomputed. Two
formulations matter for that on a CPU, where XLA leaves such reductions to a kernel library:

* the support is a bound of +-inf, ``min(logit, bound)``: a select would not be fused;
* logits are reshaped into blocks *before* anything is computed from them (3x faster).

Where the vocabulary is sharded (``core.vocab_sharding``), every block lies in one shard, devices
exchange the masses of the blocks, and the device that holds the chosen block draws from it: the
same token as on one device, up to the rounding of the sums.

Letters: N particles, V vocabulary, B blocks of b tokens.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_power_smc.core.vocab_sharding import UNSHARDED, Logits, VocabSharding, block_of
from jax_power_smc.smc import inverse_cdf


class Normaliser(NamedTuple):
    """Turns logits into log p = logit - top - log_sum over the *whole* vocabulary (eq. 41).

    Attributes:
      top: [N], the largest logit.
      log_sum: [N], ``log sum_v exp(logit - top)``; not finite where the logits are bad: they hold a
        NaN or +inf, or nothing but -inf.
    """

    top: jax.Array
    log_sum: jax.Array

    @property
    def is_bad(self) -> jax.Array:
        """[N] bool: these logits do not define a distribution."""
        # On a CPU the maximum of values with a NaN need not be NaN; their sum is.
        return ~(jnp.isfinite(self.top) & jnp.isfinite(self.log_sum))


def normalise(logits: Logits) -> Normaliser:
    """The normaliser of logits [N, V]."""
    top = logits.sharding.max(jnp.max(logits.values, axis=-1))
    total = logits.sharding.sum(jnp.sum(jnp.exp(logits.values - top[:, None]), axis=-1))
    return Normaliser(top, jnp.log(total))


def log_prob(
    logits: Logits, normaliser: Normaliser, parent: jax.Array, token: jax.Array
) -> jax.Array:
    """log p(token | parent's prefix) at temperature 1: logits [N, V]; all else of one shape."""
    logit = logits.sharding.lookup(logits.values, parent, token)
    return (logit - normaliser.top[parent]) - normaliser.log_sum[parent]


def share_support(logits: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same restriction with one support [1, V] for all particles.

    If particles differ in support, [N, V] (a stop rule, top-k, top-p), it is written into the
    logits. That is one array of their size; passing N bounds on to the sums would take two.
    """
    if allowed.shape[0] == 1:
        return logits, allowed
    return jnp.where(allowed, logits, -jnp.inf), jnp.ones((1, allowed.shape[1]), bool)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["logits", "allowed", "exponent", "top", "block_mass", "log_sum"],
    meta_fields=["sharding"],
)
@dataclasses.dataclass(frozen=True)
class PowerProposal:
    """N categorical distributions over V tokens, split into B blocks of b tokens.

    Attributes:
      logits: [N, B, b], padded with -inf; also -inf where a particle's own support excludes a
        token. With a sharded vocabulary, this and ``allowed`` hold this device's blocks only.
      allowed: [1, B, b] bool, the support that all particles share, padded with False.
      exponent: [N].
      top: [N], the largest logit of the support; 0 where it is empty.
      block_mass: [N, B], masses of all blocks; the token of logit ``top`` has mass 1.
      log_sum: [N], ``log sum_v p(v)^a`` over the support; -inf for an empty support.
      sharding: of the vocabulary.
    """

    logits: jax.Array
    allowed: jax.Array
    exponent: jax.Array
    top: jax.Array
    block_mass: jax.Array
    log_sum: jax.Array
    sharding: VocabSharding = UNSHARDED

    @property
    def mass(self) -> jax.Array:
        """[N, B, b], the masses of all tokens; for tests, as the step never forms them."""
        exponent = self.exponent[:, None, None]
        mass = _mass(self.logits, self.allowed, self.top[:, None, None], exponent)
        return jnp.where((self.log_sum > -jnp.inf)[:, None, None], mass, jnp.zeros_like(mass))


def power_proposal(
    logits: Logits,
    allowed: jax.Array,
    exponent: jax.Array,
    block_size: int | None = None,
    *,
    normaliser: Normaliser | None = None,
) -> PowerProposal:
    """Builds q ∝ p^exponent on the allowed tokens.

    Args:
      logits: [N, V] of the base model, or log p, at temperature 1. A sharded vocabulary must
        satisfy ``can_shard``.
      allowed: [N, V] bool, the step's support; or [1, V], the same for all, which is faster.
      exponent: [] or [N], a_t, at least 0.
      block_size: b, at most V; None for one that suits V.
      normaliser: that of the base model's logits, if known. ``logits`` may then lack tokens that
        are not allowed anyway.
    """
    sharding, vocab = logits.sharding, logits.values.shape[1]
    if normaliser is None:
        normaliser = normalise(logits)
    block = block_of(logits.vocab_size) if block_size is None else min(block_size, vocab)
    values, allowed = share_support(logits.values, allowed)
    # The maximum over the support: its masses may all be tiny beside those of other tokens.
    top = sharding.max(jnp.max(jnp.minimum(values, bound(allowed, values.dtype)), axis=-1))
    values, allowed = _blocks(values, block, -jnp.inf), _blocks(allowed, block, False)
    possible = ~normaliser.is_bad & (top > -jnp.inf)
    top = jnp.where(possible, top, jnp.zeros_like(top))
    exponent = jnp.broadcast_to(exponent, top.shape).astype(top.dtype)
    # An operand of its own, so that two proposals of one step share no large one.
    exponents = jnp.where(possible, exponent, jnp.ones_like(top))[:, None, None]
    block_mass = jnp.sum(_mass(values, allowed, top[:, None, None], exponents), axis=-1)
    block_mass = sharding.all_gather(block_mass)
    block_mass = jnp.where(possible[:, None], block_mass, jnp.zeros_like(block_mass))
    # Subtract logits before multiplying by the exponent, which would lose their digits.
    log_top = exponent * ((top - normaliser.top) - normaliser.log_sum)
    log_sum = jnp.where(possible, log_top + jnp.log(jnp.sum(block_mass, axis=-1)), -jnp.inf)
    return PowerProposal(values, allowed, exponent, top, block_mass, log_sum, sharding)


def draw(proposal: PowerProposal, parent: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Draws one token per particle.

    Args:
      proposal: N distributions.
      parent: [N] int32, whose distribution each particle draws from. Drawing through the index
        avoids moving the [N, V] array when particles are resampled.
      uniforms: [N, 2] in [0, 1), one per level.

    Returns:
      [N] int32 tokens of positive probability (token 0 where a support is empty).
    """
    block = inverse_cdf.invert_each(proposal.block_mass[parent], uniforms[:, 0])
    local, mine = proposal.sharding.to_local(block, proposal.logits.shape[1])
    logits, allowed = proposal.logits[parent, local], proposal.allowed[0, local]
    # Relative to the block's own maximum, so that a block that was drawn has a token to draw,
    # however exponentials close to underflow were rounded in its sum.
    top = jnp.max(jnp.where(allowed, logits, -jnp.inf), axis=-1, keepdims=True)
    top = jnp.where(top > -jnp.inf, top, jnp.zeros_like(top))
    mass = _mass(logits, allowed, top, proposal.exponent[parent][:, None])
    within = inverse_cdf.invert_each(mass, uniforms[:, 1])
    token = proposal.sharding.from_owner(block * proposal.logits.shape[-1] + within, mine)
    return jnp.where(proposal.log_sum[parent] > -jnp.inf, token, jnp.int32(0))


class ProposalTables(NamedTuple):
    """The proposals of R prefixes.

    Attributes:
      logits: [R, V].
      ends: [R or 1, V] bool, tokens that end the sequence.
      normaliser: of the logits.
      proposal: ``q ∝ p^{a_t}``.
      tempered: what tokens are drawn from instead, or None.
    """

    logits: Logits
    ends: jax.Array
    normaliser: Normaliser
    proposal: PowerProposal
    tempered: PowerProposal | None = None

    @property
    def is_bad(self) -> jax.Array:
        """[R] bool, see ``Normaliser``."""
        return self.normaliser.is_bad

    def draw(self, row: jax.Array, uniforms: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """A token for each particle at ``row`` [N], its log p, and whether it ends the sequence."""
        token = draw(self.tempered or self.proposal, row, uniforms)
        return self.at(row, token)

    def at(self, row: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Tokens [N] of prefixes [N], their log p, and whether they end the sequence."""
        token_log_p = log_prob(self.logits, self.normaliser, row, token)
        return token, token_log_p, self.logits.sharding.lookup(self.ends, row, token)


def _blocks(x: jax.Array, block: int, fill: float | bool) -> jax.Array:
    """[N, V] -> [N, B, b]."""
    num, vocab = x.shape
    blocks = -(-vocab // block)
    if blocks * block > vocab:
        x = jnp.pad(x, ((0, 0), (0, blocks * block - vocab)), constant_values=fill)
    return x.reshape(num, blocks, block)


def bound(allowed: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """+inf where a token is allowed, else -inf; ``min(logit, bound)`` restricts logits."""
    infinity = jnp.asarray(jnp.inf, dtype)
    return jnp.where(allowed, infinity, -infinity)


def _mass(logits: jax.Array, allowed: jax.Array, top: jax.Array, exponent: jax.Array) -> jax.Array:
    """(p / p_top)^a where allowed, else 0."""
    # p = 0 stays impossible under any exponent, even 0 (where 0 * -inf would be NaN).
    exponent = jnp.maximum(exponent, jnp.finfo(logits.dtype).tiny)
    # Not ``min(logit, bound) - top``: an operand shared by a sum and a maximum is written out.
    return jnp.exp(exponent * jnp.minimum(logits - top, bound(allowed, logits.dtype)))
