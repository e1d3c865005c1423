"""Pictures of measured figures."""

import json
import pathlib
from collections import defaultdict
from typing import Any

import numpy as np


def fidelity(figures: pathlib.Path, picture: pathlib.Path) -> None:
    """The gap against N on every kind of table, one panel per kind and entropy.

    Args:
      figures: the JSON lines of the fidelity benchmark.
      picture: the .png to write.
    """
    # Imported here: only this function needs it, and without a display.
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in figures.read_text(encoding="utf-8").splitlines()]
    gaps: dict[Any, dict[Any, dict[int, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for x in lines:
        if x["metric"] == "gap" and x["value"] is not None:
            series = (x["name"], x["ramp_share"])
            gaps[x["kind"], x["entropy"]][series][x["num_particles"]].append(x["value"])
    if not gaps:
        return
    kinds = sorted({kind for kind, _ in gaps})
    entropies = sorted({entropy for _, entropy in gaps})
    figure, axes = plt.subplots(
        len(kinds),
        len(entropies),
        figsize=(4 * len(entropies), 3.4 * len(kinds)),
        squeeze=False,
        sharex=True,
    )
    for row, kind in enumerate(kinds):
        for column, entropy in enumerate(entropies):
            axis = axes[row][column]
            for (name, ramp), points in sorted(gaps[kind, entropy].items()):
                sizes = sorted(points)
                axis.plot(
                    sizes,
                    [np.mean(points[n]) for n in sizes],
                    marker="o" if name == "swor" else "s",
                    linestyle="-" if ramp == 0 else "--" if ramp <= 0.25 else ":",
                    color="tab:blue" if name == "swor" else "tab:orange",
                    label=f"{name}, ramp {ramp:g} T" if ramp else name,
                )
            axis.set_xscale("log", base=2)
            axis.set_yscale("symlog", linthresh=0.1)
            axis.set_title(f"{kind}, {entropy:g} nats per token")
            axis.grid(alpha=0.3)
            axis.set_xlabel("particles N")
            axis.set_ylabel("log Z - E[log Z_hat], nats")
    axes[0][0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    plt.close(figure)
