"""Particle independent Metropolis-Hastings: a Markov chain over runs (docs/math.md)."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jax_power_smc.results import run_arrays
from jax_power_smc.results.evidence import _uniforms
from jax_power_smc.results.result import SampleResult

_PIMH = 0x70696D68


class IndependenceChain(NamedTuple):
    """A particle independent Metropolis-Hastings chain over R runs, one per prompt.

    Attributes:
      runs: [P, R] int32, the run that the chain is at after each step; runs[:, 0] is 0.
      draws: [P][R], the drawn sequence of that run, repeated while the chain stays; None while it
        is at a failed run, which it leaves for the first other one.
      acceptance_rate: [P], accepted share of the R - 1 proposed runs.
    """

    runs: np.ndarray
    draws: list[list[list[int] | None]]
    acceptance_rate: np.ndarray


def pimh(
    results: Iterable[SampleResult], key: jax.Array, *, prompt_ids: Sequence[int] | None = None
) -> IndependenceChain:
    """Particle independent Metropolis-Hastings over runs (Andrieu, Doucet and Holenstein 2010).

    Starts at run 0 and moves to run r with probability ``min(1, Z_hat_r / Z_hat_current)``, taking
    that run's draw along. The chain leaves the target invariant whatever N is: what remains of the
    first run's bias is forgotten with the steps, at least as fast as ``(1 - Z / max Z_hat)^r``.

    Args:
      results: at least two independent runs, as in ``pool``, with ``early_stop=0``.
      key: for the decisions. More runs continue the chain of fewer.
      prompt_ids: as in ``sample.sample``; default the list index.

    Raises:
      ValueError: as ``pool``; for fewer than two runs; if an early stop dropped mass, which would
        change the distribution that the chain keeps.
    """
    results = run_arrays.listed(results, at_least=2)
    evidence = run_arrays.log_evidence(results)
    for index, result in enumerate(results):
        if np.any(np.asarray(result.info.dropped_mass) > 0):
            raise ValueError(
                f"run {index} dropped mass by an early stop, which PIMH does not keep exact; "
                "sample with early_stop=0."
            )
    num, count = evidence.shape
    alive = evidence > -np.inf
    uniforms = _uniforms(key, _PIMH, count, prompt_ids, range(num))
    prompts = np.arange(count)
    runs = np.zeros((count, num), np.int32)
    accepted = np.zeros((count,), np.int64)
    with np.errstate(divide="ignore", invalid="ignore"):
        for run in range(1, num):
            log_ratio = evidence[run] - evidence[runs[:, run - 1], prompts]
            accept = alive[run] & (np.log(uniforms[:, run]) < log_ratio)
            runs[:, run] = np.where(accept, run, runs[:, run - 1])
            accepted += accept
    choice = [np.asarray(result.choice) for result in results]
    tokens = [np.asarray(r.tokens)[prompts, c] for r, c in zip(results, choice, strict=True)]
    lengths = [np.asarray(r.lengths)[prompts, c] for r, c in zip(results, choice, strict=True)]
    draws = [
        [tokens[r][p, : lengths[r][p]].tolist() if alive[r, p] else None for r in row]
        for p, row in enumerate(runs.tolist())
    ]
    return IndependenceChain(runs, draws, accepted / (num - 1))
