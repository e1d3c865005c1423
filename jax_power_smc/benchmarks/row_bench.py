"""What the sections of the benchmark of rows share (``row_throughput``, ``row_latency``).

It measures what a model row for each distinct prefix costs. Every section writes what it measured
and the ratios that it is about. Variants are interleaved; the keys of the rounds that count are 0,
1, 2, ...

Letters: P prompts, N particles, R rows, T generated tokens, D_t distinct prefixes of a prompt.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jax_power_smc.benchmarks import decode_worker, timing
from jax_power_smc.benchmarks.baseline import Baseline
from jax_power_smc.benchmarks.decode_worker import Run, Subject, Work
from jax_power_smc.benchmarks.records import Progress, Write
from jax_power_smc.benchmarks.speed import random_prompt

# Mean D_t of a model with sharpened logits; the factors among which one is searched that gives it.
SHARP_ROWS = (4.0, 7.0)
_FACTORS = (1.0, 256.0)
_TRIES = 12

Prompts = Sequence[Sequence[int]]
Spec = dict[str, Any]
Decode = Callable[[Work], Run]
# The sampler's class and its arguments.
Sampler = tuple[str, dict[str, Any]]
PLAIN: Sampler = ("Ancestral", {"temperature": 1.0})


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all sections share; ``baseline`` is the engine to compare with, if there is one."""

    alpha: float
    repeats: int
    write: Write
    progress: Progress
    baseline: Baseline | None = None

    def work(self, sampler: Sampler, prompts: Prompts, cap: int, slots: int, **more: Any) -> Work:
        """Prompts of this sampler."""
        name, settings = sampler
        return Work(name, settings, prompts, cap, slots, alpha=self.alpha, **more)

    def measure(
        self,
        title: str,
        variants: Mapping[str, "Variant"],
        read: Callable[[Run], float] | None = None,
    ) -> timing.Seconds:
        """Runs the variants; ``read`` takes the seconds that are compared, default all of a run."""

        def seconds(variant: Variant) -> Callable[[], float]:
            return lambda: (read or (lambda run: run.seconds))(variant())

        calls = {name: seconds(variant) for name, variant in variants.items()}
        return timing.interleaved(title, calls, self.repeats, self.progress)


class Variant:
    """A function from the seed of a key to a run, called once in each round.

    Args:
      run: the function.
      keys: how many keys the first call runs, all but its own before it. Each key's rows come and
        go in their own way, so this compiles what later calls need; it is there for them unless so
        many programs follow that it is dropped (``engine.executables``).

    Attributes:
      runs: what it returned so far; the first only compiles, with the key of the second.
    """

    def __init__(self, run: Callable[[int], Run], keys: int = 1) -> None:
        self._run, self._keys = run, keys
        self.runs: list[Run] = []

    def __call__(self) -> Run:
        for key in range(1, self._keys) if not self.runs else ():
            self._run(key)
        self.runs.append(self._run(max(len(self.runs) - 1, 0)))
        return self.runs[-1]

    def mean(self, read: Callable[[Run], float]) -> float:
        """Mean over the runs that count."""
        return sum(map(read, self.runs[1:])) / (len(self.runs) - 1)


def variant(decode: Decode, work: Work, warmup_tokens: int | None = None, keys: int = 1) -> Variant:
    """Runs of one piece of work; the first may end early where that compiles enough."""

    def run(key: int) -> Run:
        cap = None if made.runs else warmup_tokens
        return decode(dataclasses.replace(work, key=key, cap=cap))

    made = Variant(run, keys)
    return made


def name_of(sampler: Sampler) -> str:
    """The sampler as figures and tables name it."""
    kind, settings = sampler
    if kind == "WithoutReplacement":
        return f"swor {settings['num_particles']}, floor {settings['mass_floor']:g}"
    return f"smc {settings['num_particles']}" if kind == "PowerSMC" else "plain"


def smc(num_particles: int) -> Sampler:
    """The sampler of Algorithm 1."""
    return "PowerSMC", {"num_particles": num_particles}


def swor(num_particles: int, mass_floor: float) -> Sampler:
    """Without replacement, stopped early only if there is no floor by which live rows die."""
    stop = 0.0 if mass_floor else 1e-4
    settings = {"num_particles": num_particles, "mass_floor": mass_floor, "early_stop": stop}
    return "WithoutReplacement", settings


def total(runs: Sequence[Run]) -> Run:
    """Of runs that follow each other."""
    names = [name for name in Run._fields if name not in ("rows", "rows_there")]
    sums = {name: sum(getattr(run, name) for run in runs) for name in names}
    return Run(
        rows_there=max(run.rows_there for run in runs),
        rows=[each for run in runs for each in run.rows],
        **sums,
    )


def sharpened(
    bench: Bench, name: str, subject: Subject, num_particles: int, prompt_tokens: int, steps: int
) -> Subject:
    """The model with its logits times a factor, at which the mean D_t lies in ``SHARP_ROWS``.

    The factor is written and printed, with that mean.

    Raises:
      ValueError: if no factor was found.
    """
    prompt = random_prompt(subject.model.vocab_size, prompt_tokens)
    low, high = _FACTORS
    for attempt in range(_TRIES):
        bench.progress(f"sharpening, {name}", attempt, _TRIES)
        factor = math.sqrt(low * high)
        made = _times(subject, factor)
        work = bench.work(smc(num_particles), [prompt] * 2, steps, 2, ends=False)
        rows = decode_worker.decode(made, work).mean_rows
        if SHARP_ROWS[0] <= rows <= SHARP_ROWS[1]:
            bench.progress(f"sharpening, {name}", _TRIES, _TRIES)
            about = {"model": name, "num_particles": num_particles, "max_new_tokens": steps}
            bench.write("logit_factor", factor, "ratio", rows_per_step=rows, **about)
            print(f"{name}: logits times {factor:.3g}, at which a step has {rows:.1f} rows.")
            return made
        low, high = (factor, high) if rows > SHARP_ROWS[1] else (low, factor)
    raise ValueError(
        f"no factor of {name}'s logits between {_FACTORS[0]:g} and {_FACTORS[1]:g} gives "
        f"{SHARP_ROWS[0]:g} to {SHARP_ROWS[1]:g} rows per step with N = {num_particles}."
    )


def _times(subject: Subject, factor: float) -> Subject:
    """The model with its logits times a factor: that of the last norm, before the head."""
    params = jax.tree.map(lambda x: x, subject.params)
    scale = params["norm"]["scale"]
    params["norm"]["scale"] = scale.replace(scale[...] * factor)
    return subject._replace(params=params)
