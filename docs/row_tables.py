"""The tables of docs/benchmarks.md about what rows cost."""

from typing import Any

from table_tools import Record, grid, read, where

_RECORDS = "rows_cpu"


def _section(name: str, **fields: Any) -> list[Record]:
    return where(read(_RECORDS), section=name, **fields)


def _each(records: list[Record], *names: str) -> dict[tuple[str, ...], Record]:
    """Rows for ``grid``: the values of these fields as they come."""
    return {tuple(f"{r[n]}" for n in names): {n: r[n] for n in names} for r in records}


def row_throughput() -> str:
    """Multiples of plain decoding."""
    records = _section("throughput")
    columns = {
        "(a)": ("{:.2f}", {"metric": "multiple_of_baseline"}),
        "(b)": ("{:.2f}", {"metric": "multiple"}),
        "model tokens": ("{:.2f}", {"metric": "model_token_ratio"}),
        "(b) over these": ("{:.2f}", {"metric": "multiple_over_token_ratio"}),
        "(c)": ("{:.2f}", {"metric": "efficiency"}),
        "rows per step": ("{:.2f}", {"metric": "rows_per_step"}),
        "stalled": ("{:.1%}", {"metric": "stalled_share"}),
        "times as fast": ("{:.1f}", {"metric": "baseline_speedup"}),
    }
    rows = _each(where(records, metric="seconds_per_problem"), "prompts", "variant")
    return grid(records, ("prompts", "sampler"), rows, columns, gaps=True)


def row_latency() -> str:
    """Milliseconds per step of one prompt."""
    records = _section("latency")
    milliseconds = [{**r, "value": 1e3 * r["value"]} for r in where(records, metric="step_time")]
    records = milliseconds + [r for r in records if r["metric"] != "step_time"]
    columns = {
        "ms per step, N = 64": ("{:.2f}", {"metric": "step_time", "variant": "many"}),
        "N = 1": ("{:.2f}", {"metric": "step_time", "variant": "one"}),
        "plain, as many rows": ("{:.2f}", {"metric": "step_time", "variant": "rows"}),
        "rows per step": ("{:.1f}", {"metric": "rows_per_step"}),
        "over N = 1": ("{:.2f}", {"metric": "step_over_one"}),
        "over plain": ("{:.2f}", {"metric": "step_over_rows"}),
    }
    rows = _each(where(records, metric="step_over_one"), "model")
    return grid(records, ("model",), rows, columns)


def row_answers() -> str:
    """Seconds per answer of one prompt."""
    records = _section("latency")
    columns = {
        "seconds per answer": ("{:.3f}", {"metric": "seconds_per_answer"}),
        "over plain decoding": ("{:.2f}", {"metric": "answer_over_plain"}),
        "tokens of the answer": ("{:.0f}", {"metric": "answer_tokens"}),
    }
    rows = _each(where(records, metric="seconds_per_answer"), "variant")
    return grid(records, ("sampler",), rows, columns)


def row_counts() -> str:
    """Tokens through the model per token of an answer of stories260K."""
    records = _section("stories")
    columns = {
        "through the model": ("{:.1f}", {"metric": "model_tokens_per_token"}),
        "drawn": ("{:,.0f}", {"metric": "drawn_tokens_per_token"}),
    }
    return grid(records, ("N",), _each(records, "num_particles"), columns)


def row_flat() -> str:
    """Time over the baseline's where no two particles agree."""
    records = _section("flat", metric="over_baseline")
    rows = _each(records, "model", "rows", "num_particles")
    columns = {
        f"prompt of {n}": ("{:.2f}", {"prompt_tokens": n})
        for n in dict.fromkeys(r["prompt_tokens"] for r in records)
    }
    return grid(records, ("model", "rows", "N"), rows, columns)


def row_torch() -> str:
    """How many times as fast as the Python loop."""
    records = _section("torch", metric="speedup")
    columns = {
        "all prompts at once": ("{:.1f}", {"variant": "at once"}),
        "one by one, as there": ("{:.1f}", {"variant": "one by one"}),
    }
    return grid(records, ("model",), _each(records, "model"), columns)


def row_fit() -> str:
    """Prompts that fit, and what their rows are."""
    records = _section("fit", metric="prompts_that_fit")
    about = [
        {**r, "metric": name, "value": r[name]}
        for r in records
        for name in ("rows", "stalled_share")
    ]
    columns = {
        "prompts": ("{:.0f}", {"metric": "prompts_that_fit"}),
        "rows": ("{:.0f}", {"metric": "rows"}),
        "stalled": ("{:.1%}", {"metric": "stalled_share"}),
    }
    return grid(records + about, ("trajectories of",), _each(records, "model"), columns)


TABLES = (row_throughput, row_latency, row_answers, row_counts, row_flat, row_torch, row_fit)
