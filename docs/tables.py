"""Fills the tables of README.md and docs/*.md with the figures in docs/records.

A table stands between two comments, and nobody edits it by hand:

    <!-- table: cost_model -->
    ...
    <!-- end -->

`python docs/tables.py` writes all of them, `python docs/tables.py --check` fails if one differs
from the records. Needs nothing but Python.
"""

import argparse
import json
import pathlib
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

DOCS = pathlib.Path(__file__).resolve().parent
RECORDS = DOCS / "records"
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Record = dict[str, Any]


def read(name: str) -> list[Record]:
    """The records of docs/records/NAME.jsonl."""
    lines = (RECORDS / f"{name}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def where(records: Iterable[Record], **fields: Any) -> list[Record]:
    """The records that have these fields; a field that is None here must be absent or null."""
    return [r for r in records if all(r.get(name) == value for name, value in fields.items())]


def only(records: Iterable[Record], **fields: Any) -> Record:
    """The one record that has these fields.

    Raises:
      ValueError: if there is none, or more than one.
    """
    found = where(records, **fields)
    if len(found) != 1:
        raise ValueError(f"{len(found)} records have {fields}; exactly one is needed.")
    return found[0]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table: the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def percent(share: float, digits: int = 1) -> str:
    """A share as a percentage without its sign."""
    return f"{100 * share:.{digits}f}"


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

_ENTROPIES = (0.5, 1.0, 2.0)
_PLACES = (("inhomogeneous", 128), ("inhomogeneous", 256), ("homogeneous", 256))
_SETTINGS = (
    ("Power-SMC as published, N = 64", "smc", 64, 0.0),
    ("the same, N = 256", "smc", 256, 0.0),
    ("N = 256, ramp T/4", "smc", 256, 0.25),
    ("N = 256, ramp T/2", "smc", 256, 0.5),
    ("N = 512", "smc", 512, 0.0),
    ("N = 512, ramp T/4", "smc", 512, 0.25),
    ("N = 512, ramp T/2", "smc", 512, 0.5),
    ("**without replacement, N = 16**", "swor", 16, 0.0),
    ("N = 16, ramp T/4", "swor", 16, 0.25),
    ("**without replacement, N = 64**", "swor", 64, 0.0),
    ("N = 64, ramp T/4", "swor", 64, 0.25),
)


def fidelity() -> str:
    """The gap to exact log Z on Markov models, averaged over their seeds."""
    gaps = where(read("fidelity_cpu"), metric="gap")
    header = ["gap in nats"]
    header += [f"{kind}, T {horizon}, H {h:g}" for kind, horizon in _PLACES for h in _ENTROPIES]
    rows = []
    for title, name, count, ramp in _SETTINGS:
        cells = [title]
        for kind, horizon in _PLACES:
            for entropy in _ENTROPIES:
                place = {"kind": kind, "horizon": horizon, "entropy": entropy}
                found = where(gaps, name=name, num_particles=count, ramp_share=ramp, **place)
                mean = round(statistics.fmean(r["value"] for r in found), 1)
                cells.append(f"{mean + 0.0:.1f}")  # no -0.0
        rows.append(cells)
    return markdown(header, rows)


def fidelity_models() -> str:
    """Evidence on language models."""
    records = read("fidelity_cpu")
    settings = (
        ("Power-SMC as published, N = 16", "smc", 16, 0.0),
        ("the same, N = 64", "smc", 64, 0.0),
        ("N = 64, ramp T/2", "smc", 64, 0.5),
        ("without replacement, N = 4", "swor", 4, 0.0),
        ("without replacement, N = 16", "swor", 16, 0.0),
        ("without replacement, N = 64", "swor", 64, 0.0),
        ("Metropolis-Hastings, tokens of N = 16", "mh", 16, 0.0),
    )

    def cell(show: str, *, of: Record, **fields: Any) -> str:
        found = where(records, **fields, **of)
        return show.format(found[0]["value"]) if found else ""

    rows = []
    for title, name, count, ramp in settings:
        of = {"name": name, "num_particles": count, "ramp_share": ramp}
        rows.append(
            [
                title,
                cell("{:.2f}", of=of, model="tiny-reasoner", metric="mean_log_evidence"),
                cell("{:.2f}", of=of, model="tiny-reasoner", metric="sd_log_evidence"),
                cell("{:.0%}", of=of, model="tiny-reasoner", metric="accuracy").replace("%", " %"),
                cell("{:.1f}", of=of, model="stories260K", metric="mean_log_evidence"),
                cell("{:.1f}", of=of, model="stories260K", metric="sd_log_evidence"),
            ]
        )
    embedded, stories = "embedded model", "stories260K"
    header = ("", f"{embedded}: log Z_hat", "its sd over runs", "accuracy")
    return markdown((*header, f"{stories}: log Z_hat", "its sd"), rows)


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
        steps = [r["steps"] for r in where(records, metric="dearest_share", model=model)]
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
    records = read("cost_model_cpu")

    def value(metric: str, method: str) -> float:
        return only(records, metric=metric, method=method)["value"]

    rows = [
        [
            "Power-SMC, N = 16",
            f"{value('lemma_tokens', 'smc'):,.0f}",
            f"{value('model_tokens', 'smc'):,.0f}",
            "1",
            "1",
        ]
    ]
    for title, method in (("global edits", "mh global"), ("last block", "mh last_block")):
        rows.append(
            [
                f"Metropolis-Hastings, {title}",
                f"{value('lemma_tokens', method):,.0f}",
                f"{value('model_tokens', method):,.0f}",
                f"{value('predicted_wall_ratio', method):.2f}",
                f"{value('measured_wall_ratio', method):.2f}",
            ]
        )
    header = (
        "",
        "tokens by lemma",
        "tokens counted",
        "time over Power-SMC's, predicted",
        "measured",
    )
    return markdown(header, rows)


# --- speed ---

_SAMPLERS = {"smc": "`PowerSMC`", "swor": "`WithoutReplacement`"}


def speed_steps() -> str:
    """Step time as a multiple of decoding one sequence."""
    records = where(read("speed_cpu"), metric="step_multiple", prompt_tokens=32)
    counts = (4, 8, 16, 32, 64)
    rows = []
    for model in ("5M", "50M"):
        for cap in (128, 512):
            for sampler, title in _SAMPLERS.items():
                of = {"model": model, "max_new_tokens": cap, "sampler": sampler}
                values = (only(records, num_particles=n, **of)["value"] for n in counts)
                rows.append([model, str(cap), title, *(f"{value:.1f}" for value in values)])
    return markdown(("model", "T", "sampler", *(f"N = {n}" for n in counts)), rows)


def speed_parts() -> str:
    """Where a step's time goes."""
    records = where(read("speed_cpu"), metric="part_share", num_particles=64)
    parts = ("model", "cache moves", "selection", "sampling")
    rows = [
        [
            f"{model}, {title}",
            *(
                f"{percent(only(records, model=model, sampler=sampler, part=part)['value'])} %"
                for part in parts
            ),
        ]
        for model in ("5M", "50M")
        for sampler, title in _SAMPLERS.items()
    ]
    return markdown(("N = 64", *parts), rows)


def speed_resampling() -> str:
    """Step time against how often the population is resampled."""
    records = where(read("speed_cpu"), metric="resampling_ratio")
    titles = {"never": "never", "every 8": "every 8th step", "every 1": "every step"}
    rows = [
        [
            f"N = {n}",
            *(f"{only(records, num_particles=n, resampled=c)['value']:.2f}" for c in titles),
        ]
        for n in dict.fromkeys(r["num_particles"] for r in records)
    ]
    return markdown(("", *titles.values()), rows)


def speed_forks() -> str:
    """WithoutReplacement over PowerSMC against the share of rows that fork."""
    records = where(read("speed_cpu"), metric="swor_over_smc")
    rows = [
        [model, f"{percent(r['swor_fork_share'], 0)} %", f"{r['value']:.2f}"]
        for model in ("5M", "50M")
        for r in sorted(where(records, model=model), key=lambda r: -r["swor_fork_share"])
    ]
    return markdown(("model", "rows that fork in a step", "time over `PowerSMC`'s"), rows)


def speed_throughput() -> str:
    """Ragged prompts through slots that are refilled, and in batches."""
    records = read("speed_cpu")
    titles = {
        "slots": "slots, refilled as prompts finish",
        "slots, looking at once": "the same, without a chunk of lookahead",
        "batches": "batches that wait for their last prompt",
    }
    rows = [
        [
            title,
            f"{only(records, metric='throughput', method=method)['value']:,.0f}",
            f"{only(records, metric='throughput_ratio', method=method)['value']:.2f}",
        ]
        for method, title in titles.items()
    ]
    return markdown(("method", "tokens per second", "over batches"), rows)


def speed_torch() -> str:
    """How many times as fast as PyTorch."""
    records = where(read("speed_cpu"), metric="speedup")
    columns = (
        ("`generate`, batch 1", "transformers generate", 1),
        ("batch 8", "transformers generate", 8),
        ("batch 64", "transformers generate", 64),
        ("Power-SMC in a Python loop, N = 8", "Power-SMC in a Python loop", 8),
        ("N = 64", "Power-SMC in a Python loop", 64),
    )
    rows = []
    for model in ("5M", "23M", "50M", "98M"):
        for prompt in (32, 512):
            own = where(records, model=model, prompt_tokens=prompt)
            if not own:
                continue
            cells = [where(own, peer=peer, num_particles=n) for _, peer, n in columns]
            rows.append([model, str(prompt), *(f"{c[0]['value']:.1f}" if c else "" for c in cells)])
    return markdown(("model", "prompt", *(title for title, *_ in columns)), rows)


def cache_moves() -> str:
    """Milliseconds of a cache move by its form."""
    records = where(read("speed_cpu"), metric="move_time", capacity=1024)
    forms = ("take", "gathered", "rows", "blocks")
    keys = dict.fromkeys((r["num_particles"], r["moved_rows"]) for r in records)
    rows = [
        [
            f"{n}",
            f"{moved}",
            *(
                f"{1e3 * only(records, num_particles=n, moved_rows=moved, form=f)['value']:.2f}"
                for f in forms
            ),
        ]
        for n, moved in keys
    ]
    header = ("N", "rows moved", "`jnp.take`", "gather and scatter", "row by row", "blocks of time")
    return markdown(header, rows)


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
        own = where(own, num_particles=count, prompts_per_row=prompts, compiled_for=compiled)
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
        reasoner_short,
        reasoner,
        reasoner_differences,
        fidelity,
        fidelity_models,
        theory,
        cost_model,
        speed_steps,
        speed_parts,
        speed_resampling,
        speed_forks,
        speed_throughput,
        speed_torch,
        cache_moves,
        loading,
        pods,
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
