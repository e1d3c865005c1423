"""The paper's results as functions: Theorem 1, the cost model, exact enumeration."""

from jax_power_smc.theory.weight_variance import (
    StepCost,
    WeightMoments,
    log_power_sum,
    proposal_moments,
    renyi_entropy,
    weight_costs,
    weight_moments,
)

__all__ = [
    "StepCost",
    "WeightMoments",
    "log_power_sum",
    "proposal_moments",
    "renyi_entropy",
    "weight_costs",
    "weight_moments",
]
