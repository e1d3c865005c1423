"""From what was recorded of finished prompts to their ``SampleResult``. On the host, in NumPy.

Letters: P prompts, N particles returned, M particles of the population, T the cap.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from jax_power_smc.results.diagnostics import diagnose
from jax_power_smc.results.result import SampleInfo, SampleResult
from jax_power_smc.samplers.base import FinalWeights, Particles, Sampler
from jax_power_smc.targets.power import PowerTarget


class Steps(NamedTuple):
    """What happened at each step; nothing happens at steps that did not run.

    Attributes:
      parent: [P, T, M] int32, whom each particle continued in this step.
      ess, resampled, bad_logits: [P, T].
      num_rows, copies: [P, T] int32, rows of the model after the step, and rows that were copied.
    """

    parent: np.ndarray
    ess: np.ndarray
    resampled: np.ndarray
    bad_logits: np.ndarray
    num_rows: np.ndarray
    copies: np.ndarray


def assemble(
    sampler: Sampler,
    target: PowerTarget,
    final: FinalWeights,
    particles: Particles,
    steps: Steps,
    *,
    tokens: np.ndarray,
    token_log_probs: np.ndarray,
    seconds: dict[str, float],
    acceptance_rate: np.ndarray | None = None,
    preempted: np.ndarray | None = None,
) -> SampleResult:
    """The result of P prompts.

    Args:
      sampler, target: what was sampled, and how.
      final, particles: leaves [P, ...].
      steps: what was recorded.
      tokens, token_log_probs: [P, N, T] of the returned particles; anything for unused ones.
      seconds: by phase.
      acceptance_rate, preempted: [P], see ``SampleInfo``; default NaN, and never.
    """
    on_host: tuple[Any, Any] = jax.tree.map(np.asarray, (final, particles))
    outcome, population = on_host
    index, evidence = outcome.particle_index, outcome.log_evidence

    def used(x: Any) -> np.ndarray:
        """[P, N, ...] with pad, zero or False for unused particles."""
        exists = index.reshape(*index.shape, *(1,) * (x.ndim - 2)) >= 0
        return np.where(exists, x, np.zeros((), x.dtype))

    def returned(x: Any) -> np.ndarray:
        """[P, N] of the returned particles, out of the population's [P, M]."""
        return used(np.take_along_axis(x, np.maximum(index, 0), axis=1))

    def over_steps(x: np.ndarray) -> np.ndarray:
        return np.asarray(np.sum(x, axis=1, dtype=np.int32))

    unmoved = np.arange(steps.parent.shape[2], dtype=np.int32)
    running = slice(sampler.num_particles)
    moved = steps.parent[:, :, running] != unmoved[running]
    parent = steps.parent
    if getattr(sampler, "draws_first", False):
        # The parents of step t were chosen after its token: they say whose tokens 0..t a particle
        # holds, which in the genealogy is the parent at t + 1.
        first = np.broadcast_to(unmoved, parent[:, :1].shape)
        parent = np.concatenate([first, parent[:, :-1]], axis=1)
    sequences = {
        "tokens": used(tokens),
        "lengths": returned(population.length),
        "finished": returned(population.finished),
    }
    diagnostics = diagnose(
        **sequences, log_weights=outcome.log_weight, parent=parent, particle_index=index
    )
    count, drawn = len(index), population.drawn
    if acceptance_rate is None:
        acceptance_rate = np.full((count,), np.nan)
    info = SampleInfo(
        ess=steps.ess,
        resampled=steps.resampled,
        forks=np.asarray(np.sum(moved, axis=2, dtype=np.int32)),
        parent=parent,
        particle_index=index,
        **diagnostics._asdict(),
        bad_logits=np.any(steps.bad_logits, axis=1),
        dropped_mass=population.dropped,
        acceptance_rate=acceptance_rate,
        # The prompt's last token, and then one for each prefix that runs on.
        model_tokens=drawn if sampler.runs_as_chains else 1 + over_steps(steps.num_rows),
        drawn_tokens=drawn,
        num_rows=steps.num_rows,
        copies=over_steps(steps.copies),
        preempted=np.zeros((count,), np.int32) if preempted is None else preempted,
        seconds=dict(seconds),
    )
    return SampleResult(
        **sequences,
        log_probs=returned(population.log_prob),
        token_log_probs=used(token_log_probs),
        log_weights=outcome.log_weight,
        log_evidence=evidence if sampler.has_evidence else np.full_like(evidence, np.nan),
        choice=outcome.choice,
        target=target,
        info=info,
    )
