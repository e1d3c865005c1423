"""Known mistakes, put in on purpose: the proofs must catch each of them."""

import dataclasses

import jax.numpy as jnp

from jax_power_smc import PowerSMC, WithoutReplacement
from jax_power_smc.smc.exponent_ramp import exponent_at


class _EndsWhereTheRampIs:
    """Ends with the exponent where the ramp happens to be."""

    def finish(self, target, particles, uniforms):
        wrong = target._replace(alpha=particles.exponent)
        return super().finish(wrong, particles, uniforms)


class _BridgesOnlyTheRunning:
    """Bridges only the sequences that are still running."""

    def step(self, target, particles, logits, ends, uniforms, step):
        exponent = exponent_at(step, target.alpha, self.ramp_tokens)
        undo = (exponent - particles.exponent) * particles.log_prob
        log_weight = jnp.where(particles.ended, particles.log_weight - undo, particles.log_weight)
        particles = particles._replace(log_weight=log_weight)
        return super().step(target, particles, logits, ends, uniforms, step)


@dataclasses.dataclass(frozen=True)
class WeightsResetToOne(PowerSMC):
    """Forgets the sum of the weights at a resample."""

    def _resample(self, particles, uniforms, due):
        particles, ess, need, parent = super()._resample(particles, uniforms, due)
        forgotten = jnp.where(need, 0.0, particles.log_evidence)
        return particles._replace(log_evidence=forgotten), ess, need, parent


@dataclasses.dataclass(frozen=True)
class NoCatchUp(_EndsWhereTheRampIs, PowerSMC):
    """Of Power-SMC."""


@dataclasses.dataclass(frozen=True)
class FinishedNotBridged(_BridgesOnlyTheRunning, PowerSMC):
    """Of Power-SMC."""


@dataclasses.dataclass(frozen=True)
class NoCatchUpOfPool(_EndsWhereTheRampIs, WithoutReplacement):
    """Of without-replacement SMC."""


@dataclasses.dataclass(frozen=True)
class PoolNotBridged(_BridgesOnlyTheRunning, WithoutReplacement):
    """Of without-replacement SMC."""
