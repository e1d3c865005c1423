"""Samplers: how a population of sequences takes one step."""

from jax_power_smc.samplers.ancestral import Ancestral
from jax_power_smc.samplers.base import FinalWeights, Kernel, Particles, Sampler, StepResult
from jax_power_smc.samplers.metropolis_hastings import MetropolisHastings
from jax_power_smc.samplers.power_smc import PowerSMC
from jax_power_smc.samplers.without_replacement import WithoutReplacement

__all__ = [
    "Ancestral",
    "FinalWeights",
    "Kernel",
    "MetropolisHastings",
    "Particles",
    "PowerSMC",
    "Sampler",
    "StepResult",
    "WithoutReplacement",
]
