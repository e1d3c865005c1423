"""Log weights, their sum (the evidence), and the effective sample size.

The weights of N particles are stored normalised; the logarithm of what was divided out is the
running ``log Z_hat`` (docs/math.md, eqs. 26 and 42). Differences between particles therefore keep
their float32 digits however long the sequence gets, and resampling cannot lose the evidence.
"""

import math

import jax
import jax.numpy as jnp


def uniform(num_particles: int, dtype: jnp.dtype) -> jax.Array:
    """[N] log weights of 1/N each."""
    return jnp.full((num_particles,), -math.log(num_particles), dtype)


def renormalize(log_weight: jax.Array, log_evidence: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Moves the sum of the weights into the evidence (docs/math.md, eq. 42).

    Args:
      log_weight: [N].
      log_evidence: [].

    Returns:
      The normalised log weights [N] and the new log evidence []. If every weight is zero, both are
      -inf: a dead population is reported as such and never becomes uniform.
    """
    total = jax.nn.logsumexp(log_weight)
    alive = total > -jnp.inf
    shift = jnp.where(alive, total, jnp.zeros_like(total))
    return log_weight - shift, log_evidence + total


def effective_sample_size(log_weight: jax.Array) -> jax.Array:
    """``(sum W)^2 / sum W^2`` of [N] log weights (docs/math.md, eq. 14); 0 if all are zero."""
    log_ess = 2 * jax.nn.logsumexp(log_weight) - jax.nn.logsumexp(2 * log_weight)
    alive = jnp.max(log_weight) > -jnp.inf
    return jnp.where(alive, jnp.exp(log_ess), jnp.zeros_like(log_ess))


def weight_dtype(logits: jax.Array) -> jnp.dtype:
    """Weights and log p are at least float32, and float64 only if the model's logits are."""
    return jnp.dtype(jnp.float64 if logits.dtype == jnp.float64 else jnp.float32)
