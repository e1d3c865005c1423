"""Resampling schemes with one signature: (weights [M], uniforms [n]) -> ancestors [n] int32.

Each is unbiased: index i appears ``n w_i / sum(w)`` times on average (docs/math.md, eq. 15). None
knows what a particle is. ``in_place`` rearranges ancestors so that survivors keep their slots.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jax_power_smc.smc import inverse_cdf


def systematic(weights: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Equally spaced points with a common shift, ``uniforms[0]`` (docs/math.md, eq. 43)."""
    return inverse_cdf.invert(weights, _strata(jnp.broadcast_to(uniforms[0], uniforms.shape)))


def stratified(weights: jax.Array, uniforms: jax.Array) -> jax.Array:
    """One point in each of n equal strata."""
    return inverse_cdf.invert(weights, _strata(uniforms))


def multinomial(weights: jax.Array, uniforms: jax.Array) -> jax.Array:
    """n independent draws."""
    return inverse_cdf.invert(weights, uniforms)


def residual(weights: jax.Array, uniforms: jax.Array) -> jax.Array:
    """``floor(n w)`` copies of each index for certain, the rest multinomial on the remainders."""
    num = uniforms.shape[0]
    expected = weights * (num / jnp.sum(weights))
    # Equal weights expect exactly one copy each; rounding must not turn that into 0.9999999.
    copies = jnp.floor(expected * (1 + 8 * jnp.finfo(expected.dtype).eps))
    certain = jnp.repeat(
        jnp.arange(weights.shape[0], dtype=jnp.int32),
        copies.astype(jnp.int32),
        total_repeat_length=num,
    )
    remainder = jnp.maximum(expected - copies, 0)
    # Without remainders no slot below uses the draw; it only has to be well defined.
    remainder = jnp.where(jnp.sum(remainder) > 0, remainder, weights)
    drawn = inverse_cdf.invert(remainder, uniforms)
    slot = jnp.arange(num, dtype=jnp.int32)
    return jnp.where(slot < jnp.sum(copies.astype(jnp.int32), dtype=jnp.int32), certain, drawn)


Resampler = Callable[[jax.Array, jax.Array], jax.Array]

SCHEMES: dict[str, Resampler] = {
    "systematic": systematic,
    "stratified": stratified,
    "residual": residual,
    "multinomial": multinomial,
}


def in_place(ancestors: jax.Array) -> jax.Array:
    """Rearranges [N] ancestors so that every surviving parent keeps its own slot.

    Further copies of a parent go to slots whose particle died. The multiset of ancestors is
    unchanged, and every source of a copy is a slot that stays, so copies may happen in any order:

        ancestors   0 0 0 2 4        slots 1 and 3 have died, slot 0 has two more children
        in place    0 0 2 0 4        slots 0, 2, 4 keep their particle; 0 is copied to 1 and 3
    """
    num = ancestors.shape[0]
    slots = jnp.arange(num, dtype=jnp.int32)
    copies = jnp.sum(ancestors[None, :] == slots[:, None], axis=1, dtype=jnp.int32)
    survives = copies > 0
    extra = jnp.repeat(slots, jnp.maximum(copies - 1, 0), total_repeat_length=num)
    dead_rank = jnp.cumsum(~survives, dtype=jnp.int32) - 1
    return jnp.where(survives, slots, extra[jnp.maximum(dead_rank, 0)])


def _strata(uniforms: jax.Array) -> jax.Array:
    num = uniforms.shape[0]
    return (jnp.arange(num, dtype=uniforms.dtype) + uniforms) / num
