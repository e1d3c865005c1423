"""Plots of measured figures."""

import pathlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_power_smc.benchmarks import tables
from jax_power_smc.benchmarks.records import read
from jax_power_smc.benchmarks.tables import Figure

_TEMPERATURE_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10)
# Steps that are listed beside a picture: at most so many, of at least this cost in nats.
_MOST_LISTED, _LEAST_LISTED_COST = 6, 0.3


def fidelity(figures: pathlib.Path, picture: pathlib.Path) -> None:
    """The gap against N on the longest Markov models, and below it the shortfall of log p.

    There is one column for each kind of model and entropy.

    Args:
      figures: the JSON lines of the fidelity benchmark; nothing is drawn without Markov models.
      picture: the .png to write.
    """
    plt = _pyplot()
    lines = read(figures)
    settings = {tables.setting_name(x): x for x in lines if "kind" in x and "name" in x}
    if not settings:
        return
    means = tables.mean_over_seeds(lines)
    longest = max(horizon for _, horizon, _ in means["shortfall"])
    places = sorted(place for place in means["shortfall"] if place[1] == longest)
    ticks = sorted({line["num_particles"] for line in settings.values()})
    titles = {
        "gap": "log Z - E[log Z_hat], nats",
        "shortfall": "log p: exact mean - mean of output, nats",
    }
    figure, axes = plt.subplots(
        2, len(places), figsize=(3.1 * len(places), 7), squeeze=False, sharex=True, sharey="row"
    )
    drawn: dict[str, Any] = {}
    for row, (metric, title) in enumerate(titles.items()):
        for axis, place in zip(axes[row], places, strict=True):
            for label, points in _series(means[metric].get(place, {}), settings).items():
                sizes, values, errors = zip(*sorted(points), strict=True)
                drawn[label] = axis.errorbar(
                    sizes, values, errors, capsize=2, **_style(label), label=label
                )
            axis.set_xscale("log", base=2)
            axis.set_xticks(ticks, [str(n) for n in ticks])
            axis.set_yscale("symlog", linthresh=1)
            axis.grid(alpha=0.3)
            axis.axhline(0, color="black", linewidth=0.8)
        axes[row][0].set_ylabel(title)
    for column, (kind, horizon, entropy) in enumerate(places):
        axes[0][column].set_title(f"{kind}\nT = {horizon}, {entropy:g} nats per token", fontsize=10)
        axes[1][column].set_xlabel("N (mh: tokens of N)")
    figure.legend(
        list(drawn.values()), list(drawn), loc="lower center", ncols=len(drawn), frameon=False
    )
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def _series(
    cells: dict[str, tuple[float, float]], settings: dict[str, dict[str, Any]]
) -> dict[str, list[tuple[int, float, float]]]:
    """label -> (N, mean, error) of the settings that differ only in N."""
    found: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    for name, (mean, error) in cells.items():
        line = settings[name]
        ramp = f", ramp {line['ramp_share']:g} T" if line["ramp_share"] else ""
        found[line["name"] + ramp].append((line["num_particles"], mean, error))
    return found


def _style(label: str) -> dict[str, str]:
    name, _, ramp = label.partition(", ramp ")
    colours = {"smc": "tab:orange", "swor": "tab:blue", "mh": "tab:green"}
    markers = {"smc": "s", "swor": "o", "mh": "^"}
    lines = {"": "-", "0.25 T": "--"}
    return {
        "color": colours[name],
        "marker": markers[name],
        "linestyle": lines.get(ramp, ":"),
    }


def theorem(figures: pathlib.Path, picture: pathlib.Path) -> None:
    """The variance of the weight against the proposal's temperature, with 1/alpha marked.

    The axes are logarithmic; zeros are drawn as stars on the lower edge.

    Args:
      figures: the JSON lines of the theory benchmark.
      picture: the .png to write.
    """
    plt = _pyplot()
    lines = read(figures)
    (alpha,) = {x["alpha"] for x in lines}
    panels = {
        "Var(w) / E[w]$^2$ of one step": {
            "max_relative_variance": "largest of all steps",
            "mean_relative_variance": "mean over steps",
        },
        "log(1 + Var(w) / E[w]$^2$) summed over a sequence, nats": {
            "log_second_moment": "mean over sequences"
        },
    }
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6))
    for axis, (title, metrics) in zip(axes, panels.items(), strict=True):
        series = {
            label: [
                (x["temperature"], x["value"])
                for x in lines
                if x["metric"] == metric and x["value"] is not None
            ]
            for metric, label in metrics.items()
        }
        _log_lines(axis, series)
        axis.axvline(1 / alpha, color="black", linewidth=0.8, linestyle=":")
        axis.set_title(title)
        axis.set_xlabel(f"temperature of the proposal (dotted: 1/alpha = {1 / alpha:.3g})")
        # Below the axes, since lines may be anywhere.
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, frameon=False)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def step_multiples(figures: pathlib.Path, picture: pathlib.Path) -> None:
    """Step time against N as a multiple of decoding one sequence, one column per model.

    Args:
      figures: the JSON lines of the speed benchmark, with its section "steps".
      picture: the .png to write.
    """
    plt = _pyplot()
    lines = read(figures)
    steps = [x for x in lines if x["metric"] == "step_multiple" and x["sampler"] != "ancestral"]
    models = list(dict.fromkeys(x["model"] for x in steps))
    lengths = sorted({x["max_new_tokens"] for x in steps})
    figure, axes = plt.subplots(
        1, len(models), figsize=(4.2 * len(models), 4), squeeze=False, sharey=True
    )
    for axis, model in zip(axes[0], models, strict=True):
        for sampler, color in (("smc", "tab:blue"), ("swor", "tab:red")):
            for length, style in zip(lengths, ("-", "--", ":", "-."), strict=False):
                points = sorted(
                    (x["num_particles"], x["value"])
                    for x in steps
                    if (x["model"], x["sampler"], x["max_new_tokens"]) == (model, sampler, length)
                )
                axis.plot(
                    *zip(*points, strict=True),
                    marker="o",
                    color=color,
                    linestyle=style,
                    label=f"{sampler}, T = {length}",
                )
        ticks = sorted({x["num_particles"] for x in steps if x["model"] == model})
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_title(f"{model} parameters")
        axis.set_xlabel("N, particles")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("step time over that of one sequence")
    axes[0][0].legend(frameon=False)
    figure.suptitle(f"One prompt on {steps[0]['device']}")
    figure.tight_layout()
    figure.savefig(picture, dpi=150)
    plt.close(figure)


def step_costs(figures: pathlib.Path, picture: pathlib.Path, count: int) -> None:
    """log S_t against the step, one panel per drawn sequence, with a list of its costliest tokens.

    Args:
      figures: the JSON lines of the theory benchmark.
      picture: the .png to write.
      count: number of sequences to draw, the first ones.
    """
    plt = _pyplot()
    steps: dict[int, list[Figure]] = defaultdict(list)
    summed: dict[int, dict[str, float]] = defaultdict(dict)
    for x in read(figures):
        if x["metric"] == "step_cost" and x["prompt"] < count:
            steps[x["prompt"]].append(x)
        elif x["metric"] in ("sequence_cost", "costliest_share") and x["prompt"] < count:
            summed[x["prompt"]][x["metric"]] = x["value"]
    figure, axes = plt.subplots(
        len(steps), 1, figsize=(10, 2.1 * len(steps) + 0.6), squeeze=False, sharex=True, sharey=True
    )
    for axis, (prompt, found) in zip(axes[:, 0], steps.items(), strict=True):
        axis.vlines([x["step"] for x in found], [-x["value"] for x in found], 0, linewidth=1.5)
        axis.hlines(0, 0, len(found), linewidth=1.5)  # as long as the sequence
        _list_costliest(axis, found)
        total, share = summed[prompt]["sequence_cost"], summed[prompt]["costliest_share"]
        part = "" if share is None else f", {share:.1%} of it in the costliest tenth of the steps"
        title = f"problem {prompt}: {len(found)} steps, {-total:.1f} nats in total{part}"
        axis.set_title(title, fontsize=10)
        axis.set_ylabel("log S$_t$, nats")
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("step t")
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def _list_costliest(axis: Any, steps: Sequence[Figure]) -> None:
    """A legend with the costliest steps and the tokens drawn there."""
    costly = [x for x in steps if x["value"] >= _LEAST_LISTED_COST]
    costly = sorted(costly, key=lambda x: -x["value"])[:_MOST_LISTED]
    if not costly:
        return
    lines = axis.plot([], [], *[[], []] * (len(costly) - 1), linestyle="none")
    legend = axis.legend(
        lines,
        [f"{x['step']:4d}: {x['token']}".replace("\n", r"\n") for x in costly],
        title="costliest steps",
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        prop={"family": "monospace"},
        handlelength=0,
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # whatever the token


def _log_lines(axis: Any, series: dict[str, list[tuple[float, float]]]) -> None:
    """Lines on two log axes; zeros are stars on the lower edge, joined by dotted lines."""
    positive = [y for points in series.values() for _, y in points if y > 0]
    floor = 10.0 ** (np.floor(np.log10(min(positive))) - 1) if positive else 1e-3
    zeros = set()
    for label, points in series.items():
        x, y = (np.asarray(column) for column in zip(*sorted(points), strict=True))
        seen = np.maximum(y, floor)
        (line,) = axis.plot(x, seen, linewidth=0.8, linestyle=":")
        axis.plot(x, np.where(y > 0, y, np.nan), "o-", color=line.get_color(), label=label)
        zeros.update(x[y == 0].tolist())
    if zeros:
        at = sorted(zeros)
        axis.plot(at, [floor] * len(at), "k*", markersize=14, clip_on=False, label="exactly 0")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_ylim(bottom=floor)
    found = [x for points in series.values() for x, _ in points]
    ticks = [t for t in _TEMPERATURE_TICKS if min(found) <= t <= max(found)]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)


def _pyplot() -> Any:
    """Imported here, since only this module needs it, and without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
