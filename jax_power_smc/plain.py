"""``psmc.plain``: the plain loop, with a model row for every particle (``engine.reference``)."""

from jax_power_smc.engine.reference import sample

__all__ = ["sample"]
