"""All plots of a report; a plot without data is left out."""

from jax_power_smc.report import accuracy_plots, evidence_plots, particle_plots, step_plots
from jax_power_smc.report.genealogy import genealogy
from jax_power_smc.report.load import ReportData
from jax_power_smc.report.style import Plot, to_png

__all__ = ["Plot", "figures", "genealogy", "to_png"]


def figures(data: ReportData) -> list[Plot]:
    """The plots over all problems, in the order of the page."""
    parts = (
        accuracy_plots.accuracy,
        accuracy_plots.pass_at_k,
        evidence_plots.gap,
        step_plots.steps,
        particle_plots.lengths,
        particle_plots.diversity,
    )
    return [plot for part in parts for plot in part(data)]
