"""Ancestral decoding: one token after the other at a temperature; the baseline.

A decoder, not a sampler of the power target: a temperature below 1 sharpens every token by
itself. Restrictions of the target hold (its support is renormalised step by step).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_power_smc import checks, inverse_cdf, weights
from jax_power_smc.proposal import draw, log_prob, normalise, power_proposal
from jax_power_smc.randomness import StepUniforms
from jax_power_smc.samplers.base import Outcome, Particles, Selection, extend, start
from jax_power_smc.target import TargetArrays, support
from jax_power_smc.vocabulary import WHOLE, Vocabulary


@dataclasses.dataclass(frozen=True)
class Ancestral:
    """Independent samples at one temperature.

    Attributes:
      temperature: 0 is greedy, 1 the model itself.
      num_samples: independent sequences per prompt (N of the result).

    Raises:
      ValueError: for a value outside its range.
    """

    temperature: float = 1.0
    num_samples: int = 1

    def __post_init__(self) -> None:
        checks.settle(
            self,
            temperature=checks.number("temperature", self.temperature, at_least=0),
            num_samples=checks.integer("num_samples", self.num_samples, at_least=1),
        )

    @property
    def num_particles(self) -> int:
        """N."""
        return self.num_samples

    def rule(self) -> "AncestralRule":
        """The algorithm."""
        return AncestralRule(self.num_samples)

    def numbers(self) -> "AncestralNumbers":
        """The traced scalars."""
        return AncestralNumbers(jnp.asarray(self.temperature, jnp.result_type(float)))


class AncestralNumbers(NamedTuple):
    """Traced scalars of ``Ancestral``."""

    temperature: jax.Array


@dataclasses.dataclass(frozen=True)
class AncestralRule:
    """The algorithm of ``Ancestral``."""

    num_particles: int
    vocabulary: Vocabulary = WHOLE

    @property
    def num_rows(self) -> int:
        """N."""
        return self.num_particles

    @property
    def draws_first(self) -> bool:
        """False: nothing is resampled."""
        return False

    def start(self, dtype: jnp.dtype) -> Particles:
        """N empty sequences."""
        return start(self.num_particles, dtype)

    def advance(
        self,
        numbers: AncestralNumbers,
        target: TargetArrays,
        particles: Particles,
        logits: jax.Array,
        ends: jax.Array,
        uniforms: StepUniforms,
        step: jax.Array,
    ) -> Selection:
        """Draws one token per sequence; logits [N, V] at temperature 1."""
        own = jnp.arange(self.num_particles, dtype=jnp.int32)
        allowed = support(logits, target, ends, step, self.vocabulary)
        normaliser = normalise(logits, self.vocabulary)
        greedy = numbers.temperature == 0
        exponent = 1 / jnp.where(greedy, jnp.ones_like(numbers.temperature), numbers.temperature)
        proposal = power_proposal(
            logits, allowed, exponent, normaliser=normaliser, vocabulary=self.vocabulary
        )
        # A branch: on a CPU finding the largest logit costs more than the draw.
        token = jax.lax.cond(
            greedy,
            lambda: self.vocabulary.argmax(jnp.where(allowed, logits, -jnp.inf)),
            lambda: draw(proposal, own, uniforms.token, self.vocabulary),
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
        token_log_p = log_prob(logits, normaliser, own, token, self.vocabulary)
        token_ends = self.vocabulary.lookup(ends, own, token)
        particles = extend(particles, own, token, token_log_p, active, token_ends)
        ess = weights.effective_sample_size(particles.log_weight)
        return Selection(particles, own, token, active, ess, jnp.zeros((), bool))

    def finish(
        self,
        numbers: AncestralNumbers,
        target: TargetArrays,
        particles: Particles,
        uniforms: jax.Array,
    ) -> Outcome:
        """Equal weights, a uniform choice, no evidence."""
        del numbers, target
        log_weight, total = weights.renormalize(
            particles.log_weight, jnp.zeros_like(particles.log_evidence)
        )
        choice = inverse_cdf.invert(jnp.exp(log_weight), uniforms[:1])[0]
        rows = jnp.arange(self.num_particles, dtype=jnp.int32)
        return Outcome(log_weight, jnp.full_like(total, jnp.nan), choice, rows)
