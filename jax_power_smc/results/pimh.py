"""Particle independent Metropolis-Hastings: a Markov chain over runs (docs/math.md, eq. 31)."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jax_power_smc.core import prng
from jax_power_smc.results import run_arrays
from jax_power_smc.results.result import SampleResult


class IndependenceChain(NamedTuple):
    """A particle independent Metropolis-Hastings chain over R runs, one for each prompt.

    Attributes:
      runs: [P, R] int32, the run at which the chain is after each step; runs[:, 0] is 0.
      draws: [P][R], that run's drawn sequence, repeated while the chain stays; None while the chain
        is at a failed run, which it leaves for the first run that did not fail.
      acceptance_rate: [P], the accepted share of the R - 1 proposed runs.
    """

    runs: np.ndarray
    draws: list[list[list[int] | None]]
    acceptance_rate: np.ndarray


def pimh(
    results: Iterable[SampleResult], key: jax.Array, *, prompt_ids: Sequence[int] | None = None
) -> IndependenceChain:
    """Particle independent Metropolis-Hastings over runs (Andrieu, Doucet and Holenstein 2010).

    The chain starts at run 0 and moves to run r, with that run's draw, with probability ``min(1,
    Z_hat_r / Z_hat_current)``. It leaves the target invariant for every N: the bias of the first
    run is forgotten at least as fast as ``(1 - Z / max Z_hat)^r``.

    Args:
      results: at least two independent runs, as in ``pool``, with ``early_stop=0``.
      key: for the decisions. With more runs the same key continues the chain.
      prompt_ids: as in ``sample``; by default the list index.

    Raises:
      ValueError: as ``pool``; for fewer than two runs; if an early stop dropped mass, which would
        change the invariant distribution.
    """
    results = run_arrays.as_list(results, at_least=2)
    evidence = run_arrays.log_evidence(results)
    for index, result in enumerate(results):
        if np.any(np.asarray(result.info.dropped_mass) > 0):
            raise ValueError(
                f"run {index} dropped mass at an early stop, with which PIMH is not exact; "
                "sample with early_stop=0."
            )
    num_runs, num_prompts = evidence.shape
    alive = evidence > -np.inf
    uniforms = run_arrays.uniforms(key, prng.FOLD_PIMH, num_prompts, prompt_ids, range(num_runs))
    prompts = np.arange(num_prompts)
    runs = np.zeros((num_prompts, num_runs), np.int32)
    accepted = np.zeros((num_prompts,), np.int64)
    with np.errstate(divide="ignore", invalid="ignore"):
        for run in range(1, num_runs):
            log_ratio = evidence[run] - evidence[runs[:, run - 1], prompts]
            accept = alive[run] & (np.log(uniforms[:, run]) < log_ratio)
            runs[:, run] = np.where(accept, run, runs[:, run - 1])
            accepted += accept
    drawn = [result.draw() for result in results]  # [R][P]
    draws = [
        [drawn[run][prompt] if alive[run, prompt] else None for run in path]
        for prompt, path in enumerate(runs.tolist())
    ]
    return IndependenceChain(runs, draws, accepted / (num_runs - 1))
