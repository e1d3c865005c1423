"""Pictures of measured figures."""

import json
import pathlib
from collections import defaultdict
from typing import Any

import numpy as np

from jax_power_smc.benchmarks import summary

_TEMPERATURE_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10)
# In nats; below it a step's token is not named in a picture.
_SMALLEST_NAMED_COST = 0.3


def fidelity(figures: pathlib.Path, picture: pathlib.Path) -> None:
    """The gap against N on the longest tables, and below it how far the output's log p falls short.

    One column per kind of table and entropy.

    Args:
      figures: the JSON lines of the fidelity benchmark; without tables nothing is drawn.
      picture: the .png to write.
    """
    plt = _pyplot()
    lines = [json.loads(line) for line in figures.read_text(encoding="utf-8").splitlines()]
    settings = {summary.setting_name(x): x for x in lines if "kind" in x and "name" in x}
    if not settings:
        return
    means = summary.mean_over_seeds(lines)
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
    """label -> (N, mean, error) of the settings that differ in N alone."""
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
    """The variance of the weight against the proposal's temperature, its minimum at 1/alpha marked.

    The axes are logarithmic; a figure that is zero is drawn on the lower edge, as a star.

    Args:
      figures: the JSON lines of the theory benchmark.
      picture: the .png to write.
    """
    plt = _pyplot()
    lines = [json.loads(line) for line in figures.read_text(encoding="utf-8").splitlines()]
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
        # Below: lines may go anywhere.
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
    lines = [json.loads(line) for line in figures.read_text(encoding="utf-8").splitlines()]
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
    """log S_t against the step, one panel per drawn sequence.

    The dearest tokens are named where the names do not overlap.

    Args:
      figures: the JSON lines of the theory benchmark.
      picture: the .png to write.
      count: how many sequences to draw, the first ones.
    """
    plt = _pyplot()
    lines = [json.loads(line) for line in figures.read_text(encoding="utf-8").splitlines()]
    steps: dict[int, list[dict[str, Any]]] = defaultdict(list)
    summed: dict[int, dict[str, float]] = defaultdict(dict)
    for x in lines:
        if x["metric"] == "step_cost" and x["prompt"] < count:
            steps[x["prompt"]].append(x)
        elif x["metric"] in ("sequence_cost", "dearest_share") and x["prompt"] < count:
            summed[x["prompt"]][x["metric"]] = x["value"]
    figure, axes = plt.subplots(
        len(steps), 1, figsize=(10, 2.1 * len(steps) + 0.6), squeeze=False, sharex=True, sharey=True
    )
    longest = max(map(len, steps.values()))
    for axis, (prompt, found) in zip(axes[:, 0], steps.items(), strict=True):
        axis.vlines([x["step"] for x in found], [-x["value"] for x in found], 0, linewidth=1.5)
        axis.hlines(0, 0, len(found), linewidth=1.5)  # as long as the sequence
        _name_dearest(axis, found, apart=longest / 40)
        total, share = summed[prompt]["sequence_cost"], summed[prompt]["dearest_share"]
        part = "" if share is None else f", {share:.1%} of it in the dearest tenth of the steps"
        title = f"problem {prompt}: {len(found)} steps, together {-total:.1f} nats{part}"
        axis.set_title(title, fontsize=10)
        axis.set_ylabel("log S$_t$, nats")
        axis.grid(alpha=0.3)
    dearest = max(x["value"] for found in steps.values() for x in found)
    axes[0, 0].set_ylim(-1.3 * dearest, 0.1 * dearest)  # room for the names below
    axes[-1, 0].set_xlabel("step t (text: the token drawn there)")
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def _name_dearest(axis: Any, steps: list[dict[str, Any]], apart: float) -> None:
    """Writes tokens below their steps, the dearest first, none closer than ``apart`` to another."""
    named: list[int] = []
    for x in sorted(steps, key=lambda x: -x["value"])[: -(-len(steps) // 10)]:
        near = any(abs(x["step"] - other) < apart for other in named)
        if near or x["value"] < _SMALLEST_NAMED_COST:
            continue
        named.append(x["step"])
        axis.annotate(
            # Line breaks as \n; no mathtext, whatever the token.
            x["token"].replace("\n", r"\n").replace("$", r"\$"),
            (x["step"], -x["value"]),
            (0, -5),
            textcoords="offset points",
            ha="center",
            va="top",
            family="monospace",
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "0.7"},
        )


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
    """Imported here: only this module needs it, and without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
