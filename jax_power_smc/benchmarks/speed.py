"""Step time and throughput; the variants that are compared are interleaved.

Every section writes times and the ratios that it is about; a ratio is a metric of its own. Models
have random weights, which does not change their cost.

Letters: S prompt length, N particles, T generated tokens.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jax_power_smc.benchmarks import timing
from jax_power_smc.benchmarks.records import Progress, Write
from jax_power_smc.benchmarks.timing import Decoded, interleaved
from jax_power_smc.core.types import Params
from jax_power_smc.engine.request import ActiveRequest
from jax_power_smc.models.transformer.transformer import TransformerLM
from jax_power_smc.samplers import Ancestral, PowerSMC, WithoutReplacement
from jax_power_smc.targets.power import PowerTarget

# The samplers that run in slots.
Sampler = Ancestral | PowerSMC | WithoutReplacement
SAMPLERS: Mapping[str, Callable[[int], Sampler]] = {"smc": PowerSMC, "swor": WithoutReplacement}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to measure, with its name in the figures."""

    name: str
    model: TransformerLM
    params: Params

    @property
    def about(self) -> dict[str, str | int]:
        weights = jax.tree.leaves(self.params)
        num, dtype = sum(leaf.size for leaf in weights), weights[0].dtype.name
        return {"model": self.name, "parameters": num, "dtype": dtype}


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all sections share; ``repeats`` are the rounds that count."""

    alpha: float
    repeats: int
    write: Write
    progress: Progress

    def interleaved(
        self, title: str, variants: Mapping[str, Callable[[], float]]
    ) -> timing.Seconds:
        """Times of the variants."""
        return interleaved(title, variants, self.repeats, self.progress)

    def decode(
        self, subject: Subject, sampler: Sampler, prompt_tokens: int, new_tokens: int
    ) -> Decoded:
        """Decodes one prompt of random tokens up to its cap."""
        prompt = random_prompt(subject.model.vocab_size, prompt_tokens)
        request = ActiveRequest(prompt, 0, PowerTarget(self.alpha), new_tokens)
        return timing.decode(subject.model, subject.params, sampler, [request])


def steps(
    bench: Bench,
    subject: Subject,
    particles: Sequence[int],
    prompt_tokens: int,
    max_new_tokens: int,
    bandwidth: float,
) -> None:
    """Step time of every sampler and N, as a multiple of decoding one sequence."""
    variants: dict[str, Callable[[], float]] = {}
    rows: dict[str, float] = {}

    def add(name: str, sampler: Sampler) -> None:
        def run() -> float:
            done = bench.decode(subject, sampler, prompt_tokens, max_new_tokens)
            rows[name] = done.mean_rows
            return done.seconds / (max_new_tokens - 1)

        variants[name] = run

    add("ancestral 1", Ancestral(1 / bench.alpha))
    for name, make in SAMPLERS.items():
        for num in particles:
            add(f"{name} {num}", make(num))
    seconds = bench.interleaved(f"steps, {subject.name}, T = {max_new_tokens}", variants)
    for variant in variants:
        name, number = variant.split()
        num = int(number)
        about = {
            **subject.about,
            "sampler": name,
            "num_particles": num,
            "prompt_tokens": prompt_tokens,
            "max_new_tokens": max_new_tokens,
        }
        positions = prompt_tokens + max_new_tokens / 2
        moved = step_bytes(subject.model, subject.params, positions, rows[variant])
        step = seconds.median(variant)
        bench.write("step_time", step, "s", **about)
        bench.write("step_multiple", seconds.ratio(variant, "ancestral 1"), "ratio", **about)
        bench.write("step_bytes", moved, "bytes", **about)
        bench.write("roofline_share", moved / bandwidth / step, "ratio", **about)
        bench.write("mean_rows", rows[variant], "rows", **about)


def throughput(
    bench: Bench,
    subject: Subject,
    num_particles: int,
    slots: int,
    prompts: int,
    longest_prompt: int,
    max_new_tokens: int,
) -> None:
    """Ragged prompts through refilled slots, against batches that wait for their last prompt.

    Lengths of prompts and caps are log-uniform, from a sixteenth of the longest.
    """
    random = np.random.default_rng(0)

    def lengths(longest: int) -> list[int]:
        low = max(1, longest // 16)
        drawn = np.exp(random.uniform(math.log(low), math.log(longest + 1), prompts))
        return [int(x) for x in drawn]

    sizes = list(zip(lengths(longest_prompt), lengths(max_new_tokens), strict=True))
    target = PowerTarget(bench.alpha)
    sampler = PowerSMC(num_particles)

    def requests(first: int, last: int) -> list[ActiveRequest]:
        return [
            ActiveRequest(random_prompt(subject.model.vocab_size, s), first + i, target, t)
            for i, (s, t) in enumerate(sizes[first:last])
        ]

    def run(batches: Sequence[list[ActiveRequest]], lookahead: int = 1) -> float:
        total = 0.0
        for batch in batches:
            done = timing.decode(
                subject.model,
                subject.params,
                sampler,
                batch,
                slots=slots,
                lookahead=lookahead,
                longest=(longest_prompt, max_new_tokens),
            )
            total += done.total
        return total

    seconds = bench.interleaved(
        f"throughput, {subject.name}",
        {
            "slots": lambda: run([requests(0, prompts)]),
            "slots, looking at once": lambda: run([requests(0, prompts)], lookahead=0),
            "batches": lambda: run([requests(i, i + slots) for i in range(0, prompts, slots)]),
        },
    )
    tokens = num_particles * sum(t for _, t in sizes)
    about = {
        **subject.about,
        "sampler": "smc",
        "num_particles": num_particles,
        "slots": slots,
        "prompts": prompts,
        "longest_prompt": longest_prompt,
        "max_new_tokens": max_new_tokens,
    }
    for name in ("slots", "slots, looking at once", "batches"):
        bench.write("throughput", tokens / seconds.median(name), "tokens/s", method=name, **about)
        bench.write(
            "throughput_ratio", seconds.ratio("batches", name), "ratio", method=name, **about
        )


def step_bytes(model: TransformerLM, params: Params, positions: float, num_rows: float) -> float:
    """Bytes that any program must read and write in a step with so many rows.

    All weights once (except an embedding that is not also the head, of which only a few rows are
    read), and keys and values of every row: those of its positions so far, and the new ones.
    """

    def size(tree: Any) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    weights = size(params)
    if not model.config.tied_embeddings:
        weights -= size(params["embedding"])
    cache = size(jax.eval_shape(lambda p: model.init_cache(p, 1, 1), params))
    return weights + cache * num_rows * (positions + 1)


def random_prompt(vocab_size: int, length: int) -> list[int]:
    """Token ids, the same for equal arguments."""
    return np.random.default_rng(length).integers(0, vocab_size, length).tolist()
