"""What several independent runs say together: evidence, pooled particles, certificates.

A run returns weighted particles and ``Z_hat``, and they are *properly weighted*: with W its
normalised weights, ``E[Z_hat sum_i W_i 1{y_i = y}] = gamma(y)`` for every sequence y (MATH:
evidence). Everything here follows from that one equation.

    pool                 the runs' particles as one population, weighted by Z_hat_r W_i^r
    evidence_interval    log Z with an interval, and the scatter of log Z_hat
    pimh                 a Markov chain over runs that leaves the target invariant
    kl_figure            log Z - E[log Z_hat], which bounds the error of a drawn sequence

Runs are independent if their keys are, see ``independent_runs``. Letters: R runs, P prompts, N
particles, T tokens. All sums are taken on the host in float64.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy import special

from jax_power_smc.core import checks, prng
from jax_power_smc.results import run_arrays
from jax_power_smc.results.diagnostics import diagnose
from jax_power_smc.results.result import PHASES, SampleInfo, SampleResult

# Folded into a key, so that the same key may serve for the runs and for what is made of them.
_POOL = 0x706F6F6C


def pool(
    results: Iterable[SampleResult], key: jax.Array, *, prompt_ids: Sequence[int] | None = None
) -> SampleResult:
    """The particles of independent runs as one properly weighted population.

    Particle i of run r gets the weight ``Z_hat_r W_i^r``, so a run counts by its evidence; the
    pooled evidence is the mean of the runs'. Runs may differ in N. Every run counts once: pool all
    runs in one call, since a pooled result would count as one run.

    ``choice`` is drawn anew from all particles. The pooled ``info``:

    * parent, particle_index: those of run r moved up by the populations of the runs before it, so that the genealogy
      is that of the runs side by side.
    * ess, forks, model_tokens, seconds: sums over runs. The sum of the ESS is that of the runs on
      their own; the ESS of the pooled population is at most that, and follows at the end from
      ``log_weights``.
    * resampled, bad_logits: whether any run was, or had them.
    * dropped_mass: share of the pooled evidence.

    Args:
      results: R runs of the same prompts in the same order, of one target and cap.
      key: for the choice.
      prompt_ids: as in ``sample.sample``; default the list index.

    Returns:
      A result with the N of all runs together. One run gives itself, but for the choice.

    Raises:
      ValueError: if there is no run, if one has no evidence, or if targets, caps or numbers of
        prompts differ.
    """
    results = run_arrays.listed(results)
    evidence = run_arrays.log_evidence(results)
    total = np.logaddexp.reduce(evidence, axis=0)
    # [R, P], the runs' shares of the evidence; all zero where every run failed.
    log_share = evidence - np.where(total > -np.inf, total, 0.0)
    log_weights = np.concatenate(
        [
            np.asarray(result.log_weights, np.float64) + share[:, None]
            for result, share in zip(results, log_share, strict=True)
        ],
        axis=1,
    )
    uniform = _uniforms(key, _POOL, len(total), prompt_ids, [0])[:, 0]

    def joined(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(getattr(r, name)) for r in results], axis=1)

    def like(name: str, values: np.ndarray) -> np.ndarray:
        return values.astype(np.result_type(*[np.asarray(getattr(r, name)).dtype for r in results]))

    arrays = {name: joined(name) for name in ("tokens", "lengths", "finished", "log_probs")}
    arrays["log_weights"] = like("log_weights", log_weights)
    arrays["log_evidence"] = like("log_evidence", total - math.log(len(results)))
    arrays["choice"] = _categorical(np.exp(log_weights), uniform)
    return SampleResult(
        **{name: jnp.asarray(x) for name, x in arrays.items()},
        target=results[0].target,
        info=_pooled_info(results, arrays, np.exp(log_share)),
    )


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
    """log Z from R runs, with an interval and the scatter of log Z_hat.

    With t the quantile of Student's distribution with R - 1 degrees of freedom, the interval is
    ``log mean Z_hat ± t sd(Z_hat) / (mean Z_hat sqrt(R))`` by the delta method, but its upper end
    is at least the one that holds if Z_hat is lognormal, ``mean + sd^2/2 + t sqrt(sd^2/R +
    sd^4/(2(R - 1)))``. Z_hat is unbiased but skewed to the right, so the log of a mean of few runs
    is low on average, and the standard error of a mean cannot exceed the mean however far off it
    is: the delta method alone would claim to know log Z to a few nats whatever happened. What an
    early stop may have left out is added to the upper end.

    Both ends are then moved to where log Z is known to lie: at most 0, since ``p^alpha <= p`` for
    alpha of at least 1; and, up to rounding, at least the log of what the distinct sequences weigh
    that some run returned, ``log sum_y p(y)^alpha``, whose probabilities are known.

    Only these two bounds are sure. The level is that of many runs and of a Z_hat that is not too
    skewed, and nothing promises it for the few runs at hand.

    Read ``sd`` first. Where log Z_hat is about normal over runs, as it is for long sequences
    (around log Z - sd^2/2; Bérard, Del Moral and Doucet 2014), the interval keeps its level below
    an sd of about 0.3 nats; with 1 or more it covers less than it says, and log Z is likely to lie
    above it. Where a rare run carries much of the mass, as with few particles on a small tree, it
    covers less at any sd; runs that are all equal give it no width. A small sd is no proof: a mode
    that no run has found shows in none of these numbers.

    Args:
      results: at least two independent runs, as in ``pool``.
      level: nominal coverage, in (0, 1).

    Raises:
      ValueError: as ``pool``; for fewer than two runs; for a level outside its range.
    """
    results = run_arrays.listed(results, at_least=2)
    evidence = run_arrays.log_evidence(results)
    level = checks.number("level", level, above=0, below=1)
    num = len(results)
    quantile = special.stdtrit(num - 1, (1 + level) / 2)
    mean, sd = evidence.mean(axis=0), run_arrays.deviation(evidence)

    total = np.logaddexp.reduce(evidence, axis=0)
    log_mean = total - math.log(num)
    # Z_hat of each run over the sum of all; all zero where every run failed.
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
      standard_error: [P], of ``value`` over runs; that of ``log_z`` is not in it. NaN for one run.
      kind: "bound" or "estimate".
    """

    value: np.ndarray
    standard_error: np.ndarray
    kind: Literal["bound", "estimate"]


def kl_figure(log_z: ArrayLike, results: Iterable[SampleResult], *, exact: bool) -> KLFigure:
    """How far one run's draw is from the target: ``KL(q_out || pi_alpha) <= log Z - E[log Z_hat]``.

    q_out is the distribution of ``draw()`` over runs. With the exact log Z this is a bound, up to
    the standard error of the mean. With log Z_hat of a reference run it is an estimate and no
    bound: that log Z_hat is itself low on average. An early stop only lowers Z_hat, so it loosens
    the bound and does not break it.

    Args:
      log_z: [] or [P], log Z.
      results: independent runs of the sampler in question, as in ``pool``.
      exact: whether ``log_z`` is exact, as from ``exact.enumerate``.

    Raises:
      ValueError: as ``pool``; for a ``log_z`` that is not finite or of another shape.
    """
    results = run_arrays.listed(results)
    evidence = run_arrays.log_evidence(results)
    num, count = evidence.shape
    log_z = np.asarray(log_z, np.float64)
    if log_z.shape not in ((), (count,)):
        raise ValueError(
            f"log_z has shape {log_z.shape}; it must be one number or one per prompt, ({count},)."
        )
    if not np.isfinite(log_z).all():
        raise ValueError(f"log_z is {log_z}; it must be finite.")
    missing = np.full((count,), np.nan)
    error = run_arrays.deviation(evidence) / math.sqrt(num) if num > 1 else missing
    return KLFigure(log_z - evidence.mean(axis=0), error, "bound" if exact else "estimate")


# --- What was observed of all runs ------------------------------------------------------------


def _pooled_info(
    results: Sequence[SampleResult], arrays: dict[str, np.ndarray], shares: np.ndarray
) -> SampleInfo:
    """What was observed, of all runs side by side; see ``pool``. shares [R, P]."""
    infos = [result.info for result in results]
    sizes_before = np.cumsum([0] + [info.parent.shape[2] for info in infos[:-1]])
    parents, indices = [], []
    for info, before in zip(infos, sizes_before.astype(np.int32), strict=True):
        parents.append(np.asarray(info.parent) + before)
        indices.append(
            np.where(info.particle_index >= 0, info.particle_index + before, info.particle_index)
        )
    parent, particle_index = np.concatenate(parents, axis=2), np.concatenate(indices, axis=1)

    def total(name: str) -> np.ndarray:
        parts = np.stack([np.asarray(getattr(info, name)) for info in infos])
        return parts.sum(axis=0, dtype=parts.dtype)

    rates = np.stack([np.asarray(info.acceptance_rate) for info in infos])
    dropped_dtype = np.asarray(infos[0].dropped_mass).dtype
    return SampleInfo(
        # Only samplers without moves have an evidence: all NaN.
        acceptance_rate=rates.mean(axis=0),
        ess=total("ess"),
        resampled=np.any([info.resampled for info in infos], axis=0),
        forks=total("forks"),
        parent=parent,
        particle_index=particle_index,
        **diagnose(
            arrays["tokens"],
            arrays["lengths"],
            arrays["finished"],
            arrays["log_weights"],
            parent,
            particle_index,
        )._asdict(),
        bad_logits=np.any([info.bad_logits for info in infos], axis=0),
        dropped_mass=run_arrays.dropped_share(results, shares).astype(dropped_dtype),
        model_tokens=total("model_tokens"),
        seconds={phase: sum(info.seconds[phase] for info in infos) for phase in PHASES},
    )


# --- Randomness -------------------------------------------------------------------------------


def _uniforms(
    key: jax.Array,
    purpose: int,
    num_prompts: int,
    prompt_ids: Sequence[int] | None,
    runs: Sequence[int],
) -> np.ndarray:
    """[P, R] numbers in [0, 1) in float64, each from (key, purpose, prompt id, run) only."""
    checks.key(key)
    ids = checks.prompt_ids(prompt_ids, num_prompts)
    folded = jax.random.fold_in(key, purpose)
    keys = jnp.stack([prng.prompt_keys(folded, ids, run) for run in runs], axis=1)
    words = jax.vmap(jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32)))
    bits = np.asarray(words(keys)).astype(np.uint64)
    # 53 bits: 32 of the first word, 21 of the second.
    high, low = bits[..., 0] << np.uint64(21), bits[..., 1] >> np.uint64(11)
    return (high | low).astype(np.float64) * 2.0**-53


def _categorical(weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """[P] int32, an index drawn by weights [P, N]; the convention of ``inverse_cdf``."""
    cdf = np.cumsum(weights, axis=1)
    index = np.sum(cdf <= (uniform * cdf[:, -1])[:, None], axis=1)
    last = np.max(np.where(weights > 0, np.arange(weights.shape[1]), 0), axis=1)
    return np.minimum(index, last).astype(np.int32)
