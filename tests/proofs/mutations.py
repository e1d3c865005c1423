"""Known mistakes, put in on purpose: the proofs must catch each of them."""

import dataclasses

import jax.numpy as jnp

from jax_power_smc.samplers.power_smc import PowerSMCRule
from jax_power_smc.samplers.without_replacement import WithoutReplacementRule
from jax_power_smc.schedule import exponent_at


class _EndsWhereTheRampIs:
    """Ends with the exponent where the ramp happens to be."""

    def finish(self, numbers, target, particles, uniforms):
        wrong = target._replace(alpha=particles.exponent)
        return super().finish(numbers, wrong, particles, uniforms)


class _BridgesOnlyTheRunning:
    """Bridges only the sequences that are still running."""

    def advance(self, numbers, target, particles, logits, ends, uniforms, step):
        exponent = exponent_at(step, target.alpha, numbers.ramp_tokens)
        undo = (exponent - particles.exponent) * particles.log_prob
        log_weight = jnp.where(particles.ended, particles.log_weight - undo, particles.log_weight)
        particles = particles._replace(log_weight=log_weight)
        return super().advance(numbers, target, particles, logits, ends, uniforms, step)


@dataclasses.dataclass(frozen=True)
class WeightsResetToOne(PowerSMCRule):
    """Forgets the sum of the weights at a resample."""

    def _resample(self, numbers, particles, uniforms, due):
        particles, ess, need, parent = super()._resample(numbers, particles, uniforms, due)
        forgotten = jnp.where(need, 0.0, particles.log_evidence)
        return particles._replace(log_evidence=forgotten), ess, need, parent


@dataclasses.dataclass(frozen=True)
class NoCatchUp(_EndsWhereTheRampIs, PowerSMCRule):
    """Of Power-SMC."""


@dataclasses.dataclass(frozen=True)
class FinishedNotBridged(_BridgesOnlyTheRunning, PowerSMCRule):
    """Of Power-SMC."""


@dataclasses.dataclass(frozen=True)
class NoCatchUpOfRows(_EndsWhereTheRampIs, WithoutReplacementRule):
    """Of without-replacement SMC."""


@dataclasses.dataclass(frozen=True)
class PoolNotBridged(_BridgesOnlyTheRunning, WithoutReplacementRule):
    """Of without-replacement SMC."""
