"""How many prompts fit into a device whose rows they share: recorded D_t against the memory plan.

Letters: P prompts, N particles, R rows, T generated tokens, D_t distinct prefixes of a prompt.
"""

import base64
import bisect
import dataclasses
import zlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_power_smc.benchmarks import decode_worker
from jax_power_smc.benchmarks.decode_worker import Subject
from jax_power_smc.benchmarks.row_bench import Bench, Prompts, smc
from jax_power_smc.engine import memory_plan
from jax_power_smc.engine.buckets import power_of_two
from jax_power_smc.engine.memory_plan import MemoryPlan
from jax_power_smc.engine.slot_plan import CHUNK, GROUPS
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import TransformerLM

# The share of prompt-steps at which a prompt may wait for rows.
MOST_STALLED = 0.05
# Ways of giving the recorded trajectories to prompts, over which the share is averaged.
SEEDS = 4


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A device that is planned for and is not there."""

    memory: int
    platform: str = "gpu"

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_limit": self.memory}

    def __str__(self) -> str:
        return f"a device of {self.memory / 1e9:g} GB"


def fit(
    bench: Bench,
    name: str,
    subject: Subject,
    prompts: Prompts,
    num_particles: int,
    max_new_tokens: int,
    shape: TransformerConfig,
    prompt_tokens: int,
    memory: int,
) -> None:
    """Records D_t of prompts without end tokens; writes the largest P of another model.

    Args:
      bench, name, subject, prompts: what decodes; its D_t stand in for those of the other model.
      num_particles, max_new_tokens: N and T of both.
      shape, prompt_tokens: the other model, in bfloat16, and its longest prompt.
      memory: bytes of its device.
    """
    title = f"rows of {name}, T = {max_new_tokens}"
    bench.progress(title, 0, 1)
    work = bench.work(smc(num_particles), prompts, max_new_tokens, len(prompts), ends=False)
    rows = [np.array(each) for each in decode_worker.decode(subject, work).rows]
    bench.progress(title, 1, 1)
    about = {"section": "fit", "model": name, "num_particles": num_particles}
    about |= {"max_new_tokens": max_new_tokens}
    for number, each in enumerate(rows):
        bench.write(
            "rows_per_step", each.mean(), "rows", prompt=number, trajectory=pack(each), **about
        )
    about |= {"prompt_tokens": prompt_tokens, "memory": memory}
    most = largest(rows, shape, num_particles, prompt_tokens, max_new_tokens, memory)
    plan = plan_for(shape, most, num_particles, prompt_tokens, max_new_tokens, memory)
    share = stalled_share(rows, most, plan.rows)
    bench.write("prompts_that_fit", most, "prompts", rows=plan.rows, stalled_share=share, **about)


def pack(trajectory: np.ndarray) -> str:
    """D_t of a prompt, below 65,536, as text."""
    return base64.b85encode(zlib.compress(trajectory.astype("<u2").tobytes(), 9)).decode()


def unpack(text: str) -> np.ndarray:
    """The trajectory that was packed."""
    return np.frombuffer(zlib.decompress(base64.b85decode(text)), "<u2").astype(np.int64)


def plan_for(
    shape: TransformerConfig,
    slots: int,
    num_particles: int,
    prompt_tokens: int,
    max_new_tokens: int,
    memory: int,
) -> MemoryPlan:
    """The plan of an accelerator with so many prompt slots, or fewer, and all rows that fit then.

    Raises:
      ValueError: if not even one prompt fits.
    """
    model = TransformerLM(shape, jnp.bfloat16)
    device = Accelerator(memory)
    return memory_plan.plan(
        model,
        nnx.state(model.abstract_module()),
        num_particles,
        capacity=prompt_tokens + max_new_tokens,
        bucket=power_of_two(prompt_tokens),
        slots=slots,
        rows=lambda slots: (num_particles, slots * num_particles),
        group=lambda slots: max(1, slots // GROUPS),
        chunk=CHUNK,
        device=device,
    )


def largest(
    rows: Sequence[np.ndarray],
    shape: TransformerConfig,
    num_particles: int,
    prompt_tokens: int,
    max_new_tokens: int,
    memory: int,
) -> int:
    """The largest P that fits and stalls at most at ``MOST_STALLED`` of its prompt-steps."""

    def is_too_many(slots: int) -> bool:
        plan = plan_for(shape, slots, num_particles, prompt_tokens, max_new_tokens, memory)
        return plan.slots < slots or stalled_share(rows, slots, plan.rows) > MOST_STALLED

    bound = 1
    while not is_too_many(bound):
        bound *= 2
    return bisect.bisect_left(range(1, bound), True, key=is_too_many)


def stalled_share(rows: Sequence[np.ndarray], num_prompts: int, num_rows: int) -> float:
    """The share of prompt-steps at which a prompt waits, in the middle of a long job.

    Every prompt follows one of the recorded trajectories. The first ones are at ages spread evenly,
    and a new prompt enters whenever one ends.
    """
    shares = [_stalled(rows, num_prompts, num_rows, seed) for seed in range(SEEDS)]
    return float(np.mean(shares))


def _stalled(rows: Sequence[np.ndarray], num_prompts: int, num_rows: int, seed: int) -> float:
    """By the rules of ``rows.may_proceed``: in order of arrival, and giving back never waits.

    Where nobody can move, the youngest prompt gives its rows back, and later asks for all of them.
    """
    random = np.random.default_rng(seed)
    steps = max(map(len, rows))
    # Padded by zeros: after its last step a prompt has no row.
    table = np.stack([np.pad(each, (0, steps + 1 - len(each))) for each in rows])
    lengths = np.array([len(each) for each in rows])
    # In order of arrival: the trajectory of each prompt, its step, and the rows that it has.
    which = random.integers(len(rows), size=num_prompts)
    at = (np.arange(num_prompts, 0, -1) * lengths[which] // num_prompts) - 1
    holds = table[which, at]
    holds[np.cumsum(holds) > num_rows] = 0
    stalled = 0
    for _ in range(steps):
        wants = table[which, at + 1]
        moves = may_proceed(holds, wants, num_rows - holds.sum())
        while not moves.any() and np.count_nonzero(holds) > 1:
            holds[np.flatnonzero(holds)[-1]] = 0
            moves = may_proceed(holds, wants, num_rows - holds.sum())
        stalled += num_prompts - int(np.count_nonzero(moves))
        holds, at = np.where(moves, wants, holds), at + moves
        ended = at >= lengths[which]
        new = np.count_nonzero(ended)
        if new:
            # A prompt begins with its own row, before its first step.
            which = np.concatenate([which[~ended], random.integers(len(rows), size=new)])
            at = np.concatenate([at[~ended], np.full(new, -1)])
            holds = np.concatenate([holds[~ended], np.zeros(new, holds.dtype)])
    return stalled / (steps * num_prompts)


def may_proceed(holds: np.ndarray, wants: np.ndarray, num_free: int) -> np.ndarray:
    """[P] bool, prompts in order of arrival: ``engine.rows.may_proceed`` in NumPy."""
    asks = np.maximum(wants - holds, 0)
    given_back = np.maximum(holds - wants, 0).sum()
    return (asks == 0) | (np.cumsum(asks) <= num_free + given_back)
