"""Plots of measured figures."""

import pathlib
from collections import defaultdict
from typing import Any

from jax_power_smc.benchmarks import tables
from jax_power_smc.benchmarks.records import read


def fidelity(figures: pathlib.Path, picture: pathlib.Path) -> None:
    """The gap against N on the longest Markov models, and below it the shortfall of log p.

    There is one column for each kind of model and entropy. Reads the JSON lines of the fidelity
    benchmark, and writes a .png, unless there are no Markov models in them.
    """
    plt = _pyplot()
    lines = read(figures)
    settings = {tables.setting_name(x): x for x in lines if "kind" in x and "name" in x}
    if not settings:
        return
    means = tables.mean_over_seeds(lines)
    longest = max(horizon for _, horizon, _ in means["shortfall"])
    kinds = sorted(kind for kind in means["shortfall"] if kind[1] == longest)
    ticks = sorted({line["num_particles"] for line in settings.values()})
    titles = {
        "gap": "log Z - E[log Z_hat], nats",
        "shortfall": "log p: exact mean - mean of output, nats",
    }
    figure, axes = plt.subplots(
        2, len(kinds), figsize=(3.1 * len(kinds), 7), squeeze=False, sharex=True, sharey="row"
    )
    drawn: dict[str, Any] = {}
    for row, (metric, title) in enumerate(titles.items()):
        for axis, kind in zip(axes[row], kinds, strict=True):
            for label, points in _series(means[metric].get(kind, {}), settings).items():
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
    for column, (kind, horizon, entropy) in enumerate(kinds):
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
    return {"color": colours[name], "marker": markers[name], "linestyle": lines.get(ramp, ":")}


def step_multiples(figures: pathlib.Path, picture: pathlib.Path) -> None:
    """Step time against N as a multiple of decoding one sequence, one column per model.

    Reads the JSON lines of the speed benchmark, with its section "steps", and writes a .png.
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


def _pyplot() -> Any:
    """Imported here, since only this module needs it, and without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
