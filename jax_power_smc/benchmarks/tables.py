"""The figures of each benchmark as tables for the terminal."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from jax_power_smc.report.tables import Table, pivot

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
        (*_model_kind(x), x["seed"]): x["value"]
        for x in figures
        if x["metric"] == "exact_mean_log_prob"
    }
    found: dict[str, dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    for x in figures:
        if "kind" not in x or "name" not in x or x["value"] is None:
            continue
        at = (_model_kind(x), setting_name(x))
        if x["metric"] == "mean_log_prob":
            found["shortfall"][at].append(exact[*_model_kind(x), x["seed"]] - x["value"])
        else:
            found[x["metric"]][at].append(x["value"])
    means: dict[str, dict[Any, dict[str, tuple[float, float]]]] = {
        "gap": defaultdict(dict),
        "shortfall": defaultdict(dict),
    }
    for metric, by_model in means.items():
        for (model_kind, name), values in found[metric].items():
            count = len(values)
            if metric == "gap":
                error = float(np.linalg.norm(found["gap_error"][model_kind, name])) / count
            else:
                error = statistics.stdev(values) / math.sqrt(count) if count > 1 else math.nan
            by_model[model_kind][name] = (statistics.fmean(values), error)
    return means


def fidelity(figures: Sequence[Figure]) -> Iterator[Table]:
    """Gap and shortfall on the Markov models, then the language models."""
    titles = {
        "gap": "log Z - E[log Z_hat], nats",
        "shortfall": "exact mean log p - mean log p of the output, nats",
    }
    for metric, by_model in mean_over_seeds(figures).items():
        for kind in dict.fromkeys(model_kind[0] for model_kind in by_model):
            yield pivot(
                f"{kind} models: {titles[metric]}",
                ("sampler, N",),
                (
                    ((name,), f"T {model_kind[1]}\nH {model_kind[2]:g}", f"{mean:.2f}")
                    for model_kind, by_setting in by_model.items()
                    if model_kind[0] == kind
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


# --- speed ---


def speed(figures: Sequence[Figure]) -> list[Table]:
    """One table for every section."""

    def table(
        title: str,
        metric: str,
        fields: Sequence[str],
        column: str = "num_particles",
        show: str = "{:.2f}",
    ) -> Table:
        return pivot(
            title,
            [name.replace("_", " ") for name in fields],
            (
                (
                    [x[name] for name in fields],
                    str(x[column]),
                    "none" if x["value"] is None else show.format(x["value"]),
                )
                for x in figures
                if x["metric"] == metric
            ),
        )

    sizes = ("model", "prompt_tokens", "max_new_tokens", "sampler")
    return [
        table("Step time as a multiple of decoding one sequence", "step_multiple", sizes),
        table("Share of the roofline", "roofline_share", sizes),
        table(
            "Ragged prompts, tokens per second",
            "throughput",
            ("model", "num_particles", "slots", "prompts"),
            "method",
            "{:.0f}",
        ),
        table("Times as fast as PyTorch", "speedup", ("model", "prompt_tokens", "peer")),
    ]


# --- rows ---

# Of each section: title, what names a row, and metric -> heading and format of its columns.
_ROW_TABLES: dict[str, tuple[str, Sequence[str], dict[str, tuple[str, str]]]] = {
    "throughput": (
        "Multiples of plain decoding: of the baseline's (a), of ours (b), per row and step (c)",
        ("prompts", "variant"),
        {
            "seconds_per_problem": ("s per\nproblem", "{:.3f}"),
            "multiple_of_baseline": ("(a)", "{:.2f}"),
            "multiple": ("(b)", "{:.2f}"),
            "model_token_ratio": ("tokens", "{:.2f}"),
            "multiple_over_token_ratio": ("(b) over\ntokens", "{:.2f}"),
            "efficiency": ("(c)", "{:.2f}"),
            "rows_per_step": ("rows per\nstep", "{:.2f}"),
            "stalled_share": ("stalled", "{:.1%}"),
            "baseline_speedup": ("times as fast\nas baseline", "{:.1f}"),
        },
    ),
    "latency": (
        "One prompt at a time",
        ("model", "max_new_tokens", "variant"),
        {
            "step_time": ("s per step", "{:.5f}"),
            "step_over_one": ("N over 1", "{:.2f}"),
            "step_over_rows": ("over plain\nin as many rows", "{:.2f}"),
            "rows_per_step": ("rows per\nstep", "{:.2f}"),
            "seconds_per_answer": ("s per answer", "{:.3f}"),
            "answer_over_plain": ("over plain", "{:.2f}"),
        },
    ),
    "stories": (
        "Tokens per token of an answer",
        ("model", "num_particles"),
        {
            "model_tokens_per_token": ("through the model", "{:.2f}"),
            "drawn_tokens_per_token": ("drawn", "{:.0f}"),
        },
    ),
    "flat": (
        "Where no two particles agree",
        ("model", "rows", "num_particles", "prompt_tokens", "variant"),
        {
            "step_time": ("s per step", "{:.4f}"),
            "over_baseline": ("over baseline", "{:.2f}"),
            "rows_per_step": ("rows per\nstep", "{:.1f}"),
        },
    ),
    "torch": (
        "PyTorch, one prompt at a time",
        ("model", "num_particles", "variant"),
        {"step_time": ("s per step", "{:.5f}"), "speedup": ("times as fast", "{:.1f}")},
    ),
    "fit": (
        "Prompts that fit",
        ("model", "num_particles", "memory"),
        {"prompts_that_fit": ("prompts", "{:.0f}")},
    ),
}


def rows(figures: Sequence[Figure]) -> Iterator[Table]:
    """One table for every section."""
    for section, (title, names, columns) in _ROW_TABLES.items():
        own = [x for x in figures if x.get("section") == section and x["metric"] in columns]
        yield pivot(
            title,
            [name.replace("_", " ") for name in names],
            (
                (
                    [x.get(name, "") for name in names],
                    x["metric"],
                    "none" if x["value"] is None else columns[x["metric"]][1].format(x["value"]),
                )
                for x in own
            ),
            {metric: heading for metric, (heading, _) in columns.items()},
        )


# --- compiled ---

# metric -> heading and format, of a program
_PROGRAM_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "compile_seconds": ("compile, s", "{:.0f}".format),
    "temporaries": ("temporaries, MB", lambda x: f"{x / 1e6:.1f}"),
    "copies": ("copies", "{:.0f}".format),
    "kernels": ("kernels", "{:.0f}".format),
    "collectives": ("exchanges", "{:.0f}".format),
}
# metric -> heading and format, of a step
_STEP_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "least": ("least, GB", lambda x: f"{x / 1e9:.2f}"),
    "moved": ("moved, GB", lambda x: f"{x / 1e9:.2f}"),
    "seconds": ("static, ms", lambda x: f"{1e3 * x:.2f}"),
    "share": ("of roofline", "{:.1%}".format),
    "moved_by_a_move": ("a row moved, MB", lambda x: f"{x / 1e6:.0f}"),
}


def compiled(figures: Sequence[Figure]) -> list[Table]:
    """What programs need, then what a step of the chunk moves."""

    def table(title: str, columns: Any, fields: Sequence[str], chosen: Sequence[Figure]) -> Table:
        return pivot(
            title,
            [name.replace("_", " ") for name in fields],
            (
                (
                    [str(x[name]) for name in fields],
                    columns[x["metric"]][0],
                    columns[x["metric"]][1](x["value"]),
                )
                for x in chosen
                if x["metric"] in columns
            ),
        )

    what = ("target", "mesh", "model", "num_layers", "rows", "prompts")
    return [
        table(
            "Programs", _PROGRAM_COLUMNS, (*what, "program"), [x for x in figures if "age" not in x]
        ),
        table("A step", _STEP_COLUMNS, (*what, "age"), [x for x in figures if "age" in x]),
    ]


def _model_kind(figure: Mapping[str, Any]) -> tuple[Any, ...]:
    return figure["kind"], figure["horizon"], figure["entropy"]
