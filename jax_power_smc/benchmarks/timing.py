"""How the speed benchmark times: variants in turn, medians, and nothing of compilation."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc.core import prng
from jax_power_smc.engine import executables
from jax_power_smc.engine.buckets import Sizes
from jax_power_smc.engine.request import ActiveRequest
from jax_power_smc.engine.scheduler import Scheduler
from jax_power_smc.engine.slot_plan import CHUNK, GROUPS
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.samplers import Kernel

# (what is measured, rounds done, rounds in all)
Report = Callable[[str, int, int], None]


class Seconds:
    """Seconds of every variant in every round.

    Rounds are compared pair by pair: what else the machine does changes slowly, so the two members
    of a pair suffer alike.
    """

    def __init__(self, rounds: Mapping[str, list[float]]) -> None:
        self._rounds = rounds

    def median(self, name: str) -> float:
        """Of one variant."""
        return statistics.median(self._rounds[name])

    def ratio(self, name: str, against: str) -> float:
        """The median over rounds of one variant's time over another's."""
        pairs = zip(self._rounds[name], self._rounds[against], strict=True)
        return statistics.median(a / b for a, b in pairs)


def in_turn(
    title: str, variants: Mapping[str, Callable[[], float]], repeats: int, report: Report
) -> Seconds:
    """Every variant once per round, after a first round that compiles and is not counted.

    Args:
      title: for the report.
      variants: name -> runs it and returns its seconds.
      repeats: rounds that count.
      report: called before every run.
    """
    rounds: dict[str, list[float]] = {name: [] for name in variants}
    total = (repeats + 1) * len(variants)
    for number in range(total):
        name = list(variants)[number % len(variants)]
        report(title, number, total)
        seconds = variants[name]()
        if number >= len(variants):
            rounds[name].append(seconds)
    executables.forget()  # no later section needs them
    return Seconds(rounds)


def copy_bandwidth(num_bytes: int, repeats: int) -> float:
    """Bytes per second that are read and written by a large elementwise operation."""
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
    """What a run through the slots took and did.

    Attributes:
      seconds: of decoding.
      total: with the prefills of the first prompts; neither has compilation in it.
      works: the prompts, with what was observed.
    """

    seconds: float
    total: float
    works: list[ActiveRequest]

    @property
    def fork_share(self) -> float:
        """The share of running rows that took over another one's past, over all steps."""
        return float(np.mean(self._seen("forks")) / self._rows)

    @property
    def ess_share(self) -> float:
        """The mean of ESS / N at the steps that resampled; NaN if none did."""
        ess = self._seen("ess")[self._seen("resampled")]
        return float(ess.mean() / self._rows) if ess.size else float("nan")

    @property
    def _rows(self) -> int:
        outcomes = [work.outcome for work in self.works if work.outcome]
        (left,) = {outcome.final.particle_index.shape[-1] for outcome in outcomes}
        return left

    def _seen(self, name: str) -> np.ndarray:
        """What was observed at the steps of all prompts; the last chunk may go beyond the cap."""
        return np.concatenate(
            [np.asarray(getattr(work.steps, name))[0, : work.cap] for work in self.works]
        )


def decode(
    model: LanguageModel,
    params: Any,
    sampler: Kernel,
    works: Sequence[ActiveRequest],
    *,
    slots: int = 1,
    lookahead: int = 1,
    longest: tuple[int, int] | None = None,
) -> Decoded:
    """Sends prompts through slots as the engine does; a ``ActiveRequest`` is used up by it.

    ``longest`` is the longest prompt and the largest cap that there is room for, if they are not
    those of ``works``.
    """
    prompt_tokens, new_tokens = longest or (
        max(len(work.prompt) for work in works),
        max(work.cap for work in works),
    )
    limit = getattr(model, "max_positions", None)
    sizes = Sizes(slots, max(1, slots // GROUPS), prompt_tokens, new_tokens, CHUNK, limit)
    queue = Scheduler(model, params, sampler, prng.seed_key(0), sizes, lookahead=lookahead)
    for work in works:
        queue.check(work.target)
    for work in queue.run(works):
        if work.error is not None:
            raise work.error
    decode = queue.seconds["decode"]
    return Decoded(decode, decode + queue.seconds["prefill"], list(works))
