"""Independent runs of the same prompts as arrays, for ``evidence``, ``pooling`` and ``pimh``.

Letters: R runs, P prompts. On the host, in float64.
"""

from collections.abc import Iterable, Sequence

import jax
import numpy as np

from jax_power_smc.core import checks, prng
from jax_power_smc.results.result import SampleResult


def as_list(results: Iterable[SampleResult], at_least: int = 1) -> list[SampleResult]:
    """The runs as a list, from any iterable; ValueError unless there are enough of them."""
    if isinstance(results, SampleResult):
        raise ValueError("results is a single result; it must be a list of runs.")
    if not isinstance(results, Iterable):
        raise ValueError(f"results is {results!r}; it must be a list of runs.")
    runs = list(results)
    for index, run in enumerate(runs):
        if not isinstance(run, SampleResult):
            raise ValueError(
                f"results[{index}] is a {type(run).__name__}; it must be a SampleResult."
            )
    if len(runs) < at_least:
        needed = "at least one run is" if at_least == 1 else f"at least {at_least} runs are"
        raise ValueError(f"results has {len(runs)} runs; {needed} needed.")
    return runs


def log_evidence(results: Sequence[SampleResult]) -> np.ndarray:
    """log Z_hat [R, P] in float64; ValueError if the runs do not belong together."""
    num_prompts, _, cap = results[0].tokens.shape
    for index, result in enumerate(results):
        if result.target != results[0].target:
            raise ValueError(
                f"run {index} has the target {result.target} and run 0 {results[0].target}; "
                "all runs must have the same target."
            )
        if result.tokens.shape[0] != num_prompts:
            raise ValueError(
                f"run {index} has {result.tokens.shape[0]} prompts and run 0 {num_prompts}; "
                "all runs must have the same prompts."
            )
        if result.tokens.shape[2] != cap:
            raise ValueError(
                f"run {index} has max_new_tokens {result.tokens.shape[2]} and run 0 {cap}; "
                "the cap is part of the target and must be the same."
            )
        if np.isnan(np.asarray(result.log_evidence)).any():
            raise ValueError(
                f"run {index} has no evidence (NaN); only WithoutReplacement and PowerSMC have one."
            )
    return np.stack([np.asarray(result.log_evidence, np.float64) for result in results])


def dropped_share(results: Sequence[SampleResult], shares: np.ndarray) -> np.ndarray:
    """[P], share of all mass that early stops dropped; shares [R, P] of the kept mass."""
    dropped = np.stack([np.asarray(r.info.dropped_mass, np.float64) for r in results])
    # A run whose mass is 1 has the Z_hat 1 - dropped.
    lost = np.sum(shares * dropped / (1 - dropped), axis=0)
    return lost / (1 + lost)


def log_mass_seen(results: Sequence[SampleResult]) -> np.ndarray:
    """[P], ``log sum_y p(y)^alpha`` over all distinct sequences that the runs returned."""

    def of_all(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(getattr(r, name)) for r in results], axis=1)

    tokens, lengths = of_all("tokens"), of_all("lengths")
    log_probs = of_all("log_probs").astype(np.float64)
    # A sequence of weight zero, or one cut off before the cap, need not be in the support.
    whole = of_all("finished") | (lengths == tokens.shape[2])
    seen = whole & np.isfinite(log_probs) & (of_all("log_weights") > -np.inf)
    mass = np.full((len(tokens),), -np.inf)
    for prompt, inside in enumerate(seen):
        sequences = np.column_stack([tokens[prompt], lengths[prompt]])[inside]
        first = np.unique(sequences, axis=0, return_index=True)[1]
        log_gamma = results[0].target.alpha * log_probs[prompt, inside][first]
        mass[prompt] = np.logaddexp.reduce(log_gamma, initial=-np.inf)
    return mass


def deviation(evidence: np.ndarray) -> np.ndarray:
    """[P], standard deviation over runs [R, P]; inf where a run failed."""
    failed = np.isneginf(evidence)
    spread = np.std(np.where(failed, 0.0, evidence), axis=0, ddof=1)
    return np.where(failed.any(axis=0), np.inf, spread)


def uniforms(
    key: jax.Array,
    purpose: int,
    num_prompts: int,
    prompt_ids: Sequence[int] | None,
    runs: Sequence[int],
) -> np.ndarray:
    """[P, R] of ``prng.host_uniforms``, with the key and the ids checked."""
    key = checks.key(key)
    return prng.host_uniforms(key, purpose, checks.prompt_ids(prompt_ids, num_prompts), runs)
