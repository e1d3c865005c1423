"""Pooling: the particles of independent runs as one population (docs/math.md, eq. 28).

Letters: R runs, P prompts, N particles, M particles of a population. All sums are taken on the
host in float64.
"""

import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc.core import prng
from jax_power_smc.results import run_arrays
from jax_power_smc.results.diagnostics import diagnose
from jax_power_smc.results.result import PHASES, SampleInfo, SampleResult


def pool(
    results: Iterable[SampleResult], key: jax.Array, *, prompt_ids: Sequence[int] | None = None
) -> SampleResult:
    """Joins the particles of independent runs into one properly weighted population.

    Particle i of run r gets the weight ``Z_hat_r W_i^r``, so a run counts in proportion to its
    evidence; the pooled evidence is the runs' mean. Runs may differ in N. Pool all runs in one
    call: every run counts once, and so would a pooled result.

    ``choice`` is redrawn from all particles. In the pooled ``info``:

    * parent, particle_index: run r's are shifted by the population sizes of the runs before it,
      which puts the runs' genealogies side by side.
    * ess, forks, model_tokens, drawn_tokens, num_rows, copies, preempted, seconds: sums over
      runs. The sum of the ESS describes the separate
      runs; the pooled population's ESS is at most that, and its final value follows from
      ``log_weights``.
    * resampled, bad_logits: true if they are for any run.
    * dropped_mass: as a share of the pooled evidence.

    Args:
      results: R runs of the same prompts in the same order, with the same target and cap.
      key: for the choice.
      prompt_ids: as in ``sample``; by default the list index.

    Returns:
      A result whose N is the sum of the runs'. A single run is returned as it is, except for the
      choice.

    Raises:
      ValueError: if there is no run, a run has no evidence, or the runs differ in target, cap or
        number of prompts.
    """
    results = run_arrays.as_list(results)
    evidence = run_arrays.log_evidence(results)
    total = np.logaddexp.reduce(evidence, axis=0)
    # [R, P], the runs' shares of the evidence; all zero where every run failed.
    log_share = evidence - np.where(total > -np.inf, total, 0.0)
    pairs = zip(results, log_share[:, :, None], strict=True)
    log_weights = np.concatenate(
        [np.asarray(result.log_weights, np.float64) + share for result, share in pairs], axis=1
    )
    uniform = run_arrays.uniforms(key, prng.FOLD_POOL, len(total), prompt_ids, [0])[:, 0]

    def joined(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(getattr(r, name)) for r in results], axis=1)

    def like(name: str, values: np.ndarray) -> np.ndarray:
        return values.astype(np.result_type(*[np.asarray(getattr(r, name)).dtype for r in results]))

    names = ("tokens", "lengths", "finished", "log_probs", "token_log_probs")
    arrays = {name: joined(name) for name in names}
    arrays["log_weights"] = like("log_weights", log_weights)
    arrays["log_evidence"] = like("log_evidence", total - math.log(len(results)))
    arrays["choice"] = _categorical(np.exp(log_weights), uniform)
    return SampleResult(
        **{name: jnp.asarray(x) for name, x in arrays.items()},
        target=results[0].target,
        info=_pooled_info(results, arrays, np.exp(log_share)),
    )


def _pooled_info(
    results: Sequence[SampleResult], arrays: dict[str, np.ndarray], shares: np.ndarray
) -> SampleInfo:
    """The pooled ``info``, see ``pool``; shares [R, P] of the evidence."""
    infos = [result.info for result in results]
    offsets = np.cumsum([0] + [info.parent.shape[2] for info in infos[:-1]]).astype(np.int32)
    shifted = list(zip(infos, offsets, strict=True))
    parent = np.concatenate([np.asarray(info.parent) + offset for info, offset in shifted], axis=2)
    index = [np.where((i := info.particle_index) >= 0, i + offset, i) for info, offset in shifted]
    particle_index = np.concatenate(index, axis=1)

    def total(name: str) -> np.ndarray:
        parts = np.stack([np.asarray(getattr(info, name)) for info in infos])
        return parts.sum(axis=0, dtype=parts.dtype)

    own = {name: arrays[name] for name in ("tokens", "lengths", "finished", "log_weights")}
    rates = np.stack([np.asarray(info.acceptance_rate) for info in infos])
    dropped_dtype = np.asarray(infos[0].dropped_mass).dtype
    return SampleInfo(
        # Only samplers without moves have an evidence, so these are all NaN.
        acceptance_rate=rates.mean(axis=0),
        ess=total("ess"),
        resampled=np.any([info.resampled for info in infos], axis=0),
        forks=total("forks"),
        parent=parent,
        particle_index=particle_index,
        **diagnose(**own, parent=parent, particle_index=particle_index)._asdict(),
        bad_logits=np.any([info.bad_logits for info in infos], axis=0),
        dropped_mass=run_arrays.dropped_share(results, shares).astype(dropped_dtype),
        model_tokens=total("model_tokens"),
        drawn_tokens=total("drawn_tokens"),
        num_rows=total("num_rows"),
        copies=total("copies"),
        preempted=total("preempted"),
        seconds={phase: sum(info.seconds[phase] for info in infos) for phase in PHASES},
    )


def _categorical(weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """[P] int32, one index per prompt drawn by weights [P, N]; as ``smc.inverse_cdf`` does."""
    cdf = np.cumsum(weights, axis=1)
    index = np.sum(cdf <= (uniform * cdf[:, -1])[:, None], axis=1)
    last = np.max(np.where(weights > 0, np.arange(weights.shape[1]), 0), axis=1)
    return np.minimum(index, last).astype(np.int32)
