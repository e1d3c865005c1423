"""Theorem 1 of arXiv 2602.10273: the exact variance of the weights under a proposal.

At one step a token is drawn from a proposal q that depends only on the prefix, and the weight is
multiplied by ``w = p(token)^alpha / q(token)`` (docs/math.md, eqs. 6 to 9). Its mean is ``S =
sum_v p(v)^alpha`` for every q that covers the support; its variance is zero for ``q ∝ p^alpha``
(temperature 1/alpha) and positive for any other q. Then, whatever token is drawn, ``w = S =
exp(-(alpha - 1) H_alpha(p))`` with the Renyi entropy H_alpha (Corollary 1).

Everything is a sum over the vocabulary, taken in the log domain. Tokens outside the target's
support have ``log_p = -inf``; p is not renormalised over the rest. Letters: N particles, T
tokens, V vocabulary. ``log_p`` is [..., V], whose leading axes are batches, and results [...] have
its dtype; ``alpha`` is a finite scalar of at least 0.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jax_power_smc.core import checks

# Below this |alpha - 1| the Renyi entropy is computed as a perturbation of Shannon's.
_NEAR_ONE = 0.1


class WeightMoments(NamedTuple):
    """Exact mean and variance of one step's incremental weight.

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

        N weights that differ only by this step have an effective sample size of about
        N / (1 + relative variance).
        """
        return jnp.exp(self.log_relative_variance)


def log_power_sum(log_p: ArrayLike, alpha: ArrayLike) -> jax.Array:
    """``log S = log sum_v p(v)^alpha``; -inf where the support is empty."""
    log_p = _floating(log_p)
    alpha = jnp.asarray(alpha, log_p.dtype)
    possible, finite = _support(log_p)
    return jax.nn.logsumexp(jnp.where(possible, alpha * finite, -jnp.inf), axis=-1)


def weight_moments(log_p: ArrayLike, alpha: ArrayLike, temperature: ArrayLike) -> WeightMoments:
    """The weight's moments for the proposal ``q ∝ p^(1/temperature)`` on the support.

    By Theorem 1 the variance vanishes at temperature 1/alpha: here exactly, or up to the square of
    the rounding error if 1/(1/alpha) does not round to alpha.

    ``temperature`` is a positive scalar; infinity gives the uniform proposal on the support. An
    empty support has the constant weight 0.
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
    # A product with the difference, not a difference of products: equal exponents give exactly 0,
    # however a compiler fuses and rounds.
    log_ratio = (alpha - exponent) * fall - (normaliser(alpha) - normaliser(exponent))
    return WeightMoments(log_power_sum(log_p, alpha), _log_chi_square(log_q, log_ratio))


def proposal_moments(log_p: ArrayLike, log_q: ArrayLike, alpha: ArrayLike) -> WeightMoments:
    """The weight's moments for any proposal that depends only on the prefix.

    ``log_q`` [..., V] are its log probabilities, up to a constant per distribution; finite for at
    least one token. If q is zero on a token of the support, the mean is that over the tokens q can
    reach, which is less than S: the weights are biased for any number of particles. The variance is
    then +inf, its limit as the missing token's q goes to 0.
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

    Includes the limits: Shannon's entropy at alpha = 1 (accurate nearby too), the log of the
    support's size at 0, and ``-log max p`` at infinity, for which p must be normalised. It never
    increases in alpha, and ``log S = -(alpha - 1) H_alpha(p)``.
    """
    log_p = _floating(log_p)
    alpha = jnp.asarray(alpha, log_p.dtype)
    possible, finite = _support(log_p)
    p = jnp.where(possible, jnp.exp(finite), 0)
    near = jnp.abs(alpha - 1) < _NEAR_ONE
    # sum p^alpha - 1 = sum p (p^(alpha-1) - 1); the left side would cancel.
    excess = jnp.where(near, alpha - 1, 0)
    change = jnp.where(p == 0, 0, p * jnp.expm1(excess * jnp.where(p == 0, 0, finite)))
    shannon = -jnp.sum(p * finite, axis=-1)
    close = -jnp.log1p(jnp.sum(change, axis=-1)) / jnp.where(excess == 0, 1, excess)
    ordinary = jnp.where(near | jnp.isinf(alpha), 2, alpha)
    far = log_power_sum(log_p, ordinary) / (1 - ordinary)
    far = jnp.where(jnp.isinf(alpha), -jnp.max(log_p, axis=-1), far)
    return jnp.where(near, jnp.where(excess == 0, shannon, close), far)


class StepCost(NamedTuple):
    """How much one step, and the token drawn at it, lowered a particle's log weight.

    The cost is ``-log S_t = (alpha - 1) H_alpha(p_t)`` in nats; inf if the support was empty.
    """

    step: int
    token: Any
    cost: float


def weight_costs(
    log_sum: ArrayLike, tokens: Sequence[Any], count: int | None = None
) -> list[StepCost]:
    """The steps of one particle by how much they lowered its log weight, the most costly first.

    By Corollary 1 the log weight is the sum of ``log S_t`` over steps, so the costs sum to its
    total loss; steps at which the model was uncertain cost the most. Only differences between
    particles matter: a cost that all particles share does no harm.

    ``log_sum`` [T] is log S_t of each step; the T tokens, ids or texts, are only passed through. At
    most ``count`` steps are returned, equal costs in the order of the steps.

    Raises:
      ValueError: if the lengths differ, a log sum is NaN, or the count is negative.
    """
    tokens, costs = list(tokens), 0.0 - np.asarray(log_sum, np.float64)
    if costs.shape != (len(tokens),):
        raise ValueError(
            f"log_sum has shape {costs.shape} and there are {len(tokens)} tokens; "
            "give one number per token."
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
    """[..., V] each: whether p > 0, and log p with 0 where it is not (0 * -inf would be NaN)."""
    possible = log_p != -jnp.inf  # true for NaN, which then shows in the result
    return possible, jnp.where(possible, log_p, 0)


def _log_chi_square(log_q: jax.Array, log_ratio: jax.Array) -> jax.Array:
    """``log sum_v q (e^r - 1)^2`` for r = log(w/S): [..., V] twice -> [...].

    E_q[w^2] - E_q[w]^2 would cancel near the optimum, and q e^(2r) alone may overflow.
    """
    # log|e^r - 1|
    size = jnp.maximum(log_ratio, 0) + jnp.log(-jnp.expm1(-jnp.abs(log_ratio)))
    terms = jnp.where(log_q != -jnp.inf, log_q + 2 * size, -jnp.inf)
    return jax.nn.logsumexp(terms, axis=-1)
