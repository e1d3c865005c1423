"""Accuracy against cost, and pass@k against k."""

from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from jax_power_smc.report import style
from jax_power_smc.report.labels import Name, write_names
from jax_power_smc.report.load import ReportData
from jax_power_smc.report.style import Plot

# The vote and the best stand beside the draw, so many points to its left and right.
_BESIDE = {"vote": (-8.0, "o"), "best": (8.0, "D")}

# Characters of a name beside its point.
_NAME = 32


def accuracy(data: ReportData) -> list[Plot]:
    """Accuracy of all runs against seconds per problem."""
    rows = [r for r in (data.summary or {}).get("rows", ()) if r["seconds_per_problem"] > 0]
    draws = [row for row in rows if row["answer"] == "draw"]
    if not draws:
        return []
    looks = style.looks(data)
    figure = style.new_figure(6.0)
    has_multiples = any(row["multiple"] for row in draws)
    axes = figure.add_axes((0.075, 0.16, 0.905, 0.735 if has_multiples else 0.82))
    style.tidy(axes)
    seconds = [row["seconds_per_problem"] for row in draws]
    # Room for names on both sides.
    _log_seconds(axes, min(seconds) / 2, max(seconds) * 2)
    axes.set_ylim(-10, 110)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel("seconds per problem (logarithmic)")
    axes.set_ylabel("accuracy, %")
    if has_multiples:
        _multiples(axes, draws)

    obstacles: list[list[float]] = []
    for row in rows:
        obstacles += _point(figure, axes, row, looks[row["run"]])
    names = [
        Name(
            row["seconds_per_problem"],
            100 * row["accuracy"],
            style.shown(looks[row["run"]].label, _NAME),
            looks[row["run"]].colour,
        )
        for row in draws
    ]
    write_names(figure, axes, names, obstacles)
    handles = [Line2D([], [], color=style.INK, marker="o", linestyle="-", markersize=8)]
    texts = ["the draw, with 95 % interval"]
    for answer, text in (("vote", "weighted vote"), ("best", "highest log p")):
        if any(row["answer"] == answer for row in rows):
            marker = _BESIDE[answer][1]
            handles.append(Line2D([], [], **_open(style.INK, marker)))
            texts.append(text)
    figure.legend(handles, texts, loc="lower center", ncols=3, fontsize=style.SMALL, frameon=False)
    caption = (
        "Every filled mark is one sampler: the higher, the more of its drawn answers are right; "
        "the further left, the less time a problem takes. Vertical bars are 95 % intervals over "
        "problems. Up and to the left is better. "
    )
    if len(handles) > 1:
        caption += (
            "Small open marks beside a filled one are other ways to read an answer off the same "
            "particles, at the same cost: left of it a vote by weight, right of it the particle "
            "of highest log p. "
        )
    if has_multiples:
        caption += "The upper axis counts the same time in multiples of plain decoding. "
    caption += (
        f"Times are of many problems decoded together on {style.shown(data.summary['device'])}, "
        if data.summary
        else ""
    )
    caption += "without compiling."
    return [style.plot("accuracy", "Accuracy against time", caption, figure)]


def pass_at_k(data: ReportData) -> list[Plot]:
    """The chance that one of k answers is right, for every run with several particles."""
    rows = (data.summary or {}).get("pass_at_k", ())
    runs = list(dict.fromkeys(row["run"] for row in rows))
    if not runs:
        return []
    looks = style.looks(data)
    texts = [looks[run].label for run in runs]
    figure = style.new_figure(4.4 + style.legend_height(texts), layout="constrained")
    axes = figure.add_subplot()
    style.tidy(axes)
    lines = []
    for place, run in enumerate(runs):
        own = sorted((row for row in rows if row["run"] == run), key=lambda row: row["k"])
        values = 100 * np.array([[row["value"], *row["ci95"]] for row in own])
        # Beside each other, so that no interval hides another.
        beside = style.to_the_right(
            figure, (place - (len(runs) - 1) / 2) * min(5.0, 40 / len(runs))
        )
        look = looks[run]
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
    style.sizes_axis(axes, [row["k"] for row in rows], "k, answers that are tried (logarithmic)")
    top = max(row["ci95"][1] for row in rows)
    axes.set_ylim(-2, min(102, 100 * top * 1.08 + 4))
    axes.set_ylabel("one of k is right, %")
    style.legend_below(figure, lines, texts)
    caption = (
        "The chance that at least one of k answers of a sampler is right (pass@k), with 95 % "
        "intervals over problems. At k = 1 it is the accuracy of one draw. A curve that rises "
        "says that right answers are among the particles without being drawn; one that stays "
        "level says that the particles agree. Marks of one k are drawn side by side. Weighted "
        "particles are drawn with replacement, independent samples without."
    )
    return [style.plot("pass_at_k", "One of k answers is right", caption, figure)]


def _point(figure: Any, axes: Any, row: dict[str, Any], look: style.Look) -> list[list[float]]:
    """Draws one answer of one run; returns the boxes in pixels that it covers."""
    x, y = row["seconds_per_problem"], 100 * row["accuracy"]
    place = axes.transData.transform((x, y))
    if row["answer"] != "draw":
        shift, marker = _BESIDE[row["answer"]]
        beside = style.to_the_right(figure, shift)
        axes.plot(x, y, **_open(look.colour, marker), transform=axes.transData + beside, zorder=4)
        return [_around(place + np.array([shift * figure.dpi / 72, 0]), 5)]
    low, high = (100 * end for end in row["ci95"])
    axes.vlines(x, low, high, color=look.colour, linewidth=1.4, zorder=2)
    axes.plot(
        x,
        y,
        color=look.colour,
        marker=look.marker,
        markersize=10,
        markeredgecolor="white",
        markeredgewidth=0.8,
        linestyle="none",
        zorder=5,
    )
    bottom, top = axes.transData.transform([(x, low), (x, high)])
    return [_around(place, 7), [bottom[0] - 2, bottom[1], top[0] + 2, top[1]]]


def _open(colour: str, marker: str) -> dict[str, Any]:
    return {
        "color": colour,
        "marker": marker,
        "markersize": 5.5,
        "markerfacecolor": "white",
        "markeredgewidth": 1.3,
        "linestyle": "none",
    }


def _around(place: Any, radius: float) -> list[float]:
    return [*(place - radius), *(place + radius)]


def _log_seconds(axes: Any, low: float, high: float) -> None:
    """A logarithmic x axis whose ticks are plain numbers."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    style.plain_ticks(axes.xaxis, low, high)


def _multiples(axes: Any, draws: list[dict[str, Any]]) -> None:
    """A second axis in multiples of plain decoding."""
    known = [row for row in draws if row["multiple"]]
    base = known[0]["seconds_per_problem"] / known[0]["multiple"]
    top = axes.secondary_xaxis("top", functions=(lambda x: x / base, lambda x: x * base))
    low, high = axes.get_xlim()
    style.plain_ticks(top.xaxis, low / base, high / base, "{:g}" + style.TIMES)
    top.tick_params(labelsize=style.SMALL, color=style.GREY, labelcolor=style.INK)
    top.spines["top"].set_color(style.GREY)
    top.set_xlabel("multiples of plain decoding", fontsize=style.FONT, color=style.INK)
