"""The same computation in PyTorch (see ``torch_baseline``), interleaved with ours.

Letters: S prompt length, N particles, T generated tokens.
"""

import functools
from collections.abc import Callable, Sequence

from jax_power_smc.benchmarks import torch_baseline
from jax_power_smc.benchmarks.speed import Bench, Sampler, Subject, random_prompt
from jax_power_smc.samplers import Ancestral, PowerSMC


def measure(
    bench: Bench,
    subject: Subject,
    particles: Sequence[int],
    prompt_tokens: Sequence[int],
    max_new_tokens: int,
) -> None:
    """Our samplers against ``generate`` and Power-SMC in a loop, with equal weights and lengths."""
    theirs = torch_baseline.to_torch(subject.model, subject.params)
    versions = torch_baseline.describe()
    for length in prompt_tokens:
        prompt = random_prompt(subject.model.vocab_size, length)
        variants: dict[str, Callable[[], float]] = {}

        def ours(sampler: Sampler, length: int = length) -> float:
            done = bench.decode(subject, sampler, length, max_new_tokens)
            return done.seconds / (max_new_tokens - 1)

        def generated(num: int, prompt: list[int] = prompt) -> float:
            return torch_baseline.generate(theirs, prompt, num, max_new_tokens).timing.per_token

        def looped(num: int, prompt: list[int] = prompt) -> float:
            return torch_baseline.power_smc(
                theirs, prompt, num, bench.alpha, max_new_tokens
            ).timing.per_token

        pairs: list[tuple[str, str, str, int]] = []
        for num in particles:
            plain = f"plain {num}", f"generate {num}"
            variants[plain[0]] = functools.partial(ours, Ancestral(1.0, num))
            variants[plain[1]] = functools.partial(generated, num)
            pairs.append((*plain, "transformers generate", num))
            if num > 1:
                power = f"smc {num}", f"torch smc {num}"
                variants[power[0]] = functools.partial(ours, PowerSMC(num))
                variants[power[1]] = functools.partial(looped, num)
                pairs.append((*power, "Power-SMC in a Python loop", num))
        seconds = bench.interleaved(f"torch, {subject.name}, S = {length}", variants)
        for mine, other, peer, num in pairs:
            about = {
                **subject.about,
                "peer": peer,
                "num_particles": num,
                "prompt_tokens": length,
                "max_new_tokens": max_new_tokens,
                **versions,
            }
            bench.write("step_time", seconds.median(mine), "s", **about)
            bench.write("peer_step_time", seconds.median(other), "s", **about)
            bench.write("speedup", seconds.ratio(other, mine), "ratio", **about)
