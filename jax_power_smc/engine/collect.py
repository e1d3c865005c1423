"""From the outcome of finished prompts to their ``SampleResult``. On the host, in numpy."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jax_power_smc.engine.request import ActiveRequest
from jax_power_smc.engine.state import PAD_ID
from jax_power_smc.results.diagnostics import diagnose
from jax_power_smc.results.result import SampleInfo, SampleResult
from jax_power_smc.samplers import Sampler


def collect(
    sampler: Sampler, requests: Sequence[ActiveRequest], seconds: dict[str, float]
) -> SampleResult:
    """The result of P finished prompts with the same target and cap T, in host memory.

    Steps that did not run count as steps at which nothing happened.
    """
    target, cap = requests[0].target, requests[0].cap
    outcomes = [request.outcome for request in requests]
    outcome: Any = jax.tree.map(lambda *xs: np.concatenate(xs), *outcomes)
    final, particles = outcome.final, outcome.particles
    steps = _steps(sampler, requests, cap, population_size=particles.length.shape[1])
    index = np.asarray(final.particle_index)

    def returned(x: np.ndarray, unused: Any) -> np.ndarray:
        """[P, N] of the returned particles, out of the population's [P, M]."""
        taken = np.take_along_axis(np.asarray(x), np.maximum(index, 0), axis=1)
        return np.where(index >= 0, taken, np.asarray(unused, x.dtype))

    def total(name: str) -> np.ndarray:
        return np.asarray(np.sum(steps[name], axis=1, dtype=np.int32))

    def sequences(name: str, unused: Any) -> np.ndarray:
        found = np.stack([getattr(request, name) for request in requests])
        return np.where(index[:, :, None] >= 0, found, np.asarray(unused, found.dtype))

    found = {
        "tokens": sequences("tokens", PAD_ID),
        "lengths": returned(particles.length, 0),
        "finished": returned(particles.finished, False),
    }
    log_weights, evidence = np.asarray(final.log_weight), np.asarray(final.log_evidence)
    drawn = np.asarray(particles.drawn)
    # The prompt's own row, and those after every step but the last, which leaves none.
    model_tokens = 1 + total("num_rows")
    parent = steps["parent"]
    info = SampleInfo(
        ess=steps["ess"],
        resampled=steps["resampled"],
        forks=steps["forks"],
        parent=parent,
        particle_index=index,
        **diagnose(**found, log_weights=log_weights, parent=parent, particle_index=index)._asdict(),
        bad_logits=np.any(steps["bad_logits"], axis=1),
        dropped_mass=np.asarray(particles.dropped),
        acceptance_rate=np.array([request.acceptance_rate for request in requests]),
        model_tokens=drawn if sampler.runs_as_chains else model_tokens,
        drawn_tokens=drawn,
        num_rows=steps["num_rows"],
        copies=total("copies"),
        preempted=np.array([request.num_preempted for request in requests], np.int32),
        seconds=dict(seconds),
    )
    return SampleResult(
        **found,
        log_probs=returned(particles.log_prob, 0.0),
        token_log_probs=sequences("token_log_probs", 0.0),
        log_weights=log_weights,
        log_evidence=evidence if sampler.has_evidence else np.full_like(evidence, np.nan),
        choice=np.asarray(final.choice),
        target=target,
        info=info,
    )


def _steps(
    sampler: Sampler, requests: Sequence[ActiveRequest], cap: int, population_size: int
) -> dict[str, np.ndarray]:
    """What was recorded at each step of every prompt, [P, T, ...]."""
    recorded: list[Any] = [request.steps for request in requests]
    count, unmoved = len(recorded), np.arange(population_size, dtype=np.int32)
    steps: dict[str, np.ndarray] = {
        "ess": np.full((count, cap), sampler.num_particles, recorded[0].ess.dtype),
        "resampled": np.zeros((count, cap), bool),
        "parent": np.tile(unmoved, (count, cap, 1)),
        "bad_logits": np.zeros((count, cap), bool),
        "num_rows": np.zeros((count, cap), np.int32),
        "copies": np.zeros((count, cap), np.int32),
    }
    for number, one in enumerate(recorded):
        for name, whole in steps.items():
            part = getattr(one, name)
            whole[number, : len(part)] = part
    running = unmoved[: sampler.num_particles]
    moved = steps["parent"][:, :, : sampler.num_particles] != running
    steps["forks"] = np.asarray(np.sum(moved, axis=2, dtype=np.int32))
    if getattr(sampler, "draws_first", False):
        # The parents of step t were chosen after its token: they say whose tokens 0..t a particle
        # holds, which in the genealogy is the parent at t + 1.
        steps["parent"][:, 1:] = steps["parent"][:, :-1].copy()
        steps["parent"][:, 0] = unmoved
    return steps
