"""What was recorded of one prompt, and the tokens that follow from it. On the host, in NumPy.

A step records who continued whom, and with which token; no sequence is ever copied. Letters: P
prompts, N particles, M the population, T the cap.
"""

import itertools
from typing import Any

import jax
import numpy as np

from jax_power_smc.engine.state import PAD_ID
from jax_power_smc.engine.step import Record


class PendingRecords:
    """Records of several prompts [P, ticks, ...], on their way to the host."""

    def __init__(self, records: Record) -> None:
        self._records = records
        self._is_here = False
        copy_to_host_async(records)

    def fetch(self) -> None:
        """Waits for the copy."""
        if not self._is_here:
            self._records, self._is_here = to_host(self._records), True

    @property
    def copies(self) -> np.ndarray:
        """[P, ticks] int32, rows that were copied."""
        self.fetch()
        return np.asarray(self._records.copies)

    def of(self, slot: int) -> Record:
        """The steps that one prompt took, [steps, ...]."""
        self.fetch()
        took = np.asarray(self._records.step[slot]) >= 0
        records: Any = self._records
        return Record(*(x[slot][took] for x in records))


def concatenate(pieces: list[Record]) -> Record:
    """Records of consecutive steps as one, [steps, ...]."""
    leaves: Any = zip(*pieces, strict=True)
    return Record(*map(np.concatenate, leaves))  # type: ignore[arg-type]


def trace(history: Any, index: np.ndarray, cap: int) -> tuple[np.ndarray, np.ndarray]:
    """The sequences of particles after the last recorded step.

    Args:
      history: ``Record`` [steps, ...] of one prompt.
      index: [N] int32, indices into the population; any for an unused particle.
      cap: T.

    Returns:
      Tokens [N, T] int32, pad after the end; and log p of each token [N, T], 0 after the end.
    """
    tokens, log_probs, _ = _trace(history, index, cap)
    return tokens, log_probs


def settled(history: Any, index: np.ndarray) -> np.ndarray:
    """The tokens [n] that all particles at ``index`` share from the first on, and so always will.

    Tokens are compared, not ancestors, which never meet where there is no resampling. Padding after
    the end of a sequence is not a token of it.
    """
    tokens, _, drew = _trace(history, index, len(history.step))
    shared = np.all((tokens == tokens[:1]) & drew, axis=0)
    return tokens[0, : int(np.argmin(np.append(shared, False)))]


def _trace(history: Any, index: np.ndarray, cap: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens and log p as ``trace``, and which of them were drawn, [N, T] bool."""
    tokens = np.full((len(index), cap), PAD_ID, np.int32)
    log_probs = np.zeros((len(index), cap), history.log_prob.dtype)
    drew = np.zeros((len(index), cap), bool)
    # From one step at which a particle continued another one to the step before it.
    own = np.arange(history.parent.shape[1])
    moves = np.flatnonzero((history.parent != own).any(axis=1)).tolist()
    for end, first in itertools.pairwise([*dict.fromkeys([0, *moves, len(history.step)])][::-1]):
        steps = slice(first, end)
        drew[:, steps] = drawn = history.active[steps, index].T
        tokens[:, steps] = np.where(drawn, history.token[steps, index].T, PAD_ID)
        log_probs[:, steps] = np.where(drawn, history.log_prob[steps, index].T, 0)
        index = history.parent[first, index]
    return tokens, log_probs, drew


def to_host(tree: Any) -> Any:
    """The arrays in host memory; ``jax.device_get`` would start their copies once more."""
    return jax.tree.map(np.asarray, tree)


def copy_to_host_async(tree: Any) -> None:
    """Starts the copies; only those who read the arrays wait for them."""
    for x in jax.tree.leaves(tree):
        x.copy_to_host_async()
