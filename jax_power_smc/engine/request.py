"""One prompt on its way through the slots, and what was observed of it."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_power_smc.core.types import TokenIds
from jax_power_smc.engine.programs import FinishedPrompts
from jax_power_smc.engine.records import PendingRecords
from jax_power_smc.engine.state import PromptState
from jax_power_smc.engine.step import Record
from jax_power_smc.targets.power import PowerTarget


class Suspended(NamedTuple):
    """A prompt without rows, which resumes what it had decided.

    Attributes:
      state: its ``PromptState``, leaves without an axis of prompts, in host memory.
      prefixes: what needs a row: members [N] bool, tokens [L], and the stop rule's state then.
      needs: how many rows it takes to continue: for a stalled prompt, those of its next prefixes.
    """

    state: PromptState
    prefixes: list[tuple[np.ndarray, np.ndarray, int]]
    needs: int


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
      outcome: final weights and the population, leaves [1, ...] in host memory; None until
        finished.
      tokens, token_log_probs: [N, T], the returned sequences and log p of their tokens.
      steps: what was recorded at each step, leaves [steps, ...]; None until finished.
      acceptance_rate: of Metropolis-Hastings moves; NaN for other samplers.
      num_preempted: how often it gave its rows back.
    """

    prompt: TokenIds
    prompt_id: int
    target: PowerTarget
    cap: int
    key: jax.Array | None = None
    cancelled: bool = False
    error: Exception | None = None
    outcome: FinishedPrompts | None = None
    tokens: np.ndarray | None = None
    token_log_probs: np.ndarray | None = None
    steps: Record | None = None
    acceptance_rate: float = math.nan
    num_preempted: int = 0
    # While it runs: its place in the order of arrival, the pieces of ``steps`` with its slot in
    # each, and what it resumes with.
    order: int = 0
    pieces: list[tuple[PendingRecords, int]] = dataclasses.field(default_factory=list)
    suspended: Suspended | None = None

    @property
    def needs_decoding(self) -> bool:
        """Whether it is to get a slot."""
        return not self.cancelled and self.error is None


def take_prompt(tree: Any, index: int) -> Any:
    """One prompt's part [1, ...] of a pytree with leaves [prompts, ...]."""
    return jax.tree.map(lambda x: x[index : index + 1], tree)
