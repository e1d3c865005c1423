"""Effective sample size and forks along the steps."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from jax_power_smc.report import style
from jax_power_smc.report.load import Item, ReportData
from jax_power_smc.report.style import Plot

# Points of a curve at most: further steps are taken together.
MOST_BINS = 100
# Inches of a row of panels.
_ROW = 2.7
_FORKS = style.INK


@dataclasses.dataclass(frozen=True)
class Course:
    """What the items of one run did along the steps.

    Attributes:
      steps: [bins], the middle of each bin of steps.
      running: [bins], share of the items that had not ended.
      ess, forks: [3, bins], lower quartile, median and upper quartile over the items still running,
        each divided by N; NaN where none was. Of each item, the mean over the steps of the bin.
    """

    steps: np.ndarray
    running: np.ndarray
    ess: np.ndarray
    forks: np.ndarray


def course(items: Sequence[Item], num_particles: int, width: int) -> Course:
    """Of the items of one run.

    Args:
      items: with at least one step among them.
      num_particles: N.
      width: steps of a bin.
    """
    lengths = np.array([len(item.ess) for item in items])
    bins = -(-int(lengths.max()) // width)
    running = np.array([np.mean(lengths > b * width) for b in range(bins)])
    ess = _quartiles([item.ess for item in items], bins, width) / num_particles
    forks = _quartiles([item.forks for item in items], bins, width) / num_particles
    middle = np.minimum((np.arange(bins) + 0.5) * width, lengths.max()) - 0.5
    return Course(middle, running, ess, forks)


def steps(data: ReportData) -> list[Plot]:
    """One panel for each weighted run."""
    found = {
        run: items
        for run in data.labels
        if style.is_weighted(data, run)
        and (items := [item for item in data.of(run) if item.failure is None and len(item.ess)])
    }
    if not found:
        return []
    longest = max(len(item.ess) for items in found.values() for item in items)
    width = -(-longest // MOST_BINS)
    courses = {
        run: course(items, style.num_particles(data, run), width) for run, items in found.items()
    }
    looks = style.looks(data)
    figure, panels = style.small_multiples(
        [looks[run].label for run in courses], _ROW, "step (tokens so far)"
    )
    top = max(1.0, *(float(np.nanmax(c.ess[2])) for c in courses.values()))
    for axes, (run, one) in zip(panels, courses.items(), strict=True):
        _draw(axes, one, looks[run].colour)
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
    caption = (
        "How the particles fare along the steps: the solid coloured line is the effective sample "
        "size divided by N, the dashed one the share of particles that at a step took over another "
        "one's past. Lines are medians over problems and seeds, bands reach from the lower to the "
        "upper quartile. An effective sample size near 1/N means that one particle has all the "
        "weight; frequent forks mean that the particles share most of their past. The grey area "
        "is the share of items that had not ended: where it is low, the lines speak of few."
    )
    if width > 1:
        caption += f" Each point is a mean over {width} steps of an item."
    if top > 1:
        caption += " Without replacement, finished sequences are kept besides, so it can exceed N."
    return [style.plot("steps", "Effective sample size and forks along the steps", caption, figure)]


def _quartiles(curves: Sequence[np.ndarray], bins: int, width: int) -> np.ndarray:
    """[3, bins] over the curves that reach a bin, of each curve's mean over the bin."""
    means = np.full((len(curves), bins), np.nan)
    for row, curve in zip(means, curves, strict=True):
        starts = np.arange(0, len(curve), width)
        counts = np.diff(np.append(starts, len(curve)))
        row[: len(starts)] = np.add.reduceat(curve.astype(np.float64), starts) / counts
    # Every bin has a curve that reaches it: the longest one does.
    return np.nanquantile(means, [0.25, 0.5, 0.75], axis=0)


def _draw(axes: Any, one: Course, colour: str) -> None:
    axes.fill_between(one.steps, one.running, color=style.FAINT, alpha=0.4, linewidth=0, zorder=1)
    axes.plot(one.steps, one.running, color=style.GREY, linewidth=0.8, zorder=1.5)
    axes.fill_between(one.steps, one.forks[0], one.forks[2], color=_FORKS, alpha=0.2, linewidth=0)
    axes.fill_between(one.steps, one.ess[0], one.ess[2], color=colour, alpha=0.25, linewidth=0)
    axes.plot(one.steps, one.ess[1], color=colour, linewidth=1.8)
    axes.plot(one.steps, one.forks[1], color=_FORKS, linewidth=1.2, linestyle=(0, (2, 1)))
