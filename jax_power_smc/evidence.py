"""What several independent runs say together: ``psmc.evidence``, in one place for users."""

from jax_power_smc.engine.independent_runs import independent_runs
from jax_power_smc.results.evidence import (
    EvidenceInterval,
    KLFigure,
    evidence_interval,
    kl_figure,
    pool,
)
from jax_power_smc.results.pimh import IndependenceChain, pimh

__all__ = [
    "EvidenceInterval",
    "IndependenceChain",
    "KLFigure",
    "evidence_interval",
    "independent_runs",
    "kl_figure",
    "pimh",
    "pool",
]
