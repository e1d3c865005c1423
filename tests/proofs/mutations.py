"""Known mistakes, made on purpose (docs/math.md, "Proofs"): the proofs must catch each of them."""

import dataclasses

import jax.numpy as jnp

from jax_power_smc import PowerSMC, WithoutReplacement
from jax_power_smc.smc import optimal_resampling


class _WithoutCatchUp:
    """Skips eq. 13: ends with the exponent that the ramp has reached."""

    def finish(self, target, particles, uniforms):
        wrong = target._replace(alpha=particles.exponent)
        return super().finish(wrong, particles, uniforms)


class _BridgesOnlyTheRunning:
    """Applies eq. 11 only to sequences that are still running."""

    def advance(self, target, particles, row, tables, uniforms, step):
        undo = (self.exponent(target, step) - particles.exponent) * particles.log_prob
        log_weight = jnp.where(particles.ended, particles.log_weight - undo, particles.log_weight)
        particles = particles._replace(log_weight=log_weight)
        return super().advance(target, particles, row, tables, uniforms, step)


@dataclasses.dataclass(frozen=True)
class WeightsResetToOne(PowerSMC):
    """Loses the sum of the weights at a resample (eq. 16)."""

    def _resample(self, particles, uniforms, due):
        particles, ess, need, parent = super()._resample(particles, uniforms, due)
        forgotten = jnp.where(need, 0.0, particles.log_evidence)
        return particles._replace(log_evidence=forgotten), ess, need, parent


@dataclasses.dataclass(frozen=True)
class NoCatchUp(_WithoutCatchUp, PowerSMC):
    """In Power-SMC."""


@dataclasses.dataclass(frozen=True)
class FinishedNotBridged(_BridgesOnlyTheRunning, PowerSMC):
    """In Power-SMC."""


@dataclasses.dataclass(frozen=True)
class NoCatchUpOfPool(_WithoutCatchUp, WithoutReplacement):
    """In without-replacement SMC."""


@dataclasses.dataclass(frozen=True)
class PoolNotBridged(_BridgesOnlyTheRunning, WithoutReplacement):
    """In without-replacement SMC."""


def keep_own_weight(log_mass, num_keep, uniform, log_floor=None):
    """In place of ``select``: survivors of the systematic pass keep their own weight, not c."""
    kept = optimal_resampling.select(log_mass, num_keep, uniform, log_floor) > -jnp.inf
    return jnp.where(kept, log_mass, -jnp.inf)


_systematic_cdf = optimal_resampling.systematic_cdf


def round_points(log_mass, log_c, num_keep, by_floor=False):
    """In place of ``systematic_cdf``: a floor, too, fills all places."""
    del by_floor
    return _systematic_cdf(log_mass, log_c, num_keep)
