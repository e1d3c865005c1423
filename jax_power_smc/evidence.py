"""``psmc.evidence``: everything that is estimated from several independent runs."""

from jax_power_smc.engine.independent_runs import independent_runs
from jax_power_smc.results.evidence import (
    EvidenceInterval,
    KLFigure,
    evidence_interval,
    kl_figure,
)
from jax_power_smc.results.pimh import IndependenceChain, pimh
from jax_power_smc.results.pooling import pool

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
