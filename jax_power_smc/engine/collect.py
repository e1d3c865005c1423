"""From the outcome of finished prompts to their ``SampleResult``. On the host, in numpy."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jax_power_smc.engine import decode
from jax_power_smc.engine.decode import StepInfo
from jax_power_smc.engine.request import ActiveRequest
from jax_power_smc.results.diagnostics import diagnose
from jax_power_smc.results.result import SampleInfo, SampleResult
from jax_power_smc.samplers import Sampler


def collect(
    sampler: Sampler, requests: Sequence[ActiveRequest], seconds: dict[str, float]
) -> SampleResult:
    """The result of P finished prompts with the same target and cap T, in host memory.

    Steps beyond T are dropped, and missing ones count as steps that did not run.
    """
    target, cap = requests[0].target, requests[0].cap
    outcomes = [request.outcome for request in requests]
    outcome: Any = jax.tree.map(lambda *xs: np.concatenate(xs), *outcomes)
    final, particles = outcome.final, outcome.particles
    steps = _steps(sampler, requests, cap, population_size=particles.length.shape[1])
    index = np.asarray(final.particle_index)

    def returned(x: np.ndarray, unused: Any) -> np.ndarray:
        """[P, N, ...] of the returned particles, out of the population's [P, M, ...]."""
        exists = index.reshape(*index.shape, *(1,) * (x.ndim - 2))
        taken = np.take_along_axis(np.asarray(x), np.maximum(exists, 0), axis=1)
        return np.where(exists >= 0, taken, np.asarray(unused, x.dtype))

    sequences = {
        "tokens": returned(np.asarray(outcome.tokens)[:, :, :cap], decode.PAD_ID),
        "lengths": returned(particles.length, 0),
        "finished": returned(particles.finished, False),
    }
    log_weights, evidence = np.asarray(final.log_weight), np.asarray(final.log_evidence)
    info = SampleInfo(
        ess=steps.ess,
        resampled=steps.resampled,
        forks=steps.forks,
        parent=steps.parent,
        particle_index=index,
        **diagnose(
            **sequences, log_weights=log_weights, parent=steps.parent, particle_index=index
        )._asdict(),
        bad_logits=np.any(steps.bad_logits, axis=1),
        dropped_mass=np.asarray(particles.dropped),
        acceptance_rate=np.array([request.acceptance_rate for request in requests]),
        model_tokens=np.asarray(particles.drawn),
        seconds=dict(seconds),
    )
    return SampleResult(
        **sequences,
        log_probs=returned(particles.log_prob, 0.0),
        log_weights=log_weights,
        log_evidence=evidence if sampler.has_evidence else np.full_like(evidence, np.nan),
        choice=np.asarray(final.choice),
        target=target,
        info=info,
    )


def _steps(
    sampler: Sampler, requests: Sequence[ActiveRequest], cap: int, population_size: int
) -> Any:
    """``StepInfo`` [P, T, ...] in numpy: what was observed at each step of every prompt."""
    observed: list[Any] = [request.steps for request in requests]
    count, unmoved = len(observed), np.arange(population_size, dtype=np.int32)
    fields: dict[str, Any] = {
        "ess": np.full((count, cap), sampler.num_particles, observed[0].ess.dtype),
        "resampled": np.zeros((count, cap), bool),
        "forks": np.zeros((count, cap), np.int32),
        "parent": np.tile(unmoved, (count, cap, 1)),
        "bad_logits": np.zeros((count, cap), bool),
    }
    steps: Any = StepInfo(**fields)
    for number, one in enumerate(observed):
        for whole, part in zip(steps, one, strict=True):
            length = min(cap, part.shape[1])
            whole[number, :length] = part[0, :length]
    if getattr(sampler, "draws_first", False):
        # The parents of step t were chosen after its token: they say whose tokens 0..t a particle
        # holds, which in the genealogy is the parent at t + 1.
        steps.parent[:, 1:] = steps.parent[:, :-1].copy()
        steps.parent[:, 0] = unmoved
    return steps
