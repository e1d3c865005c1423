"""Drawing an index from unnormalised masses with a given uniform number.

The convention is ``searchsorted(cdf, point, side="right")``: points in ``[cdf_{j-1}, cdf_j)`` draw
index j. Two things hold whatever the rounding: the last index of positive mass takes every point
beyond it, and an index of mass zero is never drawn (a parallel prefix sum may give it a sliver).
"""

import jax
import jax.numpy as jnp


def cumulative(mass: jax.Array) -> jax.Array:
    """Running sum over the last axis, monotone, flat where the mass is zero."""
    running = jnp.where(mass > 0, jnp.cumsum(mass, axis=-1), jnp.zeros_like(mass))
    return jax.lax.cummax(running, axis=running.ndim - 1)


def invert(mass: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Draws one index per uniform number.

    Args:
      mass: [M] non-negative, not all zero.
      uniforms: [n] in [0, 1).

    Returns:
      [n] int32 indices of positive mass.
    """
    cdf = jnp.cumsum(mass)
    return _first_beyond(cdf[None, :], mass[None, :], uniforms * cdf[-1])


def invert_each(mass: jax.Array, uniforms: jax.Array) -> jax.Array:
    """``invert`` with one distribution per uniform number: mass [N, M], uniforms [N] -> [N]."""
    cdf = jnp.cumsum(mass, axis=-1)
    return _first_beyond(cdf, mass, uniforms * cdf[:, -1])


def _first_beyond(cdf: jax.Array, mass: jax.Array, points: jax.Array) -> jax.Array:
    """First index of positive mass whose running sum exceeds each point: [n or 1, M], [n] -> [n].

    The running sum need not be monotone after rounding: the index still grows with the point.
    ``cumulative`` would cost a second scan, above all in compile time.
    """
    size = mass.shape[-1]
    positions = jnp.arange(size, dtype=jnp.int32)[None, :]
    beyond = (mass > 0) & (cdf > points[:, None])
    index = jnp.min(jnp.where(beyond, positions, jnp.int32(size)), axis=-1)
    return jnp.minimum(index, last_positive(mass))


def last_positive(mass: jax.Array) -> jax.Array:
    """Index of the last positive mass along the last axis (0 if there is none)."""
    size = mass.shape[-1]
    positions = jnp.arange(size, dtype=jnp.int32)
    shape = (1,) * (mass.ndim - 1) + (size,)
    return jnp.max(jnp.where(mass > 0, positions.reshape(shape), jnp.int32(0)), axis=-1)
