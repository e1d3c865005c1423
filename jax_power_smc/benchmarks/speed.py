"""Step time, its parts, and throughput; the variants that are compared are interleaved.

Every section writes times and the ratios that it is about; a ratio is a metric of its own. Models
have random weights, which does not change their cost.

Letters: S prompt length, N particles, T generated tokens.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc.benchmarks import timing
from jax_power_smc.benchmarks.ablations import AblatedModel, ForcedResampling, step_bytes
from jax_power_smc.benchmarks.records import Write
from jax_power_smc.benchmarks.timing import Decoded, Progress, interleaved
from jax_power_smc.core.types import Params
from jax_power_smc.engine.request import ActiveRequest
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.models.transformer.transformer import TransformerLM
from jax_power_smc.samplers import Ancestral, PowerSMC, WithoutReplacement
from jax_power_smc.targets.power import PowerTarget

# The samplers that run in slots.
Sampler = Ancestral | PowerSMC | WithoutReplacement
SAMPLERS: Mapping[str, Callable[[int], Sampler]] = {
    "smc": PowerSMC,
    "swor": WithoutReplacement,
}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to measure.

    Attributes:
      name: of the model, in the figures.
      model, params: the model.
    """

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
    """What all sections share.

    Attributes:
      alpha: exponent.
      repeats: rounds that count.
      write, progress: receive the figures, and what is being measured.
    """

    alpha: float
    repeats: int
    write: Write
    progress: Progress

    def interleaved(
        self, title: str, variants: Mapping[str, Callable[[], float]]
    ) -> timing.Seconds:
        """Times of the variants."""
        return interleaved(title, variants, self.repeats, self.progress)

    def requests(
        self, vocab_size: int, prompt_tokens: int, new_tokens: int, alpha: float | None = None
    ) -> list[ActiveRequest]:
        """One prompt of random tokens, decoded up to its cap."""
        target = PowerTarget(self.alpha if alpha is None else alpha)
        return [ActiveRequest(random_prompt(vocab_size, prompt_tokens), 0, target, new_tokens)]


def steps(
    bench: Bench,
    subject: Subject,
    particles: Sequence[int],
    prompt_tokens: int,
    new_tokens: int,
    bandwidth: float,
) -> None:
    """Step time of every sampler and N, as a multiple of decoding one sequence."""
    variants: dict[str, Callable[[], float]] = {}
    forks: dict[str, float] = {}

    def add(name: str, sampler: Sampler) -> None:
        def run() -> float:
            done = decode_one(
                bench, subject.model, subject.params, sampler, prompt_tokens, new_tokens
            )
            forks[name] = done.fork_share
            return done.seconds / (new_tokens - 1)

        variants[name] = run

    add("ancestral 1", Ancestral(1 / bench.alpha))
    for name, make in SAMPLERS.items():
        for num in particles:
            add(f"{name} {num}", make(num))
    seconds = bench.interleaved(f"steps, {subject.name}, T = {new_tokens}", variants)
    for variant in variants:
        name, number = variant.split()
        num = int(number)
        about = {
            **subject.about,
            "sampler": name,
            "num_particles": num,
            "prompt_tokens": prompt_tokens,
            "max_new_tokens": new_tokens,
        }
        moved = step_bytes(subject.model, subject.params, prompt_tokens, new_tokens / 2, num)
        step = seconds.median(variant)
        bench.write("step_time", step, "s", **about)
        bench.write("step_multiple", seconds.ratio(variant, "ancestral 1"), "ratio", **about)
        bench.write("step_bytes", moved, "bytes", **about)
        bench.write("roofline_share", moved / bandwidth / step, "ratio", **about)
        bench.write("fork_share", forks[variant], "ratio", **about)


def parts(
    bench: Bench, subject: Subject, num: int, prompt_tokens: int, new_tokens: int, scale: float
) -> None:
    """Where a step's time goes: differences between programs that leave out one part each.

    ``scale`` multiplies the logits: random weights give flat distributions, with which particles
    would hardly ever be resampled.
    """
    prompt = jnp.asarray(random_prompt(subject.model.vocab_size, prompt_tokens), jnp.int32)
    whole = AblatedModel(subject.model)
    params = whole.params(subject.params, prompt, scale)
    replayed = dataclasses.replace(whole, runs=False)
    still = dataclasses.replace(replayed, moves=False)
    sampled: Sampler = Ancestral(1 / bench.alpha, num)
    for name, make in SAMPLERS.items():
        programs: dict[str, tuple[AblatedModel, Sampler]] = {
            "whole": (whole, make(num)),
            "no model": (replayed, make(num)),
            "no moves": (still, make(num)),
            "no selection": (still, sampled),
        }
        shares: dict[str, float] = {}

        def run(
            key: str,
            programs: dict[str, tuple[AblatedModel, Sampler]] = programs,
            shares: dict[str, float] = shares,
        ) -> float:
            model, sampler = programs[key]
            done = decode_one(bench, model, params, sampler, prompt_tokens, new_tokens)
            shares[key] = done.fork_share
            return done.seconds / (new_tokens - 1)

        variants = {key: functools.partial(run, key) for key in programs}
        seconds = bench.interleaved(f"parts, {subject.name}, {name}", variants)
        about = {
            **subject.about,
            "sampler": name,
            "num_particles": num,
            "prompt_tokens": prompt_tokens,
            "max_new_tokens": new_tokens,
            "logit_scale": scale,
        }
        cost = [seconds.median(key) for key in programs] + [0.0]
        labels = ("model", "cache moves", "selection", "sampling")
        for label, more, less in zip(labels, cost, cost[1:], strict=False):
            bench.write("part_share", (more - less) / cost[0], "ratio", part=label, **about)
        bench.write("step_time", cost[0], "s", **about)
        bench.write("fork_share", shares["whole"], "ratio", **about)


def resampling(
    bench: Bench,
    subject: Subject,
    particles: Sequence[int],
    periods: Sequence[int],
    prompt_tokens: int,
    new_tokens: int,
) -> None:
    """The cost of resampling every few steps, and of the branch if it is never taken.

    The weights are noise with an ESS of 0.66 N; in the program "none" no cache row can move.
    """
    still = AblatedModel(subject.model, moves=False)
    altered = still.params(subject.params, jnp.ones((1,), jnp.int32))
    for num in particles:
        samplers = {name: ForcedResampling.every(num, None) for name in ("none", "never")}
        samplers |= {f"every {period}": ForcedResampling.every(num, period) for period in periods}
        seen: dict[str, Decoded] = {}

        def run(
            name: str,
            num: int = num,
            samplers: dict[str, ForcedResampling] = samplers,
            seen: dict[str, Decoded] = seen,
        ) -> float:
            # At alpha = 1 all weights come from the noise.
            requests = bench.requests(
                subject.model.vocab_size, prompt_tokens, new_tokens, alpha=1.0
            )
            if name == "none":
                done = timing.decode(still, altered, samplers[name], requests)
            else:
                done = timing.decode(subject.model, subject.params, samplers[name], requests)
            seen[name] = done
            return done.seconds / (new_tokens - 1)

        variants = {name: functools.partial(run, name) for name in samplers}
        seconds = bench.interleaved(f"resampling, {subject.name}, N = {num}", variants)
        for name in samplers:
            about = {
                **subject.about,
                "resampled": name,
                "num_particles": num,
                "prompt_tokens": prompt_tokens,
                "max_new_tokens": new_tokens,
                "ess_share": seen[name].ess_share if name.startswith("every") else None,
                "fork_share": seen[name].fork_share,
            }
            bench.write("step_time", seconds.median(name), "s", **about)
            bench.write("resampling_ratio", seconds.ratio(name, "none"), "ratio", **about)


def forks(
    bench: Bench,
    subject: Subject,
    particles: Sequence[int],
    scales: Sequence[float],
    prompt_tokens: int,
    new_tokens: int,
) -> None:
    """The step time of swor over that of smc, against the share of particles that fork."""
    model = AblatedModel(subject.model)
    prompt = jnp.asarray(random_prompt(subject.model.vocab_size, prompt_tokens), jnp.int32)
    first = model.params(subject.params, prompt)
    for num in particles:
        variants: dict[str, Callable[[], float]] = {}
        shares: dict[str, float] = {}

        def run(
            name: str, scale: float, num: int = num, shares: dict[str, float] = shares
        ) -> float:
            params = first._replace(scale=jnp.asarray(scale, first.scale.dtype))
            sampler = SAMPLERS[name](num)
            done = decode_one(bench, model, params, sampler, prompt_tokens, new_tokens)
            shares[f"{name} {scale}"] = done.fork_share
            return done.seconds / (new_tokens - 1)

        for scale in scales:
            for name in SAMPLERS:
                variants[f"{name} {scale}"] = functools.partial(run, name, scale)
        seconds = bench.interleaved(f"forks, {subject.name}, N = {num}", variants)
        for scale in scales:
            bench.write(
                "swor_over_smc",
                seconds.ratio(f"swor {scale}", f"smc {scale}"),
                "ratio",
                **subject.about,
                num_particles=num,
                prompt_tokens=prompt_tokens,
                max_new_tokens=new_tokens,
                logit_scale=scale,
                swor_fork_share=shares[f"swor {scale}"],
                smc_fork_share=shares[f"smc {scale}"],
            )


def throughput(
    bench: Bench,
    subject: Subject,
    num: int,
    slots: int,
    prompts: int,
    longest_prompt: int,
    new_tokens: int,
) -> None:
    """Ragged prompts through refilled slots, against batches that wait for their last prompt.

    Lengths of prompts and caps are log-uniform, from a sixteenth of the longest.
    """
    random = np.random.default_rng(0)

    def lengths(longest: int) -> list[int]:
        low = max(1, longest // 16)
        drawn = np.exp(random.uniform(math.log(low), math.log(longest + 1), prompts))
        return [int(x) for x in drawn]

    sizes = list(zip(lengths(longest_prompt), lengths(new_tokens), strict=True))
    target = PowerTarget(bench.alpha)
    sampler = PowerSMC(num)

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
                longest=(longest_prompt, new_tokens),
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
    tokens = num * sum(t for _, t in sizes)
    about = {
        **subject.about,
        "sampler": "smc",
        "num_particles": num,
        "slots": slots,
        "prompts": prompts,
        "longest_prompt": longest_prompt,
        "max_new_tokens": new_tokens,
    }
    for name in ("slots", "slots, looking at once", "batches"):
        bench.write("throughput", tokens / seconds.median(name), "tokens/s", method=name, **about)
        bench.write(
            "throughput_ratio", seconds.ratio("batches", name), "ratio", method=name, **about
        )


def decode_one(
    bench: Bench,
    model: LanguageModel,
    params: Params,
    sampler: Sampler,
    prompt_tokens: int,
    new_tokens: int,
) -> Decoded:
    """Decodes one prompt of random tokens up to its cap."""
    requests = bench.requests(model.vocab_size, prompt_tokens, new_tokens)
    return timing.decode(model, params, sampler, requests)


def random_prompt(vocab_size: int, length: int) -> list[int]:
    """Token ids, the same for equal arguments."""
    return np.random.default_rng(length).integers(0, vocab_size, length).tolist()
