"""Exponent bridging: the exact ramp from p to p^alpha (docs/math.md, eqs. 10 to 13).

Early tokens are drawn from a flatter target, and the weights account for the difference exactly:
when the exponent rises from ``a_{t-1}`` to ``a_t``, every particle's whole prefix is re-weighted
by ``p(y_<t)^(a_t - a_{t-1})``, finished particles included.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def exponent_at(step: jax.Array, alpha: jax.Array, ramp_tokens: ArrayLike) -> jax.Array:
    """``a_t = 1 + (alpha - 1) min(1, t / n_r)``, and ``alpha`` where ``n_r = 0`` (eq. 10).

    Args:
      step: [] int32, t.
      alpha: [] float.
      ramp_tokens: [] int32, n_r, at least 0.

    Returns:
      [] of the dtype of ``alpha``.
    """
    dtype = alpha.dtype
    ramp = jnp.maximum(ramp_tokens, 1).astype(dtype)
    fraction = jnp.minimum(jnp.ones((), dtype), step.astype(dtype) / ramp)
    ramped = 1 + (alpha - 1) * fraction
    return jnp.where(jnp.asarray(ramp_tokens) > 0, ramped, alpha)


def bridge(log_weight: jax.Array, log_prob: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    """``log W += (new - old) log p(y)`` for all particles (eqs. 11 and 13).

    Args:
      log_weight, log_prob: [N]; ``log_prob`` is log p of the prefix at temperature 1, finite.
      old, new: [] exponents. The catch-up before the final draw is ``new = alpha``.
    """
    return log_weight + (new - old) * log_prob
