"""One prompt on its way through the slots, and what was observed of it."""

import dataclasses
import math
from typing import Any

import jax

from jax_power_smc.core.types import TokenIds
from jax_power_smc.engine.decode import StepInfo
from jax_power_smc.engine.programs import FinishedPrompts
from jax_power_smc.targets.power import PowerTarget


@dataclasses.dataclass(eq=False)
class ActiveRequest:
    """One prompt and its settings; later its outcome.

    Attributes:
      prompt: token ids [S].
      prompt_id: for the randomness.
      target: what to sample from.
      cap: T.
      key: the key of its run, if it differs from the scheduler's.
      cancelled: the result is no longer wanted; may be set at any time.
      error: why there is no outcome; a request that has one from the start gets no slot.
      outcome: final weights and sequences, leaves [1, ...] in host memory; None until finished.
      steps: what was observed at each step, leaves [1, steps, ...]; None until finished.
      acceptance_rate: of Metropolis-Hastings moves; NaN for other samplers.
    """

    prompt: TokenIds
    prompt_id: int
    target: PowerTarget
    cap: int
    key: jax.Array | None = None
    cancelled: bool = False
    error: Exception | None = None
    outcome: FinishedPrompts | None = None
    steps: StepInfo | None = None
    acceptance_rate: float = math.nan
    # While it runs: the clock of its step 1, and the pieces of ``steps`` with its index in each.
    start_clock: int = 0
    pieces: list[tuple["PendingSteps", int]] = dataclasses.field(default_factory=list)

    @property
    def needs_decoding(self) -> bool:
        """Whether it is to get a slot."""
        return not self.cancelled and self.error is None


def take_prompt(tree: Any, index: int) -> Any:
    """One prompt's part [1, ...] of a pytree with leaves [prompts, ...]."""
    return jax.tree.map(lambda x: x[index : index + 1], tree)


class PendingSteps:
    """What was observed of several prompts [prompts, steps, ...], on its way to the host."""

    def __init__(self, steps: StepInfo) -> None:
        self._steps = steps
        copy_to_host_async(steps)

    def of(self, index: int) -> StepInfo:
        """The steps of one prompt, [1, steps, ...]; waits for the copy."""
        self._steps = jax.device_get(self._steps)
        return take_prompt(self._steps, index)


def copy_to_host_async(tree: Any) -> None:
    """Starts the copies; only those who read the arrays wait for them."""
    for x in jax.tree.leaves(tree):
        x.copy_to_host_async()
