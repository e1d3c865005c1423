"""What an evaluation compares: runs of samplers, and the rows that are read off each run."""

import dataclasses
from typing import Literal

from jax_power_smc.cost_model import equal_cost_moves
from jax_power_smc.samplers import (
    Ancestral,
    MetropolisHastings,
    PowerSMC,
    Sampler,
    WithoutReplacement,
)

# Blocks of Metropolis-Hastings, as in its paper.
NUM_BLOCKS = 16

Reading = Literal["draw", "best", "vote"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      name: what the line is called.
      reading: "draw" takes the drawn particle, "best" that of highest log p, "vote" the answer
        of largest weight.
    """

    name: str
    reading: Reading


@dataclasses.dataclass(frozen=True)
class Run:
    """One sampler on all problems; best-of-N and majority vote are read off the same samples.

    Attributes:
      sampler: what runs.
      rows: what is read off it.
      temperature: of the proposal, for the records.
    """

    sampler: Sampler
    rows: tuple[Row, ...]
    temperature: float


def standard_runs(
    alpha: float, num_particles: int, ramp_tokens: int, max_new_tokens: int
) -> list[Run]:
    """Plain decoding, its usual remedies at equal N, Metropolis-Hastings at about equal tokens,
    Power-SMC without and with a ramp, and without-replacement SMC.

    Args:
      alpha: exponent of the target.
      num_particles: N, of the particle samplers and of the samples that best-of-N and the vote
        choose from; one chain of Metropolis-Hastings gets the moves that N particles cost.
      ramp_tokens: length of the ramp in the row that has one; 0 leaves that row out.
      max_new_tokens: the cap, which bounds the number of blocks.
    """
    n = num_particles
    low = f"temperature 1/{alpha:g}"
    blocks = min(NUM_BLOCKS, max_new_tokens)
    moves = equal_cost_moves(n, blocks, "global")
    runs = [
        Run(Ancestral(1.0), (Row("temperature 1", "draw"),), 1.0),
        Run(Ancestral(1 / alpha), (Row(low, "draw"),), 1 / alpha),
        Run(Ancestral(0.0), (Row("greedy", "draw"),), 0.0),
        Run(
            Ancestral(1.0, num_samples=n),
            (Row("best of N by log p", "best"), Row("majority vote", "vote")),
            1.0,
        ),
        Run(
            MetropolisHastings(blocks, moves),
            (Row("Metropolis-Hastings", "draw"),),
            1 / alpha,
        ),
        Run(PowerSMC(n), (Row("Power-SMC", "draw"),), 1 / alpha),
    ]
    if ramp_tokens:
        row = Row(f"Power-SMC, ramp {ramp_tokens}", "draw")
        runs.append(Run(PowerSMC(n, ramp_tokens=ramp_tokens), (row,), 1 / alpha))
    runs.append(Run(WithoutReplacement(n), (Row("without replacement", "draw"),), 1 / alpha))
    return runs
