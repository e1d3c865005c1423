"""How the speed benchmark measures time: interleaved variants, medians, no compilation."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc.benchmarks.records import Progress
from jax_power_smc.core import prng
from jax_power_smc.core.types import Params
from jax_power_smc.engine import executables
from jax_power_smc.engine.request import ActiveRequest
from jax_power_smc.engine.scheduler import Scheduler
from jax_power_smc.engine.slot_plan import plan_slots
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.samplers import Kernel


class Seconds:
    """Seconds of every variant in every round.

    Variants are compared within rounds: other load on the machine changes slowly, so it affects
    both members of a pair alike.
    """

    def __init__(self, rounds: Mapping[str, list[float]]) -> None:
        self._rounds = rounds

    def median(self, name: str) -> float:
        return statistics.median(self._rounds[name])

    def ratio(self, name: str, against: str) -> float:
        """The median over rounds of one variant's time over another's."""
        pairs = zip(self._rounds[name], self._rounds[against], strict=True)
        return statistics.median(a / b for a, b in pairs)


def interleaved(
    title: str, variants: Mapping[str, Callable[[], float]], repeats: int, progress: Progress
) -> Seconds:
    """Runs every variant once per round, after a first round that compiles and does not count.

    The variants are functions that run and return the seconds, by name; ``repeats`` are the rounds
    that count.
    """
    rounds: dict[str, list[float]] = {name: [] for name in variants}
    total = (repeats + 1) * len(variants)
    for number in range(total):
        name = list(variants)[number % len(variants)]
        progress(title, number, total)
        seconds = variants[name]()
        if number >= len(variants):
            rounds[name].append(seconds)
    progress(title, total, total)
    executables.forget()  # no later section needs them
    return Seconds(rounds)


def copy_bandwidth(num_bytes: int, repeats: int) -> float:
    """Bytes per second that a large elementwise operation reads and writes."""
    x = jnp.zeros((num_bytes // 4,), jnp.float32)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jax.block_until_ready(add(x))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        x = jax.block_until_ready(add(x))
        seconds.append(time.perf_counter() - began)
    return 2 * x.nbytes / statistics.median(seconds)


class Decoded(NamedTuple):
    """Result of decoding some prompts, with what was recorded at their steps.

    Seconds are of decoding, ``total`` of decoding and prefill; both exclude compilation.
    """

    seconds: float
    total: float
    requests: list[ActiveRequest]

    @property
    def mean_rows(self) -> float:
        """Distinct prefixes of a prompt, the rows that the model ran, averaged over all steps."""
        # Before the first step there is the prompt's own row; after the last there is none.
        rows = [np.append(1, steps.num_rows[:-1]) for r in self.requests if (steps := r.steps)]
        return float(np.mean(np.concatenate(rows)))


def decode(
    model: LanguageModel,
    params: Params,
    sampler: Kernel,
    requests: Sequence[ActiveRequest],
    *,
    slots: int = 1,
    lookahead: int = 1,
    longest: tuple[int, int] | None = None,
) -> Decoded:
    """Decodes prompts through slots as the engine does, which consumes the requests.

    ``longest`` is the longest prompt and the largest cap to reserve room for; by default, those of
    ``requests``.
    """
    prompt_tokens, new_tokens = longest or (
        max(len(request.prompt) for request in requests),
        max(request.cap for request in requests),
    )
    sizes, _ = plan_slots(
        model,
        params,
        sampler,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        wanted=slots,
        slots=slots,
        memory_limit=None,
    )
    queue = Scheduler(model, params, sampler, prng.seed_key(0), sizes, lookahead=lookahead)
    for request in requests:
        queue.check(request.target)
    for request in queue.run(requests):
        if request.error is not None:
            raise request.error
    decode = queue.seconds["decode"]
    return Decoded(decode, decode + queue.seconds["prefill"], list(requests))
