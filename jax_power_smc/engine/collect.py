"""From the outcome of finished requests to their ``SampleResult``. On the host, in NumPy."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jax_power_smc.engine.request import ActiveRequest
from jax_power_smc.results.assemble import Steps, assemble
from jax_power_smc.results.result import SampleResult
from jax_power_smc.samplers import Sampler


def collect(
    sampler: Sampler, requests: Sequence[ActiveRequest], seconds: dict[str, float]
) -> SampleResult:
    """The result of P finished prompts with the same target and cap T, in host memory."""
    outcomes = [request.outcome for request in requests]
    outcome: Any = jax.tree.map(lambda *xs: np.concatenate(xs), *outcomes)
    population_size = outcome.particles.length.shape[1]
    tokens: list[Any] = [request.tokens for request in requests]
    log_probs: list[Any] = [request.token_log_probs for request in requests]
    return assemble(
        sampler,
        requests[0].target,
        outcome.final,
        outcome.particles,
        _steps(sampler, requests, population_size),
        tokens=np.stack(tokens),
        token_log_probs=np.stack(log_probs),
        acceptance_rate=np.array([request.acceptance_rate for request in requests]),
        preempted=np.array([request.num_preempted for request in requests], np.int32),
        seconds=seconds,
    )


def _steps(sampler: Sampler, requests: Sequence[ActiveRequest], population_size: int) -> Steps:
    """What was recorded at each step of every prompt, up to the cap."""
    recorded: list[Any] = [request.steps for request in requests]
    shape = len(recorded), requests[0].cap
    steps = Steps(
        parent=np.tile(np.arange(population_size, dtype=np.int32), (*shape, 1)),
        ess=np.full(shape, sampler.num_particles, recorded[0].ess.dtype),
        resampled=np.zeros(shape, bool),
        bad_logits=np.zeros(shape, bool),
        num_rows=np.zeros(shape, np.int32),
        copies=np.zeros(shape, np.int32),
    )
    for number, one in enumerate(recorded):
        for name, whole in steps._asdict().items():
            part = getattr(one, name)
            whole[number, : len(part)] = part
    return steps
