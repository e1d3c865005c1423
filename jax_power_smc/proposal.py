"""The power proposal q proportional to p^a on the support, its normaliser, and draws from it.

Theorem 1 of the paper: among proposals that see only the prefix, ``q* ∝ p^a`` (temperature
1/a) alone minimises the variance of the incremental weight; the weight is then the normaliser
``S_t = sum_v p(v)^a``, whatever token is drawn.

Draws use a two-level inverse CDF: a block of the vocabulary by its mass, then a token within the
block, one uniform number per level. Only the chosen block's prefix sum is ever formed, and the
second number gives back the resolution that one float32 number lacks at V = 152k.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_power_smc import inverse_cdf

BLOCK_SIZE = 512


class PowerProposal(NamedTuple):
    """N categorical distributions over V tokens, cut into B blocks of b tokens.

    Attributes:
      mass: [N, B, b], unnormalised probabilities scaled so that each row's largest is 1.
      block_mass: [N, B], their sums.
      log_sum: [N], ``log sum_v p(v)^a`` over the support; -inf for an empty support.
    """

    mass: jax.Array
    block_mass: jax.Array
    log_sum: jax.Array


def power_proposal(
    log_p: jax.Array, allowed: jax.Array, exponent: jax.Array, block_size: int = BLOCK_SIZE
) -> PowerProposal:
    """Builds q ∝ p^exponent on the allowed tokens.

    Args:
      log_p: [N, V] log probabilities of the base model at temperature 1.
      allowed: [N, V] bool, the step's support.
      exponent: [] a_t, at least 0.
      block_size: b; not larger than V is needed.
    """
    num, vocab = log_p.shape
    # p = 0 stays impossible under any exponent, also 0 (where 0 * -inf would be NaN).
    possible = allowed & (log_p > -jnp.inf)
    scaled = jnp.where(possible, exponent * jnp.where(possible, log_p, 0), -jnp.inf)
    top = jnp.max(scaled, axis=-1, keepdims=True)
    top = jnp.where(top > -jnp.inf, top, jnp.zeros_like(top))
    mass = jnp.exp(scaled - top)
    block = min(block_size, vocab)
    blocks = -(-vocab // block)
    mass = jnp.pad(mass, ((0, 0), (0, blocks * block - vocab))).reshape(num, blocks, block)
    block_mass = jnp.sum(mass, axis=-1)
    log_sum = top[:, 0] + jnp.log(jnp.sum(block_mass, axis=-1))
    return PowerProposal(mass, block_mass, log_sum)


def draw(proposal: PowerProposal, rows: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Draws one token per particle.

    Args:
      proposal: N distributions.
      rows: [N] int32, which of them each particle draws from (its ancestor's). Drawing through
        the index spares moving the [N, V] array when particles are resampled.
      uniforms: [N, 2] in [0, 1), one per level.

    Returns:
      [N] int32 tokens of positive probability (token 0 where a support is empty).
    """
    block = inverse_cdf.invert_rows(proposal.block_mass[rows], uniforms[:, 0])
    within = inverse_cdf.invert_rows(proposal.mass[rows, block], uniforms[:, 1])
    return block * proposal.mass.shape[-1] + within
