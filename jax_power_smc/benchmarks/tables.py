"""The figures of each benchmark as tables for the terminal."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from jax_power_smc.benchmarks.theorem import COSTLIEST_SHARE
from jax_power_smc.report.tables import Table, pivot, text_table

# One measured figure with its settings, see ``records``.
Figure: TypeAlias = dict[str, Any]
# metric -> heading, of a language model's evidence
_MODEL_COLUMNS = {
    "mean_log_evidence": "log Z_hat",
    "sd_log_evidence": "its sd",
    "estimated_gap": "gap, estimated",
    "mean_log_prob": "mean log p",
    "mean_length": "length",
    "model_tokens": "tokens",
    "accuracy": "accuracy",
}
# metric -> heading, of the figures of a temperature
_TEMPERATURE_COLUMNS = {
    "mean_relative_variance": "mean",
    "max_relative_variance": "maximum",
    "share_above_one": "steps above 1",
    "log_second_moment": "per sequence, nats",
}
# metric -> heading and the unit of its values, of a step on a mesh
_POD_COLUMNS = {
    "collectives_per_step": ("sums\netc.", 1.0),
    "sent_per_step": ("sent\nMB", 1e6),
    "weights": ("weights\nGB", 1e9),
    "keys_and_values": ("K, V\nGB", 1e9),
    "share_of_memory": ("of the\nmemory", 1.0),
    "memory_time": ("memory\nms", 1e-3),
    "link_time": ("links\nms", 1e-3),
    "collective_share": ("links\nshare", 1.0),
    "collective_share_with_overhead": ("with\noverhead", 1.0),
}


# --- fidelity ---


def setting_name(figure: Figure) -> str:
    """The name of a figure's setting in tables."""
    ramp = figure["ramp_share"]
    name = f"{figure['name']} {figure['num_particles']}"
    return name + (f", ramp {ramp:g} T" if ramp else "")


def mean_over_seeds(
    figures: Sequence[Figure],
) -> dict[str, dict[tuple[Any, ...], dict[str, tuple[float, float]]]]:
    """Figures on the Markov models, averaged over their seeds.

    Returns:
      metric -> (kind, T, entropy) -> setting -> (mean, standard error). The metrics are "gap",
      with the error over runs, and "shortfall", the exact mean log p minus that of the output,
      with the error over seeds (NaN with one seed).
    """
    exact = {
        (*_place(x), x["seed"]): x["value"] for x in figures if x["metric"] == "exact_mean_log_prob"
    }
    gaps: dict[Any, list[float]] = defaultdict(list)
    errors: dict[Any, list[float]] = defaultdict(list)
    short: dict[Any, list[float]] = defaultdict(list)
    for x in figures:
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


def fidelity(figures: Sequence[Figure]) -> Iterator[Table]:
    """Gap and shortfall on the Markov models, then the language models."""
    titles = {
        "gap": "log Z - E[log Z_hat], nats",
        "shortfall": "exact mean log p - mean log p of the output, nats",
    }
    for metric, by_place in mean_over_seeds(figures).items():
        for kind in dict.fromkeys(place[0] for place in by_place):
            yield pivot(
                f"{kind} models: {titles[metric]}",
                ("sampler, N",),
                (
                    ((name,), f"T {place[1]}\nH {place[2]:g}", f"{mean:.2f}")
                    for place, by_setting in by_place.items()
                    if place[0] == kind
                    for name, (mean, _) in by_setting.items()
                ),
            )
    for model in dict.fromkeys(x["model"] for x in figures if "model" in x):
        own = [x for x in figures if x.get("model") == model]
        yield pivot(
            f"{model}: {own[0]['prompts']} prompts, T {own[0]['max_new_tokens']}",
            ("sampler, N",),
            (
                ((setting_name(x),), x["metric"], "" if x["value"] is None else f"{x['value']:.2f}")
                for x in own
            ),
            _MODEL_COLUMNS,
        )


# --- theory ---


def theory(figures: Sequence[Figure]) -> list[Table]:
    """Temperatures, sequences, and the costliest tokens."""
    of_temperatures = [x for x in figures if x["metric"] in _TEMPERATURE_COLUMNS]
    shares = {x["prompt"]: x["value"] for x in figures if x["metric"] == "costliest_share"}
    first = of_temperatures[0]
    return [
        pivot(
            f"Relative variance of the incremental weight, alpha {first['alpha']:g}, over the "
            f"{first['steps']} steps of {first['prompts']} sequences;\n"
            "per sequence: the sum of log(1 + relative variance) over its steps, averaged",
            ("temperature",),
            (
                (
                    (_temperature(x),),
                    x["metric"],
                    "infinite" if x["value"] is None else f"{x['value']:.3g}",
                )
                for x in of_temperatures
            ),
            _TEMPERATURE_COLUMNS,
        ),
        text_table(
            "What each sequence cost its weight: (alpha - 1) H_alpha(p_t), summed",
            ("prompt", "steps", "cost, nats", f"in the costliest {COSTLIEST_SHARE:.0%} of steps"),
            (
                (x["prompt"], x["steps"], f"{x['value']:.2f}", _percent(shares[x["prompt"]]))
                for x in figures
                if x["metric"] == "sequence_cost"
            ),
        ),
        text_table(
            "The steps that cost the weights most",
            (
                "cost, nats",
                "prompt",
                "step",
                "p of the token",
                "the text before it, and [the token]",
            ),
            (
                (
                    f"{x['value']:.2f}",
                    x["prompt"],
                    x["step"],
                    f"{math.exp(x['log_prob']):.2f}",
                    f"{x['before']}[{x['token']}]".replace("\n", "\\n"),
                )
                for x in figures
                if x["metric"] == "costliest"
            ),
        ),
    ]


def _temperature(figure: Figure) -> str:
    name = f"{figure['temperature']:.3g}"
    return f"1/alpha = {name}" if figure["temperature"] == 1 / figure["alpha"] else name


# --- speed ---

_SIZES = ("model", "prompt_tokens", "max_new_tokens")


def speed(figures: Sequence[Figure]) -> list[Table]:
    """One table for every section."""

    def table(
        title: str,
        metric: str,
        fields: Sequence[str],
        column: Callable[[Figure], str],
        show: Callable[[float], str] = "{:.2f}".format,
    ) -> Table:
        return pivot(
            title,
            [name.replace("_", " ") for name in fields],
            (
                (
                    [x[name] for name in fields],
                    column(x),
                    "none" if x["value"] is None else show(x["value"]),
                )
                for x in figures
                if x["metric"] == metric
            ),
        )

    def field(name: str) -> Callable[[Figure], str]:
        return lambda x: str(x[name])

    num = field("num_particles")
    sizes = (*_SIZES, "sampler")
    return [
        table("Step time as a multiple of decoding one sequence", "step_multiple", sizes, num),
        table("Share of the roofline", "roofline_share", sizes, num),
        table(
            "Share of a step",
            "part_share",
            ("model", "sampler", "num_particles"),
            field("part"),
            _percent,
        ),
        table(
            "Step time over that of a program in which no cache row can move",
            "resampling_ratio",
            (*_SIZES, "num_particles"),
            field("resampled"),
        ),
        table(
            "Step time of swor over that of smc, by the share of particles of swor that fork",
            "swor_over_smc",
            ("model", "num_particles"),
            lambda x: f"{_percent(x['swor_fork_share'])}",
        ),
        table(
            "Ragged prompts, tokens per second",
            "throughput",
            ("model", "num_particles", "slots", "prompts"),
            field("method"),
            "{:.0f}".format,
        ),
        table("Times as fast as PyTorch", "speedup", ("model", "prompt_tokens", "peer"), num),
    ]


# --- pods ---


def pods(figures: Sequence[Figure]) -> Table:
    """A decode step on every mesh."""
    return pivot(
        "A step of decoding, per device",
        ("machine", "mesh", "N"),
        (
            (
                (x["machine"], x["mesh"], x["num_particles"]),
                x["metric"],
                f"{x['value'] / _POD_COLUMNS[x['metric']][1]:.3g}",
            )
            for x in figures
            if x["metric"] in _POD_COLUMNS
        ),
        {metric: heading for metric, (heading, _) in _POD_COLUMNS.items()},
    )


def _place(figure: Mapping[str, Any]) -> tuple[Any, ...]:
    return figure["kind"], figure["horizon"], figure["entropy"]


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.1f} %"
