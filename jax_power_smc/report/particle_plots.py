"""Lengths of the particles, and how different they are."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_power_smc.report import style
from jax_power_smc.report.load import ItemSummary, ReportData
from jax_power_smc.report.style import Plot

# Inches of a row of panels, and of a box.
_ROW, _BOX = 2.1, 0.34
_BINS = 30


def length_histogram(items: Sequence[ItemSummary], edges: np.ndarray) -> np.ndarray:
    """[bins]: the share of the weight in each bin of lengths; all items count the same."""
    lengths, weights = _joined(items)
    mass, _ = np.histogram(lengths, edges, weights=weights)
    return mass / weights.sum()


def lengths(data: ReportData) -> list[Plot]:
    """One histogram for each run, over the same bins."""
    found = data.valid_items("lengths")
    if not found:
        return []
    longest = max(int(item.lengths.max()) for items in found.values() for item in items)
    edges = length_edges(longest)
    styles = style.run_styles(data)
    figure, panels = style.small_multiples([styles[run].label for run in found], _ROW, "tokens")
    highest = 0.0
    for axes, (run, items) in zip(panels, found.items(), strict=True):
        shares = 100 * length_histogram(items, edges)
        highest = max(highest, shares.max())
        axes.stairs(shares, edges, fill=True, color=styles[run].colour, alpha=0.35)
        axes.stairs(shares, edges, color=styles[run].colour, linewidth=1.2)
        middle = _weighted_median(items)
        axes.axvline(middle, color=style.INK, linewidth=1.1, linestyle="--")
        capped = 100 * float(np.mean([item.unfinished for item in items]))
        note = f"median {middle:.0f}"
        if capped > 0:
            note += f"\n{capped:.0f} % at the limit" if capped >= 1 else "\n< 1 % at the limit"
        side, x = ("right", 0.98) if middle < edges[-1] / 2 else ("left", 0.02)
        look = {"transform": axes.transAxes, "fontsize": style.SMALL - 1, "color": style.INK}
        axes.text(x, 0.97, note, ha=side, va="top", **look)
    for axes in panels:
        axes.set_xlim(0, edges[-1])
        # Room above the highest bar for the note in the corner.
        axes.set_ylim(0, 1.45 * highest)
        axes.set_yticks([tick for tick in axes.get_yticks() if tick <= min(100, 1.45 * highest)])
    panels[0].set_ylabel("weight, %")
    title = "Lengths of the outputs"
    return [style.finish("lengths", title, style.caption("lengths"), figure)]


def diversity(data: ReportData) -> list[Plot]:
    """Distinct first tokens and common beginnings, of every run with several particles."""
    found = {
        run: items
        for run, items in data.valid_items("lengths").items()
        if style.num_particles(data, run) > 1
    }
    if not found:
        return []
    styles = style.run_styles(data)
    figure = style.new_figure(1.3 + _BOX * len(found))
    left, right = figure.subplots(1, 2, sharey=True)
    for axes in (left, right):
        style.style_axes(axes, grid="x")
        axes.set_ylim(len(found) - 0.5, -0.5)
    for height, (run, items) in enumerate(found.items()):
        _box(left, height, [item.distinct_roots for item in items], styles[run])
        _box(right, height, [100 * common_share(item) for item in items], styles[run])
    left.set_yticks(range(len(found)), [styles[run].label for run in found])
    right.tick_params(left=False)
    # Marks at the edge are not cut off, and a few tokens do not fill the panel.
    most = max(item.distinct_roots for items in found.values() for item in items)
    left.set_xlim(0, 1.06 * max(4, most))
    style.integer_ticks(left.xaxis)
    left.set_xlabel("distinct first tokens")
    right.set_xlim(-2, 102)
    right.set_xlabel("steps that all particles share, %")
    title = "How different the particles are"
    return [style.finish("diversity", title, style.caption("diversity"), figure)]


def length_edges(longest: int) -> np.ndarray:
    """Edges of bins, each a whole number of tokens wide, up to the longest."""
    width = max(1, -(-(longest + 1) // _BINS))
    return np.arange(0, longest + width + 1, width)


def common_share(item: ItemSummary) -> float:
    """Steps that all particles of an item share, over the steps of the longest one."""
    # For a single particle the record counts all steps up to the limit.
    return min(1.0, item.coalescence / max(1, int(item.lengths.max())))


def _joined(items: Sequence[ItemSummary]) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and weights of the particles of all items."""
    lengths, weights = zip(*((item.lengths, item.weights) for item in items), strict=True)
    return np.concatenate(lengths), np.concatenate(weights)


def _weighted_median(items: Sequence[ItemSummary]) -> float:
    """The least length such that half of the weight is on lengths up to it."""
    lengths, weights = _joined(items)
    return float(np.quantile(lengths, 0.5, weights=weights, method="inverted_cdf"))


def _box(axes: Any, height: int, values: Sequence[float], look: style.RunStyle) -> None:
    low, first, middle, third, high = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
    axes.hlines(height, low, high, color=look.colour, linewidth=1.3)
    axes.barh(
        height, third - first, 0.56, first, color=look.colour, alpha=0.35, edgecolor=look.colour
    )
    mark = style.mark(look, markersize=8, markeredgecolor="white", markeredgewidth=0.6)
    axes.plot(middle, height, **mark, clip_on=False, zorder=4)
