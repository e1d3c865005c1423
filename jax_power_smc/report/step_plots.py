"""Effective sample size and forks along the steps."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from jax_power_smc.report import style
from jax_power_smc.report.load import ItemSummary, ReportData
from jax_power_smc.report.style import Plot

# The most points of a curve; a longer one is averaged over bins of steps.
MOST_BINS = 100
# Inches of a row of panels.
_ROW = 2.7
_FORKS = style.INK


@dataclasses.dataclass(frozen=True)
class StepCurves:
    """How the items of one run developed over bins of steps, of which ``steps`` has the middles.

    ``running`` is the share of the items that had not ended; ``ess`` and ``forks`` [3, bins] are
    the lower quartile, median and upper quartile over the items still running, of each item's mean
    over the steps of the bin, divided by N.
    """

    steps: np.ndarray
    running: np.ndarray
    ess: np.ndarray
    forks: np.ndarray


def step_curves(items: Sequence[ItemSummary], num_particles: int, width: int) -> StepCurves:
    """The curves of one run's items, in bins of ``width`` steps."""
    lengths = np.array([len(item.ess) for item in items])
    bins = -(-int(lengths.max()) // width)
    running = np.array([np.mean(lengths > b * width) for b in range(bins)])
    ess = _quartiles([item.ess for item in items], bins, width) / num_particles
    forks = _quartiles([item.forks for item in items], bins, width) / num_particles
    middle = np.minimum((np.arange(bins) + 0.5) * width, lengths.max()) - 0.5
    return StepCurves(middle, running, ess, forks)


def steps(data: ReportData) -> list[Plot]:
    """One panel for each weighted run."""
    found = {
        run: items for run, items in data.valid_items("ess").items() if style.is_weighted(data, run)
    }
    if not found:
        return []
    longest = max(len(item.ess) for items in found.values() for item in items)
    width = -(-longest // MOST_BINS)
    by_run = {
        run: step_curves(items, style.num_particles(data, run), width)
        for run, items in found.items()
    }
    styles = style.run_styles(data)
    figure, panels = style.small_multiples(
        [styles[run].label for run in by_run], _ROW, "step (tokens so far)"
    )
    top = max(1.0, *(float(np.nanmax(c.ess[2])) for c in by_run.values()))
    for axes, (run, curves) in zip(panels, by_run.items(), strict=True):
        _draw(axes, curves, styles[run].colour)
        axes.set_xlim(0, longest)
        axes.set_ylim(-0.02 * top, 1.04 * top)
    panels[0].set_ylabel("share of N, or of items")
    handles = [
        Line2D([], [], color=style.GREY, linewidth=2),
        Line2D([], [], color=_FORKS, linewidth=1.3, linestyle=(0, (2, 1))),
        Patch(facecolor="#f0f0f0", edgecolor=style.GREY),
    ]
    texts = ["effective sample size / N", "forks / N", "items still running"]
    style.legend_below(figure, handles, texts)
    caption = style.caption("steps", width=width, exceeds=top > 1)
    title = "Effective sample size and forks along the steps"
    return [style.finish("steps", title, caption, figure)]


def _quartiles(curves: Sequence[np.ndarray], bins: int, width: int) -> np.ndarray:
    """[3, bins] over the curves that reach a bin, of each curve's mean over the bin."""
    means = np.full((len(curves), bins), np.nan)
    for mean, curve in zip(means, curves, strict=True):
        starts = np.arange(0, len(curve), width)
        counts = np.diff(np.append(starts, len(curve)))
        mean[: len(starts)] = np.add.reduceat(curve.astype(np.float64), starts) / counts
    # At least the longest curve reaches every bin.
    return np.nanquantile(means, [0.25, 0.5, 0.75], axis=0)


def _draw(axes: Any, curves: StepCurves, colour: str) -> None:
    def band(low: Any, high: Any, colour: str, alpha: float) -> None:
        axes.fill_between(curves.steps, low, high, color=colour, alpha=alpha, linewidth=0)

    band(curves.running, 0, style.FAINT, 0.4)
    axes.plot(curves.steps, curves.running, color=style.GREY, linewidth=0.8, zorder=1.5)
    band(curves.forks[0], curves.forks[2], _FORKS, 0.2)
    band(curves.ess[0], curves.ess[2], colour, 0.25)
    axes.plot(curves.steps, curves.ess[1], color=colour, linewidth=1.8)
    axes.plot(curves.steps, curves.forks[1], color=_FORKS, linewidth=1.2, linestyle=(0, (2, 1)))
