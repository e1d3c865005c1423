"""The evidence of independent runs: an interval for log Z, and a certificate for the draw.

A run returns weighted particles and ``Z_hat``, and they are *properly weighted*: with W its
normalised weights, ``E[Z_hat sum_i W_i 1{y_i = y}] = gamma(y)`` for every sequence y
(docs/math.md, eq. 27). Everything here and in ``pooling`` and ``pimh`` follows from that equation.

    pooling.pool         the runs' particles as one population, weighted by Z_hat_r W_i^r
    evidence_interval    log Z with an interval, and the standard deviation of log Z_hat
    pimh.pimh            a Markov chain over runs that leaves the target invariant
    kl_figure            log Z - E[log Z_hat], which bounds the error of a drawn sequence

Runs are independent if their keys are, see ``engine.independent_runs``. Letters: R runs, P prompts.
All sums are taken on the host in float64.
"""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from scipy import special

from jax_power_smc.core import checks
from jax_power_smc.results import run_arrays
from jax_power_smc.results.result import SampleResult


class EvidenceInterval(NamedTuple):
    """What R runs say about log Z.

    Attributes:
      mean: [P], mean of log Z_hat over runs; below log Z on average.
      sd: [P], standard deviation of log Z_hat over runs; inf where a run failed.
      log_evidence: [P], log of the mean of Z_hat, the better estimate of log Z.
      low, high: [P], the interval for log Z; ``log_evidence`` itself may lie outside.
      level: its nominal coverage.
      num_runs: R.
    """

    mean: np.ndarray
    sd: np.ndarray
    log_evidence: np.ndarray
    low: np.ndarray
    high: np.ndarray
    level: float
    num_runs: int


def evidence_interval(results: Iterable[SampleResult], *, level: float = 0.95) -> EvidenceInterval:
    """log Z from R runs, with an interval and the standard deviation of log Z_hat.

    With t the quantile of Student's distribution with R - 1 degrees of freedom, the interval is
    ``log mean Z_hat ± t sd(Z_hat) / (mean Z_hat sqrt(R))`` by the delta method (docs/math.md, eq.
    29). Its upper end is at least the one that holds if Z_hat is lognormal, ``mean + sd^2/2 + t
    sqrt(sd^2/R + sd^4/(2(R - 1)))``. Z_hat is unbiased but skewed to the right, so the log of a
    mean of few runs is low on average, and the standard error of a mean cannot exceed the mean
    however wrong it is: the delta method alone would always claim to know log Z to a few nats.
    Mass that an early stop may have left out is added to the upper end.

    Both ends are then clipped to where log Z is known to lie: at most 0, since ``p^alpha <= p`` for
    alpha of at least 1; and, up to rounding, at least the log of the mass of the distinct sequences
    that the runs returned, ``log sum_y p(y)^alpha``, whose probabilities are known.

    Only these two bounds are certain. The nominal level holds for many runs and a Z_hat that is not
    too skewed; for the few runs at hand nothing guarantees it.

    Read ``sd`` first. Where log Z_hat is about normal over runs, as it is for long sequences
    (around log Z - sd^2/2; Bérard, Del Moral and Doucet 2014), the interval keeps its level for an
    sd below about 0.3 nats; at 1 or more it covers less than it says, and log Z is likely to lie
    above it. Where a rare run carries much of the mass, as with few particles on a small tree, it
    covers less at any sd; if all runs are equal it has no width. A small sd proves nothing: a mode
    that no run has found shows in none of these numbers.

    Args:
      results: at least two independent runs, as in ``pool``.
      level: nominal coverage, in (0, 1).

    Raises:
      ValueError: as ``pool``; for fewer than two runs; for a level outside its range.
    """
    results = run_arrays.as_list(results, at_least=2)
    evidence = run_arrays.log_evidence(results)
    level = checks.number("level", level, above=0, below=1)
    num = len(results)
    quantile = special.stdtrit(num - 1, (1 + level) / 2)
    mean, sd = evidence.mean(axis=0), run_arrays.deviation(evidence)

    total = np.logaddexp.reduce(evidence, axis=0)
    log_mean = total - math.log(num)
    # Each run's Z_hat over the sum of all; all zero where every run failed.
    shares = np.exp(evidence - np.where(total > -np.inf, total, 0.0))
    half = quantile * math.sqrt(num) * shares.std(axis=0, ddof=1)
    # Where a run failed, Z_hat is not lognormal.
    known = np.isfinite(sd)
    s = np.where(known, sd, 0.0)
    lognormal = mean + s**2 / 2 + quantile * np.sqrt(s**2 / num + s**4 / (2 * (num - 1)))
    high = np.where(known, np.maximum(log_mean + half, lognormal), log_mean + half)
    high = high - np.log1p(-run_arrays.dropped_share(results, shares))
    least = np.minimum(run_arrays.log_mass_seen(results), 0.0)
    return EvidenceInterval(
        mean=mean,
        sd=sd,
        log_evidence=log_mean,
        low=np.clip(log_mean - half, least, 0.0),
        high=np.clip(high, least, 0.0),
        level=level,
        num_runs=num,
    )


class KLFigure(NamedTuple):
    """``log Z - E[log Z_hat]`` in nats, from R runs.

    Attributes:
      value: [P]; inf where a run failed.
      standard_error: [P], of ``value`` over runs, taking ``log_z`` as exact; NaN for one run.
      kind: "bound" or "estimate".
    """

    value: np.ndarray
    standard_error: np.ndarray
    kind: Literal["bound", "estimate"]


def kl_figure(log_z: ArrayLike, results: Iterable[SampleResult], *, exact: bool) -> KLFigure:
    """How far one run's draw is from the target (docs/math.md, eq. 30).

    ``KL(q_out || pi_alpha) <= log Z - E[log Z_hat]``, where q_out is the distribution of ``draw()``
    over runs. With the exact log Z this is a bound, up to the standard error of the mean. With log
    Z_hat of a reference run it is only an estimate, since that log Z_hat is itself low on average.
    An early stop lowers Z_hat, so it loosens the bound and does not break it.

    Args:
      log_z: [] or [P], log Z.
      results: independent runs of the sampler in question, as in ``pool``.
      exact: whether ``log_z`` is exact, as from ``exact.enumerate``.

    Raises:
      ValueError: as ``pool``; for a ``log_z`` that is not finite or has another shape.
    """
    results = run_arrays.as_list(results)
    evidence = run_arrays.log_evidence(results)
    num_runs, num_prompts = evidence.shape
    log_z = np.asarray(log_z, np.float64)
    if log_z.shape not in ((), (num_prompts,)):
        raise ValueError(
            f"log_z has shape {log_z.shape}; it must be one number, or one per prompt, "
            f"({num_prompts},)."
        )
    if not np.isfinite(log_z).all():
        raise ValueError(f"log_z is {log_z}; it must be finite.")
    unknown = np.full((num_prompts,), np.nan)
    error = run_arrays.deviation(evidence) / math.sqrt(num_runs) if num_runs > 1 else unknown
    return KLFigure(log_z - evidence.mean(axis=0), error, "bound" if exact else "estimate")
