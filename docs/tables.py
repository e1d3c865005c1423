"""Fills the tables of README.md and docs/*.md with the figures in docs/records.

A table stands between two comments, and nobody edits it by hand:

    <!-- table: cost_model -->
    ...
    <!-- end -->

`python docs/tables.py` writes all of them, `python docs/tables.py --check` fails if one differs
from the records. Needs nothing but Python.
"""

import argparse
import pathlib
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence

import compiled_tables
import row_tables
import speed_tables
from table_tools import DOCS, Record, grid, markdown, only, percent, read, titled, where

_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


# --- the embedded model ---


def _answer(records: Sequence[Record], run: str, answer: str) -> Record:
    return only(records, run=run, answer=answer)


def _reasoner_rows(runs: Sequence[str]) -> Iterable[tuple[Record, list[str]]]:
    records = read("tiny_reasoner_cpu")
    for run in runs:
        draw = _answer(records, run, "draw")
        low, high = draw["ci95"]
        yield (
            draw,
            [
                draw["method"],
                str(draw["num_particles"]),
                percent(draw["accuracy"]),
                f"{percent(low)} to {percent(high)}",
            ],
        )


def reasoner_short() -> str:
    """Four methods on the held-out problems."""
    header = ("method", "N", "accuracy, %", "95 % interval", "tokens drawn per problem")
    runs = ("low_temperature", "mh", "smc", "swor")
    return markdown(
        header,
        [[*cells, f"{draw['tokens_per_problem']:,.0f}"] for draw, cells in _reasoner_rows(runs)],
    )


def reasoner() -> str:
    """All methods on the held-out problems."""
    records = read("tiny_reasoner_cpu")
    header = (
        *("method", "N", "the draw", "95 % interval", "vote", "best by log p", "one of N"),
        *("mean log p", "tokens"),
    )
    runs = dict.fromkeys(r["run"] for r in records if r.get("answer") == "draw")
    rows = []
    for draw, cells in _reasoner_rows(list(runs)):
        run, n = draw["run"], draw["num_particles"]
        several = [""] * 3
        if n > 1:
            of_n = only(records, run=run, k=n)["value"]
            several = [
                percent(_answer(records, run, "vote")["accuracy"]),
                percent(_answer(records, run, "best")["accuracy"]),
                percent(of_n),
            ]
        cells += [*several, f"{draw['mean_log_prob']:.2f}", f"{draw['tokens_per_problem']:,.0f}"]
        rows.append(cells)
    return markdown(header, rows)


def reasoner_differences() -> str:
    """Paired differences in accuracy."""
    records = [r for r in read("tiny_reasoner_cpu") if "against" in r]
    others = {
        "temperature 1/4": "over temperature 1/4",
        "16 samples at temperature 1, best by log p": "over the best of 16 by log p",
        "16 samples at temperature 1, vote": "over the vote of 16",
        "Metropolis-Hastings": "over Metropolis-Hastings",
    }
    rows = []
    for method in dict.fromkeys(r["method"] for r in records):
        cells = [method]
        for other in others:
            found = only(records, method=method, against=other)
            low, high = (100 * x for x in found["ci95"])
            cells.append(f"{100 * found['difference']:+.1f} ({low:+.1f} to {high:+.1f})")
        rows.append(cells)
    return markdown(("the draw of", *others.values()), rows)


# --- fidelity ---

_SETTING = ("name", "num_particles", "ramp_share")


def fidelity() -> str:
    """The gap to exact log Z on Markov models, averaged over their seeds."""
    settings = {
        "Power-SMC as published, N = 64": ("smc", 64, 0.0),
        "the same, N = 256": ("smc", 256, 0.0),
        "N = 256, ramp T/4": ("smc", 256, 0.25),
        "N = 256, ramp T/2": ("smc", 256, 0.5),
        "N = 512": ("smc", 512, 0.0),
        "N = 512, ramp T/4": ("smc", 512, 0.25),
        "N = 512, ramp T/2": ("smc", 512, 0.5),
        "**without replacement, N = 16**": ("swor", 16, 0.0),
        "N = 16, ramp T/4": ("swor", 16, 0.25),
        "**without replacement, N = 64**": ("swor", 64, 0.0),
        "N = 64, ramp T/4": ("swor", 64, 0.25),
    }
    models = ("kind", "horizon", "entropy")
    values: dict[tuple[object, ...], list[float]] = {}
    for r in where(read("fidelity_cpu"), metric="gap"):
        values.setdefault(tuple(r[x] for x in (*_SETTING, *models)), []).append(r["value"])
    means = [
        # No -0.0.
        dict(zip((*_SETTING, *models), key, strict=True))
        | {"value": round(statistics.fmean(found), 1) + 0.0}
        for key, found in values.items()
    ]
    columns = {
        f"{kind}, T {horizon}, H {h:g}": (
            "{:.1f}",
            dict(zip(models, (kind, horizon, h), strict=True)),
        )
        for kind, horizon in (("inhomogeneous", 128), ("inhomogeneous", 256), ("homogeneous", 256))
        for h in (0.5, 1.0, 2.0)
    }
    return grid(means, ("gap in nats",), titled(settings, *_SETTING), columns)


def fidelity_models() -> str:
    """Evidence on language models."""
    settings = {
        "Power-SMC as published, N = 16": ("smc", 16, 0.0),
        "the same, N = 64": ("smc", 64, 0.0),
        "N = 64, ramp T/2": ("smc", 64, 0.5),
        "without replacement, N = 4": ("swor", 4, 0.0),
        "without replacement, N = 16": ("swor", 16, 0.0),
        "without replacement, N = 64": ("swor", 64, 0.0),
        "Metropolis-Hastings, tokens of N = 16": ("mh", 16, 0.0),
    }
    embedded, stories = {"model": "tiny-reasoner"}, {"model": "stories260K"}
    mean, spread = {"metric": "mean_log_evidence"}, {"metric": "sd_log_evidence"}
    columns = {
        "embedded model: log Z_hat": ("{:.2f}", embedded | mean),
        "its sd over runs": ("{:.2f}", embedded | spread),
        "accuracy": ("{:.0%}", embedded | {"metric": "accuracy"}),
        "stories260K: log Z_hat": ("{:.1f}", stories | mean),
        "its sd": ("{:.1f}", stories | spread),
    }
    rows = titled(settings, *_SETTING)
    return grid(read("fidelity_cpu"), ("",), rows, columns, gaps=True)


# --- theory and cost model ---


def theory() -> str:
    """The second moment of a sequence's weight against the proposal's temperature."""
    records = read("theory_cpu")
    moments = where(records, metric="log_second_moment")
    temperatures = (0.15, 0.2, 0.25, 0.3, 0.5, 1.0)
    header = ["temperature of the proposal"]
    header += ["1/alpha = 0.25" if t == 0.25 else f"{t:g}" for t in temperatures]
    rows = []
    for model, title in {"tiny-reasoner": "embedded model", "stories260K": "stories260K"}.items():
        steps = [r["steps"] for r in where(records, metric="costliest_share", model=model)]
        span = "to".join(f" {n} " for n in dict.fromkeys((min(steps), max(steps))))
        values = [only(moments, model=model, temperature=t)["value"] for t in temperatures]
        rows.append(
            [
                f"{title}, {len(steps)} sequences of{span}tokens",
                *(f"{value:#.2g}".rstrip(".") if value else "0" for value in values),
            ]
        )
    return markdown(header, rows)


def cost_model() -> str:
    """Tokens and time of one prompt against Lemmas 1 to 3."""
    methods = {
        "Power-SMC, N = 16": ["smc"],
        "Metropolis-Hastings, global edits": ["mh global"],
        "Metropolis-Hastings, last block": ["mh last_block"],
    }
    columns = {
        "tokens by lemma": ("{:,.0f}", {"metric": "lemma_tokens"}),
        "tokens counted": ("{:,.0f}", {"metric": "model_tokens"}),
        "time over Power-SMC's, predicted": ("{:.2f}", {"metric": "predicted_wall_ratio"}),
        "measured": ("{:.2f}", {"metric": "measured_wall_ratio"}),
    }
    records = read("cost_model_cpu")
    records += [  # by definition
        {"metric": f"{kind}_wall_ratio", "method": "smc", "value": 1.0}
        for kind in ("predicted", "measured")
    ]
    return grid(records, ("",), titled(methods, "method"), columns)


# --- memory and many devices ---


def loading() -> str:
    """Seconds and extra memory of loading a checkpoint."""
    records = [r for r in read("loading_cpu") if "devices" not in r and "page_cache" not in r]
    titles = {
        "ours": "`psmc.load`",
        "safetensors.flax.load_file": "safetensors' own loader (does not transpose)",
        "orbax": "an Orbax checkpoint (removed: it won nothing)",
    }

    def span(metric: str, method: str, dtype: str) -> str:
        low, high = (
            only(records, metric=f"{metric}_{end}", method=method, dtype=dtype)["value"]
            for end in ("low", "high")
        )
        low, high = f"{low:.2f}", f"{high:.2f}"
        return low if low == high else f"{low} to {high}"

    rows = [
        [
            title,
            *(span("load_seconds", method, dtype) for dtype in ("bfloat16", "float32")),
            *(span("extra_memory", method, dtype) for dtype in ("bfloat16", "float32")),
        ]
        for method, title in titles.items()
    ]
    seconds, memory = "seconds", "extra memory"
    header = (f"{seconds}, bfloat16", "as float32", f"{memory}, bfloat16", "as float32")
    return markdown(("", *header), rows)


def pods() -> str:
    """What a decode step of Qwen2.5-7B exchanges between devices, calculated."""
    records = read("pods_lowered")
    cases = (
        ("v5e", "4x4", 16, 4, "TPU v5 lite"),
        ("v5e", "4x4", 64, 4, "TPU v5 lite"),
        ("H200", "8x1", 64, 8, None),
        ("H200", "2x4", 64, 8, None),
    )
    rows = []
    for machine, mesh, count, prompts, compiled in cases:
        own = [r for r in records if (r["machine"], r["mesh"]) == (machine, mesh)]
        own = where(own, num_particles=count, prompts_per_shard=prompts, compiled_for=compiled)
        values = {r["metric"]: r for r in own if r["metric"] != "collective_bytes"}
        get = {name: r["value"] for name, r in values.items()}
        each = values["collective_share_with_overhead"]["seconds_per_collective"]
        share = f"{percent(get['collective_share'], 0)} %"
        if get["collectives_per_step"]:
            overhead = percent(get["collective_share_with_overhead"], 0)
            share += f" ({overhead} % with {1e6 * each:.0f} µs for each exchange)"
        data, model = mesh.split("x")
        rows.append(
            [
                f"{int(data) * int(model)} {machine}, {data} x {model}",
                f"{count}, {prompts}",
                f"{get['collectives_per_step']:.0f}, {get['sent_per_step'] / 1e6:.0f}",
                f"{get['weights'] / 1e9:.1f} + {get['keys_and_values'] / 1e9:.1f}",
                f"{1e3 * get['memory_time']:.1f}, {1e3 * get['link_time']:.2f}",
                share,
            ]
        )
    header = (
        "machine, data x model",
        "N, prompts per row",
        "exchanges, MB sent per device",
        "weights and caches, GB per device",
        "memory, links, ms",
        "share of links",
    )
    return markdown(header, rows)


TABLES: dict[str, Callable[[], str]] = {
    make.__name__: make
    for make in (
        *(reasoner_short, reasoner, reasoner_differences, fidelity, fidelity_models, theory),
        *(cost_model, loading, pods),
        *(speed_tables.speed_steps, speed_tables.speed_parts, speed_tables.speed_resampling),
        *(speed_tables.speed_forks, speed_tables.speed_throughput, speed_tables.speed_torch),
        *(speed_tables.cache_moves, compiled_tables.compiled_steps),
        compiled_tables.compiled_programs,
        *row_tables.TABLES,
    )
}


def fill(text: str) -> str:
    """The text with every table made anew.

    Raises:
      ValueError: for a table that is not known, or figures that are not there.
    """

    def block(found: re.Match[str]) -> str:
        if found[2] not in TABLES:
            raise ValueError(f"there is no table {found[2]!r}; known are {', '.join(TABLES)}.")
        return f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}"

    return _BLOCK.sub(block, text)


def pages() -> list[pathlib.Path]:
    """README.md and the pages of docs/."""
    return [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]


def main() -> int:
    """Writes or checks all tables; returns the exit code."""
    parser = argparse.ArgumentParser(description="Fill the tables of README.md and docs/*.md.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if one differs")
    check = parser.parse_args().check
    stale = []
    for page in pages():
        before = page.read_text("utf-8")
        after = fill(before)
        if after != before:
            stale.append(str(page.relative_to(DOCS.parent)))
            if not check:
                page.write_text(after, "utf-8")
    if check and stale:
        print(f"{', '.join(stale)}: tables differ from docs/records; run python docs/tables.py.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
