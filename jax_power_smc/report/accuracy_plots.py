"""Accuracy against cost, and pass@k against k."""

import math
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from jax_power_smc.report import style
from jax_power_smc.report.load import ReportData
from jax_power_smc.report.style import Plot, RunStyle

# Points by which the vote and the best answer are shifted away from the draw, and their markers.
_BESIDE = {"vote": (-8.0, "o"), "best": (8.0, "D")}
# Points: the size of a mark, how much larger one is that another would hide, and how close is near.
_MARK, _RIM, _NEAR = 10.0, 4.0, 5.0


def accuracy(data: ReportData) -> list[Plot]:
    """Accuracy of all runs against seconds per problem."""
    rows = [r for r in (data.summary or {}).get("rows", ()) if r["seconds_per_problem"] > 0]
    draws = [row for row in rows if row["answer"] == "draw"]
    if not draws or data.summary is None:
        return []
    styles = style.run_styles(data)
    runs = [row["run"] for row in draws]
    handles = [_mark(styles[run]) for run in runs]
    texts = [styles[run].label for run in runs]
    handles.append(Line2D([], [], color=style.INK, marker="o", markersize=8))
    texts.append("the draw, with 95 % interval")
    for answer, text in (("vote", "weighted vote"), ("best", "highest log p")):
        if any(row["answer"] == answer for row in rows):
            handles.append(Line2D([], [], **_open(style.INK, _BESIDE[answer][1])))
            texts.append(text)
    figure = style.new_figure(5.4 + style.legend_height(texts), layout="constrained")
    axes = figure.add_subplot()
    style.style_axes(axes)
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
    style.legend_below(figure, handles, texts)
    style.disable_math(figure)
    figure.draw_without_rendering()  # so that distances in points are known
    sizes = _sizes(figure, axes, draws)
    for row in rows:
        _draw_answer(figure, axes, row, styles[row["run"]], sizes[row["run"]])
    caption = (
        "Every filled mark is one sampler: the higher, the more of its drawn answers are right; "
        "the further left, the less time a problem takes. Vertical bars are 95 % intervals over "
        "problems. Up and to the left is better. "
    )
    if any(size > _MARK for size in sizes.values()):
        caption += "Where marks coincide, the later ones lie on larger ones. "
    if len(handles) > len(runs) + 1:
        caption += (
            "Small open marks beside a filled one are other ways to read an answer off the same "
            "particles, at the same cost: on its left a vote by weight, on its right the particle "
            "of highest log p. "
        )
    if has_multiples:
        caption += "The upper axis counts the same time in multiples of plain decoding. "
    caption += (
        "Times are of many problems decoded together on "
        f"{style.printable(data.summary['device'])}, without compilation."
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
    figure = style.new_figure(4.4 + style.legend_height(texts), layout="constrained")
    axes = figure.add_subplot()
    style.style_axes(axes)
    lines = []
    for place, run in enumerate(runs):
        own = sorted((row for row in rows if row["run"] == run), key=lambda row: row["k"])
        values = 100 * np.array([[row["value"], *row["ci95"]] for row in own])
        # Side by side, so that no interval hides another.
        beside = style.shift_right(figure, (place - (len(runs) - 1) / 2) * min(5.0, 40 / len(runs)))
        look = styles[run]
        error = np.abs(values[:, 1:] - values[:, :1]).T
        lines.append(
            axes.errorbar(
                [row["k"] for row in own],
                values[:, 0],
                error,
                **look.curve,
                markersize=6,
                linewidth=1.6,
                elinewidth=0.9,
                capsize=2,
                transform=axes.transData + beside,
            )
        )
    style.size_axis(axes, [row["k"] for row in rows], "k, number of answers tried (logarithmic)")
    top = max(row["ci95"][1] for row in rows)
    axes.set_ylim(-2, min(102, 100 * top * 1.08 + 4))
    axes.set_ylabel("one of k is right, %")
    style.legend_below(figure, lines, texts)
    caption = (
        "The probability that at least one of k answers of a sampler is right (pass@k), with 95 % "
        "intervals over problems. At k = 1 it is the accuracy of one draw. A rising curve means "
        "that there are right answers among the particles that are not drawn; a flat one, that "
        "the particles agree. Marks of the same k are drawn side by side. Weighted "
        "particles are drawn with replacement, independent samples without."
    )
    return [style.finish("pass_at_k", "One of k answers is right", caption, figure)]


def _sizes(figure: Any, axes: Any, draws: list[dict[str, Any]]) -> dict[str, float]:
    """Run -> the size of its mark: larger than all that come later at the same place."""
    places = [(row["seconds_per_problem"], 100 * row["accuracy"]) for row in draws]
    points = axes.transData.transform(places) * 72 / figure.dpi
    return {
        row["run"]: _MARK
        + _RIM * sum(math.dist(points[i], later) < _NEAR for later in points[i + 1 :])
        for i, row in enumerate(draws)
    }


def _draw_answer(figure: Any, axes: Any, row: dict[str, Any], look: RunStyle, size: float) -> None:
    """Draws one answer of one run: the draw with its interval, the others beside it."""
    x, y = row["seconds_per_problem"], 100 * row["accuracy"]
    if row["answer"] != "draw":
        shift, marker = _BESIDE[row["answer"]]
        beside = axes.transData + style.shift_right(figure, shift)
        axes.plot(x, y, **_open(look.colour, marker), transform=beside, zorder=6)
        return
    low, high = (100 * end for end in row["ci95"])
    axes.vlines(x, low, high, color=look.colour, linewidth=1.4, zorder=2)
    mark = _mark(look, size)
    mark.set_data([x], [y])
    mark.set_zorder(5)
    axes.add_line(mark)


def _mark(look: RunStyle, size: float = _MARK) -> Line2D:
    return Line2D(
        [],
        [],
        color=look.colour,
        marker=look.marker,
        markersize=size,
        markeredgecolor="white",
        markeredgewidth=0.8,
        linestyle="none",
    )


def _open(colour: str, marker: str) -> dict[str, Any]:
    return {
        "color": colour,
        "marker": marker,
        "markersize": 5.5,
        "markerfacecolor": "white",
        "markeredgewidth": 1.3,
        "linestyle": "none",
    }


def _multiples(axes: Any, draws: list[dict[str, Any]]) -> None:
    """A second axis in multiples of plain decoding."""
    known = [row for row in draws if row["multiple"]]
    base = known[0]["seconds_per_problem"] / known[0]["multiple"]
    top = axes.secondary_xaxis("top", functions=(lambda x: x / base, lambda x: x * base))
    low, high = axes.get_xlim()
    style.log_ticks(top.xaxis, low / base, high / base, "{:g}" + style.TIMES)
    top.tick_params(labelsize=style.SMALL, color=style.GREY, labelcolor=style.INK)
    top.spines["top"].set_color(style.GREY)
    top.set_xlabel("multiples of plain decoding", fontsize=style.FONT, color=style.INK)
