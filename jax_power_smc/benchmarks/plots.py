"""Pictures of measured figures."""

import json
import pathlib
from collections import defaultdict
from typing import Any

from jax_power_smc.benchmarks import summary


def fidelity(figures: pathlib.Path, picture: pathlib.Path) -> None:
    """The gap against N on the longest tables, and below it how far the output's log p falls short.

    One column per kind of table and entropy.

    Args:
      figures: the JSON lines of the fidelity benchmark; without tables nothing is drawn.
      picture: the .png to write.
    """
    # Imported here: only this module needs it, and without a display.
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

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
