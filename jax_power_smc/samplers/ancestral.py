"""Ancestral decoding, the baseline: one token after another at a fixed temperature.

It is a decoder, not a sampler of the power target: a temperature below 1 sharpens each token's
distribution separately. It does respect the target's restrictions, by renormalising over the
support at every step.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_power_smc.core import checks
from jax_power_smc.core.prng import StepUniforms
from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.samplers.base import (
    FinalWeights,
    Kernel,
    Particles,
    RowTargets,
    StepResult,
    extend,
    final_weights,
)
from jax_power_smc.samplers.proposal import ProposalTables, draw, normalise, power_proposal
from jax_power_smc.smc import weights
from jax_power_smc.targets.power import TargetArrays


class AncestralTables(NamedTuple):
    """Proposals of R prefixes.

    Attributes:
      of: the proposals.
      best: [R] int32, the most probable token of each; 0 unless decoding is greedy.
    """

    of: ProposalTables
    best: jax.Array

    @property
    def is_bad(self) -> jax.Array:
        """[R] bool, see ``Normaliser``."""
        return self.of.is_bad


@dataclasses.dataclass(frozen=True)
class Ancestral(Kernel):
    """Independent samples at one temperature.

    Attributes:
      temperature: 0 is greedy, 1 the model itself.
      num_samples: N, independent sequences per prompt.

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

    def exponent(self, target: TargetArrays, step: jax.Array) -> jax.Array:
        """The inverse temperature, 1 if greedy."""
        del target, step
        greedy = self.temperature == 0
        return 1 / jnp.where(greedy, jnp.ones_like(self.temperature), self.temperature)

    def tables(self, logits: Logits, rows: RowTargets) -> "AncestralTables":
        """Each prefix's proposal, and its most probable token; see ``Kernel.tables``."""
        normaliser = normalise(logits)
        proposal = power_proposal(logits, rows.allowed, rows.exponent, normaliser=normaliser)
        # A branch, because on a CPU finding the largest logit costs more than the draw.
        best = jax.lax.cond(
            self.temperature == 0,
            lambda: logits.sharding.argmax(jnp.where(rows.allowed, logits.values, -jnp.inf)),
            lambda: jnp.zeros((logits.values.shape[0],), jnp.int32),
        )
        return AncestralTables(ProposalTables(logits, rows.ends, normaliser, proposal), best)

    def advance(
        self,
        target: TargetArrays,
        particles: Particles,
        row: jax.Array,
        tables: "AncestralTables",
        uniforms: StepUniforms,
        step: jax.Array,
    ) -> StepResult:
        """Draws one token per sequence; see ``Kernel.advance``."""
        del target, step
        own = jnp.arange(self.num_particles, dtype=jnp.int32)
        drawn = draw(tables.of.proposal, row, uniforms.token)
        token = jnp.where(self.temperature == 0, tables.best[row], drawn)
        token, token_log_p, token_ends = tables.of.at(row, token)
        # A sequence without a possible continuation stops here with weight zero.
        stuck = ~particles.ended & (tables.of.proposal.log_sum[row] == -jnp.inf)
        particles = particles._replace(
            ended=particles.ended | stuck,
            log_weight=jnp.where(
                stuck, jnp.full_like(particles.log_weight, -jnp.inf), particles.log_weight
            ),
        )
        active = ~particles.ended
        particles = extend(particles, token_log_p, active, token_ends)
        ess = weights.effective_sample_size(particles.log_weight)
        never = jnp.zeros((), bool)
        return StepResult(particles, own, token, token_log_p, active, ess, never)

    def finish(
        self, target: TargetArrays, particles: Particles, uniforms: jax.Array
    ) -> FinalWeights:
        """Equal weights, and so a uniform draw."""
        del target
        return final_weights(particles.log_weight, particles.log_evidence, uniforms[0])
