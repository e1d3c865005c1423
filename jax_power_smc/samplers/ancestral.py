"""Ancestral decoding: one token after the other at a temperature; the baseline.

A decoder, not a sampler of the power target: a temperature below 1 sharpens every token by
itself. Restrictions of the target hold (its support is renormalised step by step).
"""

import dataclasses

import jax
import jax.numpy as jnp

from jax_power_smc.core import checks
from jax_power_smc.core.prng import StepUniforms
from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.samplers.base import FinalWeights, Kernel, Particles, StepResult, extend
from jax_power_smc.samplers.proposal import draw, log_prob, normalise, power_proposal
from jax_power_smc.smc import inverse_cdf, weights
from jax_power_smc.targets.power import TargetArrays, support


@dataclasses.dataclass(frozen=True)
class Ancestral(Kernel):
    """Independent samples at one temperature.

    Attributes:
      temperature: 0 is greedy, 1 the model itself.
      num_samples: independent sequences per prompt (N of the result).

    Raises:
      ValueError: for a value outside its range.
    """

    STATIC = ("num_samples",)
    has_evidence = False

    temperature: float = 1.0
    num_samples: int = 1

    def __post_init__(self) -> None:
        checks.settle(
            self,
            temperature=checks.number("temperature", self.temperature, at_least=0),
            num_samples=checks.integer("num_samples", self.num_samples, at_least=1),
        )

    @property
    def num_particles(self) -> int:  # type: ignore[override]
        """N."""
        return self.num_samples

    def token_temperature(self, alpha: float) -> float:
        """Its own temperature, whatever alpha is."""
        del alpha
        return self.temperature

    def step(
        self,
        target: TargetArrays,
        particles: Particles,
        logits: Logits,
        ends: jax.Array,
        uniforms: StepUniforms,
        step: jax.Array,
    ) -> StepResult:
        """Draws one token per sequence; see ``Kernel.step``."""
        own = jnp.arange(self.num_particles, dtype=jnp.int32)
        allowed = support(logits, target, ends, step)
        normaliser = normalise(logits)
        greedy = self.temperature == 0
        exponent = 1 / jnp.where(greedy, jnp.ones_like(self.temperature), self.temperature)
        proposal = power_proposal(logits, allowed, exponent, normaliser=normaliser)
        # A branch: on a CPU finding the largest logit costs more than the draw.
        token = jax.lax.cond(
            greedy,
            lambda: logits.sharding.argmax(jnp.where(allowed, logits.values, -jnp.inf)),
            lambda: draw(proposal, own, uniforms.token),
        )
        stuck = proposal.log_sum == -jnp.inf
        particles = particles._replace(
            ended=particles.ended | stuck,
            log_weight=jnp.where(
                stuck & ~particles.ended,
                jnp.full_like(particles.log_weight, -jnp.inf),
                particles.log_weight,
            ),
        )
        active = ~particles.ended
        token_log_p = log_prob(logits, normaliser, own, token)
        token_ends = logits.sharding.lookup(ends, own, token)
        particles = extend(particles, own, token, token_log_p, active, token_ends)
        ess = weights.effective_sample_size(particles.log_weight)
        return StepResult(particles, own, token, active, ess, jnp.zeros((), bool))

    def finish(
        self, target: TargetArrays, particles: Particles, uniforms: jax.Array
    ) -> FinalWeights:
        """Equal weights, a uniform choice, no evidence."""
        del target
        log_weight, _ = weights.renormalize(particles.log_weight, particles.log_evidence)
        choice = inverse_cdf.invert(jnp.exp(log_weight), uniforms[:1])[0]
        index = jnp.arange(self.num_particles, dtype=jnp.int32)
        return FinalWeights(log_weight, particles.log_evidence, choice, index)
