"""Throughput by rows: multiples of plain decoding, and models whose particles never agree.

Letters: P prompts, N particles, R rows, S prompt length, T generated tokens.
"""

import functools
import statistics
from collections.abc import Sequence

from jax_power_smc.benchmarks import decode_worker
from jax_power_smc.benchmarks.decode_worker import Run
from jax_power_smc.benchmarks.row_bench import (
    PLAIN,
    Bench,
    Decode,
    Prompts,
    Sampler,
    Spec,
    Variant,
    name_of,
    smc,
    variant,
)
from jax_power_smc.benchmarks.speed import random_prompt


def throughput(
    bench: Bench,
    spec: Spec,
    prompts: Prompts,
    samplers: Sequence[Sampler],
    baseline_samplers: Sequence[Sampler],
    slots: int,
    max_new_tokens: int,
) -> None:
    """Multiples of plain decoding, in three columns.

    (a) seconds per prompt over those of the baseline's plain decoding; (b) over those of plain
    decoding here; (c) seconds per row-step over those of plain decoding of as many prompts at a
    time as there were rows on average, rows that nobody uses being charged to both.
    """
    count = len(prompts)
    decode = functools.partial(decode_worker.decode, decode_worker.load(spec))
    variants: dict[str, Variant] = {}
    for sampler in (PLAIN, *samplers):
        work = bench.work(sampler, prompts, max_new_tokens, slots)
        own = variant(decode, work, keys=bench.repeats)
        variants[name_of(sampler)] = own
        if sampler is not PLAIN:
            rows = _plain_rows(bench, decode, prompts, own, slots, max_new_tokens)
            variants[f"rows of {name_of(sampler)}"] = rows
    if bench.baseline is not None:
        for sampler in baseline_samplers:
            work = bench.work(sampler, prompts, max_new_tokens, slots)
            there = functools.partial(bench.baseline.decode, spec)
            variants[f"baseline {name_of(sampler)}"] = variant(there, work, keys=bench.repeats)
    seconds = bench.measure(f"throughput, {count} prompts", variants)
    shape = {"prompts": count, "slots": slots, "max_new_tokens": max_new_tokens}

    def write(metric: str, value: float, unit: str, name: str) -> None:
        bench.write(metric, value, unit, section="throughput", variant=name, **shape)

    plain = variants["plain"]
    for name, own in variants.items():
        if name.startswith("rows of "):
            continue
        write("seconds_per_problem", seconds.median(name) / count, "s", name)
        if "baseline plain" in variants:
            write("multiple_of_baseline", seconds.ratio(name, "baseline plain"), "ratio", name)
        write("drawn_tokens", own.mean(lambda run: run.drawn_tokens / count), "tokens", name)
        write("answer_tokens", own.mean(lambda run: run.tokens / count), "tokens", name)
        write("late_compile_seconds", own.mean(lambda run: run.compile_seconds), "s", name)
        if name.startswith("baseline "):
            here = name.removeprefix("baseline ")
            if here in variants:
                write("baseline_speedup", seconds.ratio(name, here), "ratio", here)
            continue
        multiple = seconds.ratio(name, "plain")
        tokens = own.mean(lambda run: run.model_tokens) / plain.mean(lambda run: run.model_tokens)
        write("multiple", multiple, "ratio", name)
        write("model_token_ratio", tokens, "ratio", name)
        write("multiple_over_token_ratio", multiple / tokens, "ratio", name)
        write("model_tokens", own.mean(lambda run: run.model_tokens / count), "tokens", name)
        write("rows_per_step", own.mean(lambda run: run.mean_rows), "rows", name)
        write("live_rows", own.mean(lambda run: run.live_rows), "rows", name)
        write("rows_there", own.mean(lambda run: run.rows_there), "rows", name)
        write("stalled_share", own.mean(_stalled), "share", name)
        if f"rows of {name}" in variants:
            rows = variants[f"rows of {name}"]
            pairs = zip(own.runs[1:], rows.runs[1:], strict=True)
            efficiency = statistics.median(_per_row_step(a) / _per_row_step(b) for a, b in pairs)
            write("efficiency", efficiency, "ratio", name)


def _plain_rows(
    bench: Bench, decode: Decode, prompts: Prompts, own: Variant, slots: int, cap: int
) -> Variant:
    """Plain decoding of as many prompts at a time as another variant's first run had rows."""

    def run(key: int) -> Run:
        num = max(1, round(own.runs[0].live_rows))
        more = round(num * len(prompts) / slots)
        cycle = [prompts[i % len(prompts)] for i in range(max(more, num))]
        return decode(bench.work(PLAIN, cycle, cap, num, key=key))

    return Variant(run, bench.repeats)


def _per_row_step(run: Run) -> float:
    return run.seconds / run.model_tokens


def _stalled(run: Run) -> float:
    """The share of prompt-steps at which a prompt waited for rows."""
    return run.stalls / (run.stalls + run.own_steps)


def flat(
    bench: Bench,
    name: str,
    spec: Spec,
    particles: Sequence[int],
    rows: Sequence[int],
    prompt_tokens: Sequence[int],
    max_new_tokens: int,
    warmup_tokens: int,
) -> None:
    """Where no two particles agree, R = P N: seconds over those of the baseline."""
    subject = decode_worker.load(spec)
    engines: dict[str, Decode] = {"here": functools.partial(decode_worker.decode, subject)}
    if bench.baseline is not None:
        engines["baseline"] = functools.partial(bench.baseline.decode, spec)
    for length in prompt_tokens:
        prompt = random_prompt(subject.model.vocab_size, length)
        for num_rows, num in ((r, n) for r in rows for n in particles):
            count = num_rows // num
            prompts = [prompt] * count
            work = bench.work(smc(num), prompts, max_new_tokens, count, rows=num_rows, ends=False)
            variants = {
                where: variant(decode, work, warmup_tokens) for where, decode in engines.items()
            }
            title = f"flat, {name}, P = {count}, N = {num}, S = {length}"
            seconds = bench.measure(title, variants)
            about = {"section": "flat", "model": name, "num_particles": num, "rows": num_rows}
            about |= {"prompt_tokens": length, "max_new_tokens": max_new_tokens}
            for label in variants:
                per_step = seconds.median(label) / max_new_tokens
                bench.write("step_time", per_step, "s", variant=label, **about)
            bench.write(
                "rows_per_step", variants["here"].mean(lambda run: run.mean_rows), "rows", **about
            )
            if "baseline" in variants:
                bench.write("over_baseline", seconds.ratio("here", "baseline"), "ratio", **about)
