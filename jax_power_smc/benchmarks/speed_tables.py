"""The figures of the speed benchmark as tables for the terminal."""

from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.table import Table

Line = dict[str, Any]


def tables(lines: Sequence[Line]) -> list[Table]:
    """One table for every section that was measured."""
    made = [
        _table(
            "Step time as a multiple of decoding one sequence",
            [x for x in lines if x["metric"] == "step_multiple"],
            (*_SIZES, "sampler"),
            "num_particles",
        ),
        _table(
            "Share of the roofline",
            [x for x in lines if x["metric"] == "roofline_share"],
            (*_SIZES, "sampler"),
            "num_particles",
        ),
        _table(
            "Share of a step",
            [x for x in lines if x["metric"] == "part_share"],
            ("model", "sampler", "num_particles"),
            "part",
            _percent,
        ),
        _table(
            "Step time over that of a program in which no row can move",
            [x for x in lines if x["metric"] == "resampling_ratio"],
            (*_SIZES, "num_particles"),
            "resampled",
        ),
        _table(
            "swor's step time over smc's",
            [
                {**x, "forks": f"{_percent(x['swor_fork_share'])} forks"}
                for x in lines
                if x["metric"] == "swor_over_smc"
            ],
            ("model", "num_particles", "forks"),
            "metric",
        ),
        _table(
            "Seconds of a cache move",
            [x for x in lines if x["metric"] == "move_time"],
            ("model", "num_particles", "capacity", "moved_rows"),
            "form",
            lambda value: f"{1e3 * value:.3f} ms",
        ),
        _table(
            "Ragged prompts, tokens per second",
            [x for x in lines if x["metric"] == "throughput"],
            ("model", "num_particles", "slots", "prompts"),
            "method",
            lambda value: f"{value:.0f}",
        ),
        _table(
            "Times as fast as PyTorch",
            [x for x in lines if x["metric"] == "speedup"],
            ("model", "prompt_tokens", "peer"),
            "num_particles",
        ),
    ]
    return [table for table in made if table.row_count]


_SIZES = ("model", "prompt_tokens", "max_new_tokens")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _table(
    title: str,
    lines: Sequence[Line],
    rows: Sequence[str],
    column: str,
    show: Callable[[float], str] = "{:.2f}".format,
) -> Table:
    """Figures by the fields of ``rows`` and, across, by one field."""
    table = Table(title=title, box=box.SIMPLE)
    for name in rows:
        table.add_column(name.replace("_", " "))
    columns = list(dict.fromkeys(line[column] for line in lines))
    for value in columns:
        table.add_column(str(value).replace("_", " "), justify="right")
    cells: dict[tuple[Any, ...], dict[Any, str]] = {}
    for line in lines:
        value = "none" if line["value"] is None else show(line["value"])
        cells.setdefault(tuple(line[name] for name in rows), {})[line[column]] = value
    for place, values in cells.items():
        table.add_row(*map(str, place), *(values.get(value, "") for value in columns))
    return table
