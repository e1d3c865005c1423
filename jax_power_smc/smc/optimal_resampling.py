"""Optimal resampling: M weighted candidates reduced to at most N, without bias.

(Fearnhead and Clifford, 2003; docs/math.md, eqs. 19 to 22.) The threshold c solves

    sum_m min(w_m / c, 1) = N.

Candidates with ``w_m >= c`` are certain to be kept, with their weight. One systematic pass over the
others keeps each with probability ``w_m / c``, exactly as many as there is room for, and gives them
the weight c:

    W'_m = w_m  if w_m >= c,    else  c 1[m kept].

Then ``E[W'_m] = w_m`` for every candidate, the total is conserved exactly, no candidate is kept
twice, and among unbiased rules with N survivors this one minimises ``E ||W' - w||^2``.

    w       8  4  1  1  .5  .5      N = 4:  c = 1.5; 8 and 4 are certain to be kept,
    w / c   .  . 2/3 2/3 1/3 1/3    and two of the last four by one systematic pass
"""

import jax
import jax.numpy as jnp

from jax_power_smc.core.top_k import top_k, true_indices
from jax_power_smc.smc import inverse_cdf


def log_threshold(log_mass: jax.Array, num_keep: int) -> jax.Array:
    """Log of c (docs/math.md, eq. 22); -inf if at most N candidates have positive mass.

    With k candidates above c, ``(N - k) c`` is the sum of the others, so c comes from sums of the
    smallest masses. The textbook formula, the total less the sum of the largest, cancels in
    floating point and has lost a whole mode.

    Args:
      log_mass: [M], -inf for an impossible candidate.
      num_keep: N, at least 1.

    Returns:
      [] of the dtype of ``log_mass``.
    """
    # Only sums that begin within the first N are needed; all that lies beyond is one term of each.
    bound = min(num_keep, log_mass.shape[0])
    ordered = top_k(log_mass, bound)[0]
    smallest = ordered[-1]
    ties = jnp.sum(log_mass >= smallest) - (bound - 1)
    beyond = jax.nn.logsumexp(jnp.where(log_mass < smallest, log_mass, -jnp.inf))
    tail = jnp.logaddexp(beyond, smallest + jnp.log(ties.astype(log_mass.dtype)))
    others = _sums_to_the_end(ordered.at[bound - 1].set(tail))
    log_points = jnp.log(num_keep - jnp.arange(bound, dtype=log_mass.dtype))
    fits = ordered + log_points <= others
    # The last one always fits, whatever rounding makes of a sum of one term.
    fits = fits.at[bound - 1].set(True)
    num_certain = jnp.argmax(fits)
    few = jnp.sum(log_mass > -jnp.inf) <= num_keep
    return jnp.where(few, -jnp.inf, others[num_certain] - log_points[num_certain])


def _sums_to_the_end(log_mass: jax.Array) -> jax.Array:
    """[M], the log of each mass and all after it."""
    size = log_mass.shape[0]
    if size > 64:
        return jax.lax.cumlogsumexp(log_mass, reverse=True)
    # All sums by themselves are quicker: a running one cannot use vector exponentials.
    after = jnp.tril(jnp.ones((size, size), bool)).T
    return jax.nn.logsumexp(jnp.where(after, log_mass[None, :], -jnp.inf), axis=1)


def select(
    log_mass: jax.Array,
    num_keep: int,
    uniform: jax.Array,
    log_floor: jax.Array | None = None,
) -> jax.Array:
    """Reduces M candidates to at most N (docs/math.md, eq. 20).

    A floor raises the threshold c where it would be smaller: fewer candidates are then kept, by a
    pass whose total need not be whole. The expectations stay, since c depends on the weights alone.

    Args:
      log_mass: [M], -inf for an impossible candidate.
      num_keep: N, at least 1.
      uniform: [] in [0, 1), the shift of the systematic pass.
      log_floor: [], log of the least threshold; None or -inf for none.

    Returns:
      [M] log weights W': -inf for candidates not kept.
    """
    log_c = log_threshold(log_mass, num_keep)
    by_floor = jnp.zeros((), bool)
    if log_floor is not None:
        by_floor = log_floor > log_c
        log_c = jnp.maximum(log_c, log_floor)
    certain = (log_mass >= log_c) & (log_mass > -jnp.inf)
    cdf = systematic_cdf(log_mass, log_c, num_keep, by_floor)
    below = jnp.concatenate([jnp.zeros((1,), cdf.dtype), cdf[:-1]])
    # A candidate is hit if more of the points j + uniform lie before its end than its beginning.
    hit = _points_before(cdf, uniform) > _points_before(below, uniform)
    return jnp.where(certain, log_mass, jnp.where(hit, log_c, -jnp.inf))


def systematic_cdf(
    log_mass: jax.Array, log_c: jax.Array, num_keep: int, by_floor: jax.Array | bool = False
) -> jax.Array:
    """Running sum [M] of ``w / c`` over the candidates below c; all zero if there is none.

    The last value is the integer N less the number of certain candidates, unless c is a floor.
    """
    below = log_mass < log_c
    share = jnp.where(below, jnp.exp(log_mass - log_c), jnp.zeros_like(log_mass))
    points = num_keep - jnp.sum((log_mass >= log_c) & (log_mass > -jnp.inf))
    cdf = inverse_cdf.cumulative(share)
    total = cdf[-1]
    # Rounding must neither add nor lose a point.
    points = jnp.where(total > 0, points, 0).astype(cdf.dtype)
    scaled = cdf * (points / jnp.where(total > 0, total, jnp.ones_like(total)))
    last = jnp.arange(cdf.shape[0], dtype=jnp.int32) >= inverse_cdf.last_positive(share)
    whole = jnp.where(last, points, scaled)
    # Under a floor the total is not whole, and rounding it up would add mass.
    return jnp.minimum(jnp.where(by_floor, cdf, whole), points)


def _points_before(cdf: jax.Array, uniform: jax.Array) -> jax.Array:
    """How many of the points j + uniform, j = 0, 1, ..., lie before each value of cdf.

    The fraction is compared separately: ``cdf - uniform`` would round it away.
    """
    whole = jnp.floor(cdf)
    return whole + (cdf - whole > uniform).astype(cdf.dtype)


def place(own: jax.Array, others: jax.Array) -> jax.Array:
    """Puts the kept candidates into slots so that as few as possible move.

    Args:
      own: [S] int32, the candidate that stays in each slot, or -1 for a free slot.
      others: [M] bool, further candidates to keep, at most as many as there are free slots.

    Returns:
      [S] int32, the candidate in each slot, -1 for a slot that stays empty.
    """
    free = own < 0
    queue = true_indices(others, own.shape[0], fill_value=-1)
    turn = jnp.cumsum(free, dtype=jnp.int32) - 1
    return jnp.where(free, queue[jnp.maximum(turn, 0)], own)
