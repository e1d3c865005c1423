"""Latency of single prompts, rows per token, and the same work in a Python loop in PyTorch.

Letters: N particles, T generated tokens, D_t distinct prefixes of a prompt.
"""

import functools
from collections.abc import Sequence
from typing import Any

from jax_power_smc.benchmarks import decode_worker, torch_baseline
from jax_power_smc.benchmarks.decode_worker import Run, Subject
from jax_power_smc.benchmarks.row_bench import (
    PLAIN,
    Bench,
    Prompts,
    Sampler,
    Variant,
    name_of,
    smc,
    total,
    variant,
)


def latency(
    bench: Bench,
    name: str,
    subject: Subject,
    prompts: Prompts,
    num_particles: int,
    steps: int,
    answer_tokens: int | None,
    **about: Any,
) -> None:
    """Seconds per own step of one prompt, over N = 1 and over plain decoding of so many rows.

    Args:
      bench, name, subject: what is measured.
      prompts: decoded one after the other.
      num_particles: N.
      steps: the first ones of each prompt.
      answer_tokens: a cap at which whole answers are measured too; None for none.
      about: further settings in the figures.
    """
    many, one = smc(num_particles), smc(1)
    alone = functools.partial(_one_by_one, bench, subject, prompts)

    def as_rows(key: int) -> Run:
        num = max(1, round(many_steps.runs[0].mean_rows))
        works = [bench.work(PLAIN, [prompt] * num, steps, num, key=key) for prompt in prompts]
        runs = [decode_worker.decode(subject, work) for work in works]
        # Per step of the device: the prompts take it together.
        return total(runs)._replace(own_steps=sum(run.steps for run in runs))

    many_steps = alone(many, steps)
    rows = Variant(as_rows, bench.repeats)
    variants = {"many": many_steps, "rows": rows, "one": alone(one, steps)}
    seconds = bench.measure(
        f"latency, {name}", variants, lambda run: run.decode_seconds / run.own_steps
    )
    about = {"section": "latency", "model": name, "num_particles": num_particles, **about}
    about |= {"prompts": len(prompts), "max_new_tokens": steps}
    for label in variants:
        bench.write("step_time", seconds.median(label), "s", variant=label, **about)
    bench.write("step_over_one", seconds.ratio("many", "one"), "ratio", **about)
    bench.write("step_over_rows", seconds.ratio("many", "rows"), "ratio", **about)
    bench.write("rows_per_step", many_steps.mean(lambda run: run.mean_rows), "rows", **about)
    if answer_tokens is None:
        return
    samplers = (PLAIN, one, many)
    whole = {name_of(sampler): alone(sampler, answer_tokens) for sampler in samplers}
    seconds = bench.measure(f"answers, {name}", whole)
    about["max_new_tokens"] = answer_tokens
    for label, own in whole.items():
        per_answer = seconds.median(label) / len(prompts)
        bench.write("seconds_per_answer", per_answer, "s", variant=label, **about)
        bench.write(
            "answer_over_plain", seconds.ratio(label, "plain"), "ratio", variant=label, **about
        )
        length = own.mean(lambda run: run.tokens / len(prompts))
        bench.write("answer_tokens", length, "tokens", variant=label, **about)


def stories(
    bench: Bench,
    name: str,
    subject: Subject,
    prompts: Prompts,
    particles: Sequence[int],
    keys: int,
    slots: int,
    max_new_tokens: int,
) -> None:
    """Model tokens per token of an answer of exactly T tokens."""
    for num in particles:
        runs = []
        for key in range(keys):
            bench.progress(f"{name}, N = {num}", key, keys)
            work = bench.work(smc(num), prompts, max_new_tokens, slots, key=key, ends=False)
            runs.append(decode_worker.decode(subject, work))
        bench.progress(f"{name}, N = {num}", keys, keys)
        about = {"section": "stories", "model": name, "num_particles": num, "keys": keys}
        about |= {"prompts": len(prompts), "max_new_tokens": max_new_tokens}
        found = total(runs)
        bench.write("model_tokens_per_token", found.model_tokens / found.tokens, "tokens", **about)
        bench.write("drawn_tokens_per_token", found.drawn_tokens / found.tokens, "tokens", **about)


def against_torch(
    bench: Bench,
    name: str,
    subject: Subject,
    prompts: Prompts,
    peer_prompts: int,
    num_particles: int,
    max_new_tokens: int,
) -> None:
    """Seconds per step of a prompt, of ``torch_baseline.power_smc`` over ours.

    Args:
      bench, name, subject, prompts: what we decode, all prompts at once.
      peer_prompts: so many of them are also decoded one after the other, there and here.
      num_particles, max_new_tokens: N and the cap.
    """
    theirs = torch_baseline.to_torch(subject.model, subject.params)

    def peer(key: int) -> Run:
        runs = []
        for index, prompt in enumerate(prompts[:peer_prompts]):
            done = torch_baseline.power_smc(
                theirs,
                prompt,
                num_particles,
                bench.alpha,
                max_new_tokens,
                seed=len(prompts) * key + index,
                warm_up=False,
                eos_ids=subject.eos_ids,
            )
            spent, steps = done.timing, done.timing.tokens
            drawn = num_particles * steps
            runs.append(Run(spent.total, spent.decode, 0.0, steps, drawn, own_steps=steps))
        return total(runs)

    sampler = smc(num_particles)
    work = bench.work(sampler, prompts, max_new_tokens, len(prompts))
    first = prompts[:peer_prompts]
    variants = {
        "at once": variant(
            functools.partial(decode_worker.decode, subject), work, keys=bench.repeats
        ),
        "one by one": _one_by_one(bench, subject, first, sampler, max_new_tokens),
        "torch": Variant(peer),
    }
    seconds = bench.measure(f"torch, {name}", variants, lambda run: run.seconds / run.own_steps)
    about = {"section": "torch", "model": name, "num_particles": num_particles}
    about |= {"prompts": len(prompts), "peer_prompts": peer_prompts}
    about |= {"max_new_tokens": max_new_tokens, **torch_baseline.describe()}
    for label in variants:
        bench.write("step_time", seconds.median(label), "s", variant=label, **about)
        if label != "torch":
            bench.write("speedup", seconds.ratio("torch", label), "ratio", variant=label, **about)


def _one_by_one(
    bench: Bench, subject: Subject, prompts: Prompts, sampler: Sampler, cap: int
) -> Variant:
    """Prompts that follow each other."""

    def run(key: int) -> Run:
        works = [bench.work(sampler, [prompt], cap, 1, key=key) for prompt in prompts]
        return total([decode_worker.decode(subject, work) for work in works])

    return Variant(run, bench.repeats)
