"""Tables of measured figures, for the terminal: what the fidelity benchmark found."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

# metric -> heading, of language models
_MODEL_COLUMNS = {
    "mean_log_evidence": "log Z_hat",
    "sd_log_evidence": "its sd",
    "estimated_gap": "gap, estimated",
    "mean_log_prob": "mean log p",
    "mean_length": "length",
    "model_tokens": "tokens",
    "accuracy": "accuracy",
}


def setting_name(line: dict[str, Any]) -> str:
    """What the setting of a figure is called."""
    ramp = line["ramp_share"]
    return f"{line['name']} {line['num_particles']}" + (f", ramp {ramp:g} T" if ramp else "")


def mean_over_seeds(
    lines: Sequence[dict[str, Any]],
) -> dict[str, dict[tuple[Any, ...], dict[str, tuple[float, float]]]]:
    """Figures of the tables, averaged over their seeds.

    Returns:
      metric -> (kind, T, entropy) -> setting -> (mean, standard error). The metrics are "gap",
      whose error is that of the runs, and "shortfall", the exact mean log p less that of the
      output, whose error is that of the seeds (NaN with one seed).
    """
    exact = {
        (*_place(x), x["seed"]): x["value"] for x in lines if x["metric"] == "exact_mean_log_prob"
    }
    gaps: dict[Any, list[float]] = defaultdict(list)
    errors: dict[Any, list[float]] = defaultdict(list)
    short: dict[Any, list[float]] = defaultdict(list)
    for x in lines:
        if "kind" not in x or "name" not in x or x["value"] is None:
            continue
        at = (_place(x), setting_name(x))
        if x["metric"] == "gap":
            gaps[at].append(x["value"])
        elif x["metric"] == "gap_error":
            errors[at].append(x["value"])
        elif x["metric"] == "mean_log_prob":
            short[at].append(exact[*_place(x), x["seed"]] - x["value"])
    means: dict[str, dict[Any, dict[str, tuple[float, float]]]] = {
        "gap": defaultdict(dict),
        "shortfall": defaultdict(dict),
    }
    for (place, name), values in gaps.items():
        error = float(np.sqrt(np.sum(np.square(errors[place, name]))) / len(values))
        means["gap"][place][name] = (float(np.mean(values)), error)
    for (place, name), values in short.items():
        error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan
        means["shortfall"][place][name] = (float(np.mean(values)), error)
    return means


def fidelity(lines: Sequence[dict[str, Any]]) -> list[Table]:
    """What the fidelity benchmark found: gap and shortfall on the tables, then the models."""
    titles = {
        "gap": "log Z - E\\[log Z_hat], nats",
        "shortfall": "exact mean log p - mean log p of the output, nats",
    }
    found = []
    for metric, by_place in mean_over_seeds(lines).items():
        for kind in dict.fromkeys(place[0] for place in by_place):
            places = {place: row for place, row in by_place.items() if place[0] == kind}
            table = _table(f"{kind} tables: {titles[metric]}")
            for _, horizon, entropy in places:
                table.add_column(f"T {horizon}\nH {entropy:g}", justify="right")
            for name in dict.fromkeys(name for row in places.values() for name in row):
                cells = [row.get(name) for row in places.values()]
                table.add_row(name, *["" if cell is None else f"{cell[0]:.2f}" for cell in cells])
            found.append(table)
    for model in dict.fromkeys(x["model"] for x in lines if "model" in x):
        found.append(_of_model(model, [x for x in lines if x.get("model") == model]))
    return found


def _of_model(model: str, lines: Sequence[dict[str, Any]]) -> Table:
    cells: dict[str, dict[str, float]] = defaultdict(dict)
    for x in lines:
        cells[setting_name(x)][x["metric"]] = x["value"]
    columns = [m for m in _MODEL_COLUMNS if any(m in row for row in cells.values())]
    table = _table(f"{model}: {lines[0]['prompts']} prompts, T {lines[0]['max_new_tokens']}")
    for metric in columns:
        table.add_column(_MODEL_COLUMNS[metric], justify="right")
    for name, row in cells.items():
        numbers = [row.get(metric) for metric in columns]
        table.add_row(name, *["" if x is None else f"{x:.2f}" for x in numbers])
    return table


def _table(title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    table.add_column("sampler, N", no_wrap=True)
    return table


def _place(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["kind"], line["horizon"], line["entropy"]
