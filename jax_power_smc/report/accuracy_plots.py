"""Accuracy against cost, and pass@k against k."""

import math
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from jax_power_smc.report import style
from jax_power_smc.report.load import ReportData
from jax_power_smc.report.style import Plot, RunStyle

# Of the vote and the best answer: points to the right of the draw, marker, name.
_OTHERS = {"vote": (-8.0, "o", "weighted vote"), "best": (8.0, "D", "highest log p")}
_OPEN = {"markersize": 5.5, "markerfacecolor": "white", "markeredgewidth": 1.3, "linestyle": "none"}
_DRAW = {"color": style.INK, "marker": "o", "markersize": 8}
_FILLED = {"markeredgecolor": "white", "markeredgewidth": 0.8}
# Points: the size of a mark, how much larger one is that another would hide, and how close is near.
_MARK, _RIM, _NEAR = 10.0, 4.0, 5.0


def accuracy(data: ReportData) -> list[Plot]:
    """Accuracy of all runs against seconds per problem."""
    rows = [r for r in (data.summary or {}).get("rows", ()) if r["seconds_per_problem"] > 0]
    draws = [row for row in rows if row["answer"] == "draw"]
    if not draws or data.summary is None:
        return []
    styles = style.run_styles(data)
    legend = [(styles[row["run"]].label, _filled(styles[row["run"]])) for row in draws]
    legend.append(("the draw, with 95 % interval", _DRAW))
    for answer, (_, marker, text) in _OTHERS.items():
        if any(row["answer"] == answer for row in rows):
            legend.append((text, {"color": style.INK, "marker": marker, **_OPEN}))
    texts = [text for text, _ in legend]
    figure, axes = style.new_axes(5.4, texts)
    seconds = [row["seconds_per_problem"] for row in draws]
    axes.set_xscale("log")
    axes.set_xlim(min(seconds) / 1.4, max(seconds) * 1.4)
    style.log_ticks(axes.xaxis, *axes.get_xlim())
    axes.set_ylim(-5, 105)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel("seconds per problem (logarithmic)")
    axes.set_ylabel("accuracy, %")
    has_multiples = any(row["multiple"] for row in draws)
    if has_multiples:
        _multiples(axes, draws)
    handles = [Line2D([], [], **look) for _, look in legend]
    style.legend_below(figure, handles, texts)
    style.disable_math(figure)
    figure.draw_without_rendering()  # so that distances in points are known
    sizes = _sizes(axes, draws)
    for row in rows:
        _draw_answer(axes, row, styles[row["run"]], sizes[row["run"]])
    caption = style.caption(
        "accuracy",
        device=style.printable(data.summary["device"]),
        coincide=any(size > _MARK for size in sizes.values()),
        others=len(legend) > len(draws) + 1,
        multiples=has_multiples,
    )
    return [style.finish("accuracy", "Accuracy against time", caption, figure)]


def pass_at_k(data: ReportData) -> list[Plot]:
    """The probability that one of k answers is right, for every run with several particles."""
    rows = (data.summary or {}).get("pass_at_k", ())
    runs = list(dict.fromkeys(row["run"] for row in rows))
    if not runs:
        return []
    styles = style.run_styles(data)
    texts = [styles[run].label for run in runs]
    figure, axes = style.new_axes(4.4, texts)
    lines = []
    for place, run in enumerate(runs):
        own = sorted((row for row in rows if row["run"] == run), key=lambda row: row["k"])
        values = 100 * np.array([[row["value"], *row["ci95"]] for row in own])
        look = styles[run]
        # Side by side, so that no interval hides another.
        shift = (place - (len(runs) - 1) / 2) * min(5.0, 40 / len(runs))
        lines.append(
            axes.errorbar(
                [row["k"] for row in own],
                values[:, 0],
                np.abs(values[:, 1:] - values[:, :1]).T,
                **style.mark(look, linestyle=look.line, markersize=6, linewidth=1.6),
                elinewidth=0.9,
                capsize=2,
                transform=style.beside(axes, shift),
            )
        )
    style.size_axis(axes, [row["k"] for row in rows], "k, number of answers tried (logarithmic)")
    top = max(row["ci95"][1] for row in rows)
    axes.set_ylim(-2, min(102, 100 * top * 1.08 + 4))
    axes.set_ylabel("one of k is right, %")
    style.legend_below(figure, lines, texts)
    title = "One of k answers is right"
    return [style.finish("pass_at_k", title, style.caption("pass_at_k"), figure)]


def _sizes(axes: Any, draws: list[dict[str, Any]]) -> dict[str, float]:
    """Run -> the size of its mark: larger than all later ones at the same point."""
    points = axes.transData.transform(
        [(row["seconds_per_problem"], 100 * row["accuracy"]) for row in draws]
    )
    near = _NEAR * axes.figure.dpi / 72
    return {
        row["run"]: _MARK + _RIM * sum(math.dist(points[i], p) < near for p in points[i + 1 :])
        for i, row in enumerate(draws)
    }


def _draw_answer(axes: Any, row: dict[str, Any], look: RunStyle, size: float) -> None:
    """Draws one answer of one run: the draw with its interval, the others beside it."""
    x, y = row["seconds_per_problem"], 100 * row["accuracy"]
    if row["answer"] == "draw":
        low, high = (100 * end for end in row["ci95"])
        axes.vlines(x, low, high, color=look.colour, linewidth=1.4, zorder=2)
        axes.add_line(Line2D([x], [y], **_filled(look, size), zorder=5))
    else:
        shift, marker, _ = _OTHERS[row["answer"]]
        beside = style.beside(axes, shift)
        axes.plot(x, y, color=look.colour, marker=marker, **_OPEN, transform=beside, zorder=6)


def _filled(look: RunStyle, size: float = _MARK) -> dict[str, Any]:
    return style.mark(look, markersize=size, **_FILLED)


def _multiples(axes: Any, draws: list[dict[str, Any]]) -> None:
    """A second axis in multiples of plain decoding."""
    known = next(row for row in draws if row["multiple"])
    base = known["seconds_per_problem"] / known["multiple"]
    top = axes.secondary_xaxis("top", functions=(lambda x: x / base, lambda x: x * base))
    low, high = axes.get_xlim()
    style.log_ticks(top.xaxis, low / base, high / base, "{:g}" + style.TIMES)
    top.tick_params(labelsize=style.SMALL, color=style.GREY, labelcolor=style.INK)
    top.spines["top"].set_color(style.GREY)
    top.set_xlabel("multiples of plain decoding", fontsize=style.FONT, color=style.INK)
