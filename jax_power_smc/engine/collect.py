"""From what one prompt left on the device to its ``SampleResult``. On the host, in numpy."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jax_power_smc.engine import decode
from jax_power_smc.engine.decode import StepInfo
from jax_power_smc.engine.programs import FinishedPrompts
from jax_power_smc.results.diagnostics import diagnose
from jax_power_smc.results.result import SampleInfo, SampleResult
from jax_power_smc.samplers import Kernel
from jax_power_smc.targets.power import PowerTarget


def collect(
    sampler: Kernel,
    target: PowerTarget,
    cap: int,
    lefts: Sequence[FinishedPrompts],
    seens: Sequence[StepInfo],
    seconds: dict[str, float],
) -> SampleResult:
    """The result of P prompts with the same target and cap, in host memory.

    Args:
      sampler: how the particles took their steps.
      target: the declared target.
      cap: T.
      lefts: what each left behind, [1, ...], in host memory.
      seens: the first steps of each, [1, steps, ...]; those beyond T are dropped, and missing ones
        count as steps that did not run.
      seconds: by phase.
    """
    left: Any = jax.tree.map(lambda *xs: np.concatenate(xs), *lefts)
    seen = _observed(sampler, seens, cap)
    final, particles = left.final, left.particles
    index = np.asarray(final.particle_index)

    def returned(x: np.ndarray, nothing: Any) -> np.ndarray:
        """[P, N, ...] of the returned particles, out of the population's [P, M, ...]."""
        there = index.reshape(*index.shape, *(1,) * (x.ndim - 2))
        taken = np.take_along_axis(np.asarray(x), np.maximum(there, 0), axis=1)
        return np.where(there >= 0, taken, np.asarray(nothing, x.dtype))

    sequences = {
        "tokens": returned(np.asarray(left.tokens)[:, :, :cap], decode.PAD_ID),
        "lengths": returned(particles.length, 0),
        "finished": returned(particles.finished, False),
    }
    log_weights, evidence = np.asarray(final.log_weight), np.asarray(final.log_evidence)
    info = SampleInfo(
        ess=seen.ess,
        resampled=seen.resampled,
        forks=seen.forks,
        parent=seen.parent,
        particle_index=index,
        **diagnose(
            **sequences, log_weights=log_weights, parent=seen.parent, particle_index=index
        )._asdict(),
        bad_logits=np.any(seen.bad_logits, axis=1),
        dropped_mass=np.asarray(particles.dropped),
        acceptance_rate=np.full((len(index),), np.nan),
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


def _observed(sampler: Kernel, seens: Sequence[Any], cap: int) -> Any:
    """``StepInfo`` [P, T, ...] in numpy: what every prompt's steps were seen to do."""
    count, own = len(seens), np.arange(sampler.population_size, dtype=np.int32)
    fields: dict[str, Any] = {
        "ess": np.full((count, cap), sampler.num_particles, seens[0].ess.dtype),
        "resampled": np.zeros((count, cap), bool),
        "forks": np.zeros((count, cap), np.int32),
        "parent": np.tile(own, (count, cap, 1)),
        "bad_logits": np.zeros((count, cap), bool),
    }
    seen: Any = StepInfo(**fields)
    for row, one in enumerate(seens):
        for whole, part in zip(seen, one, strict=True):
            steps = min(cap, part.shape[1])
            whole[row, :steps] = part[0, :steps]
    if sampler.draws_first:
        # The parents of step t were chosen after its token: they say whose tokens 0..t a slot
        # holds, which in the genealogy is the parent at t + 1.
        seen.parent[:, 1:] = seen.parent[:, :-1].copy()
        seen.parent[:, 0] = own
    return seen
