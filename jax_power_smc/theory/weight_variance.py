"""Theorem 1 of arXiv 2602.10273 as code: how much a proposal makes the weights vary, exactly.

At one step a token is drawn from a proposal q that sees only the prefix, and the weight is
multiplied by ``w = p(token)^alpha / q(token)``. Its mean is ``S = sum_v p(v)^alpha`` whatever q
is, as long as q covers the support; its variance is zero for ``q ∝ p^alpha`` (temperature
1/alpha) and positive for any other q. Then ``w = S = exp(-(alpha - 1) H_alpha(p))`` (Corollary
1), with H_alpha the Renyi entropy, whatever token is drawn.

Everything is a sum over the vocabulary, taken in the log domain. Tokens outside the target's
support have ``log_p = -inf``; p is not renormalised over the rest. Letters: N particles, T
tokens, V vocabulary; leading axes are batches. Results have the dtype of ``log_p``.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jax_power_smc.core import checks

# |alpha - 1| below which the Renyi entropy is computed as a perturbation of Shannon's.
_NEAR_ONE = 0.1


class WeightMoments(NamedTuple):
    """Mean and variance of the incremental weight of one step, exactly.

    Attributes:
      log_mean: [...], log E_q[w]; log S if q covers the support.
      log_relative_variance: [...], log(Var_q(w) / E_q[w]^2); -inf for a constant weight, +inf for
        a proposal that does not cover the support.
    """

    log_mean: jax.Array
    log_relative_variance: jax.Array

    @property
    def mean(self) -> jax.Array:
        """[...], E_q[w]."""
        return jnp.exp(self.log_mean)

    @property
    def variance(self) -> jax.Array:
        """[...], Var_q(w)."""
        return jnp.exp(2 * self.log_mean + self.log_relative_variance)

    @property
    def relative_variance(self) -> jax.Array:
        """[...], Var_q(w) / E_q[w]^2, the chi-square divergence of p^alpha/S from q.

        N weights that differ by this one step alone have an effective sample size of about
        N / (1 + relative variance).
        """
        return jnp.exp(self.log_relative_variance)


def log_power_sum(log_p: ArrayLike, alpha: ArrayLike) -> jax.Array:
    """``log S = log sum_v p(v)^alpha``.

    Args:
      log_p: [..., V].
      alpha: [] finite, at least 0.

    Returns:
      [...]; -inf where the support is empty.
    """
    log_p = _floating(log_p)
    alpha = jnp.asarray(alpha, log_p.dtype)
    possible, finite = _support(log_p)
    return jax.nn.logsumexp(jnp.where(possible, alpha * finite, -jnp.inf), axis=-1)


def weight_moments(log_p: ArrayLike, alpha: ArrayLike, temperature: ArrayLike) -> WeightMoments:
    """The weight's moments for the proposal ``q ∝ p^(1/temperature)`` on the support.

    Theorem 1 of arXiv 2602.10273: the variance vanishes at temperature 1/alpha, here exactly or,
    where 1/(1/alpha) does not round to alpha, up to the square of the rounding.

    Args:
      log_p: [..., V].
      alpha: [] finite, at least 0.
      temperature: [] positive; infinite is the uniform proposal on the support.

    Returns:
      Moments of shape [...]. An empty support has the constant weight 0.
    """
    log_p = _floating(log_p)
    alpha = jnp.asarray(alpha, log_p.dtype)
    exponent = 1 / jnp.asarray(temperature, log_p.dtype)
    possible, finite = _support(log_p)
    top = jnp.max(log_p, axis=-1, keepdims=True)
    fall = jnp.where(possible, finite - top, 0)  # [..., V], at most 0

    def normaliser(power: jax.Array) -> jax.Array:
        scaled = jnp.where(possible, power * fall, -jnp.inf)
        return jax.nn.logsumexp(scaled, axis=-1, keepdims=True)

    log_q = jnp.where(possible, exponent * fall - normaliser(exponent), -jnp.inf)
    # One product of the difference, not a difference of two products: equal exponents give 0,
    # however a compiler fuses and rounds.
    log_ratio = (alpha - exponent) * fall - (normaliser(alpha) - normaliser(exponent))
    return WeightMoments(log_power_sum(log_p, alpha), _log_chi_square(log_q, log_ratio))


def proposal_moments(log_p: ArrayLike, log_q: ArrayLike, alpha: ArrayLike) -> WeightMoments:
    """The weight's moments for any proposal that sees only the prefix.

    Args:
      log_p: [..., V].
      log_q: [..., V], the proposal's log probabilities, up to a constant per row; finite for one
        token at least.
      alpha: [] finite, at least 0.

    Returns:
      Moments of shape [...]. Where q is zero on a token of the support they say what is wrong
      with it: the mean is that of the tokens q can reach, less than S, so the weights are biased
      however many particles there are, and the variance is +inf, that of the missing token's
      weight as its q goes to 0.
    """
    log_p = _floating(log_p)
    alpha = jnp.asarray(alpha, log_p.dtype)
    possible, finite = _support(log_p)
    log_q = jax.nn.log_softmax(_floating(log_q), axis=-1)
    proposed = log_q != -jnp.inf
    log_power = jnp.where(possible, alpha * finite, -jnp.inf)
    log_sum = jax.nn.logsumexp(log_power, axis=-1, keepdims=True)
    # -inf - -inf would be NaN where the support is empty.
    log_sum = jnp.where(log_sum == -jnp.inf, 0, log_sum)
    log_ratio = log_power - log_sum - jnp.where(proposed, log_q, 0)
    spread = _log_chi_square(log_q, log_ratio)
    spread = jnp.where(jnp.any(possible, axis=-1), spread, -jnp.inf)
    covered = jnp.all(proposed | ~possible, axis=-1)
    reached = jnp.where(proposed, log_power, -jnp.inf)
    return WeightMoments(jax.nn.logsumexp(reached, axis=-1), jnp.where(covered, spread, jnp.inf))


def renyi_entropy(log_p: ArrayLike, alpha: ArrayLike) -> jax.Array:
    """``H_alpha(p) = log(sum_v p(v)^alpha) / (1 - alpha)`` in nats.

    With its limits: Shannon's entropy at alpha = 1 (accurate close by, too), the log of the
    support's size at 0, and ``-log max p`` at infinity. ``log S = -(alpha - 1) H_alpha(p)``.

    Args:
      log_p: [..., V], normalised (otherwise there is no limit at 1).
      alpha: [] at least 0; may be infinite.

    Returns:
      [...], not increasing in alpha.
    """
    log_p = _floating(log_p)
    alpha = jnp.asarray(alpha, log_p.dtype)
    possible, finite = _support(log_p)
    p = jnp.where(possible, jnp.exp(finite), 0)
    near = jnp.abs(alpha - 1) < _NEAR_ONE
    # sum p^alpha - 1 = sum p (p^(alpha-1) - 1), without the cancellation of the left side.
    excess = jnp.where(near, alpha - 1, 0)
    change = jnp.where(p == 0, 0, p * jnp.expm1(excess * jnp.where(p == 0, 0, finite)))
    shannon = -jnp.sum(p * finite, axis=-1)
    close = -jnp.log1p(jnp.sum(change, axis=-1)) / jnp.where(excess == 0, 1, excess)
    ordinary = jnp.where(near | jnp.isinf(alpha), 2, alpha)
    far = log_power_sum(log_p, ordinary) / (1 - ordinary)
    far = jnp.where(jnp.isinf(alpha), -jnp.max(log_p, axis=-1), far)
    return jnp.where(near, jnp.where(excess == 0, shannon, close), far)


class StepCost(NamedTuple):
    """What one step took from a particle's weight.

    Attributes:
      step: t.
      token: the token drawn there, as the caller gave it.
      cost: ``-log S_t = (alpha - 1) H_alpha(p_t)`` in nats; inf where the support was empty.
    """

    step: int
    token: Any
    cost: float


def weight_costs(
    log_sum: ArrayLike, tokens: Sequence[Any], count: int | None = None
) -> list[StepCost]:
    """The steps of one particle by what they cost its weight, the dearest first.

    By Corollary 1 of arXiv 2602.10273 the log weight is the sum of ``log S_t`` over the steps, so
    the costs add up to what it lost; steps where the model was undecided cost the most. A cost
    that all particles pay alike does no harm: only differences between them do.

    Args:
      log_sum: [T], log S_t of each step.
      tokens: [T], ids or texts, for the reader.
      count: how many steps to return; None for all.

    Returns:
      At most ``count`` steps; equal costs in the order of the steps.

    Raises:
      ValueError: if the two are not of one length, a log sum is NaN, or the count is negative.
    """
    tokens, costs = list(tokens), 0.0 - np.asarray(log_sum, np.float64)
    if costs.shape != (len(tokens),):
        raise ValueError(
            f"log_sum has shape {costs.shape} and there are {len(tokens)} tokens; "
            "each token needs one number."
        )
    if np.isnan(costs).any():
        raise ValueError(f"log_sum is NaN at step {int(np.argmax(np.isnan(costs)))}.")
    if count is not None:
        count = checks.integer("count", count, at_least=0)
    order = np.argsort(-costs, kind="stable")[:count].tolist()
    return [StepCost(step, tokens[step], float(costs[step])) for step in order]


def _floating(x: ArrayLike) -> jax.Array:
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))


def _support(log_p: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[..., V] twice: whether p > 0, and log p with 0 where not (0 * -inf would be NaN)."""
    possible = log_p != -jnp.inf  # true of NaN, which then shows in the result
    return possible, jnp.where(possible, log_p, 0)


def _log_chi_square(log_q: jax.Array, log_ratio: jax.Array) -> jax.Array:
    """``log sum_v q (e^r - 1)^2`` for r = log(w/S): [..., V] twice -> [...].

    E_q[w^2] - E_q[w]^2 would cancel near the optimum, and q e^(2r) alone may overflow.
    """
    # log|e^r - 1|
    size = jnp.maximum(log_ratio, 0) + jnp.log(-jnp.expm1(-jnp.abs(log_ratio)))
    terms = jnp.where(log_q != -jnp.inf, log_q + 2 * size, -jnp.inf)
    return jax.nn.logsumexp(terms, axis=-1)
