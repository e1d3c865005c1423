"""Targets of different prompts in one structure, so that one executable serves them all."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc import decode
from jax_power_smc.decode import PromptInputs, StopStates
from jax_power_smc.stop import StopRule
from jax_power_smc.target import PowerTarget, TargetArrays

# States of all rules together; they are counted in int16.
LARGEST_TABLE = 2**15 - 1


class MixedTargets:
    """The targets of all prompts of a set of slots.

    Stop rules share one table, in which each rule has states of its own, padded to a power of two.
    Truncations and stop rules cost time, so their arrays exist only from the first prompt on that
    has one; for the others they then allow everything.
    """

    def __init__(self, vocab_size: int, tokenizer: Any) -> None:
        self._vocab_size, self._tokenizer = vocab_size, tokenizer
        self._has_top_k = self._has_top_p = False
        self._known: dict[PowerTarget, TargetArrays] = {}
        # rule -> (start, final)
        self._rules: dict[StopRule, tuple[int, int]] = {}
        self._states = np.zeros((0, vocab_size), np.int16)
        self._table: jax.Array | None = None

    def arrays(
        self, asked: Sequence[tuple[PowerTarget, int]], rows: int
    ) -> tuple[TargetArrays, StopStates | None]:
        """Targets with their caps, [rows, ...]; missing rows have cap 0: they are done.

        Where the stop rules are in ``table``, None if there is no table.
        """
        for target, _ in asked:
            self.admit(target)
        filled = [*asked, *[(asked[0][0], 0)] * (rows - len(asked))]
        one_each = [self._known[target] for target, _ in filled]
        # In host memory, like all that is handed to a program: an operation here would wait for
        # what the device is doing.
        stacked: Any = jax.tree.map(lambda *xs: np.stack(xs), *map(self._completed, one_each))
        caps = np.array([cap for _, cap in filled], np.int32)
        stop = None
        if self._table is not None:
            ends = [self._rules.get(target.stop, (0, -1)) for target, _ in filled]  # type: ignore[arg-type]
            starts, finals = np.array(ends).T
            own: Any = starts.astype(np.int32), finals.astype(np.int16)
            stop = StopStates(*own)
        return stacked._replace(cap=caps), stop

    @property
    def table(self) -> jax.Array | None:
        """[states, V] int16, of all stop rules; None if there is none."""
        return self._table

    def widen(self, prompts: PromptInputs) -> PromptInputs:
        """Prompts [P, ...] made before the last call of ``arrays``, in the structure of now."""
        target, rows = prompts.target, prompts.target.cap.shape[0]
        widened = {}
        if target.top_k is None and self._has_top_k:
            widened["top_k"] = jnp.full((rows,), self._vocab_size, jnp.int32)
        if target.top_p is None and self._has_top_p:
            widened["top_p"] = jnp.ones((rows,), target.alpha.dtype)
        stop = prompts.stop
        if stop is None and self._table is not None:
            nowhere = jnp.full((rows,), -1, jnp.int16)
            stop = StopStates(jnp.zeros((rows,), jnp.int32), nowhere)
        return prompts._replace(target=target._replace(**widened), stop=stop)

    def admit(self, target: PowerTarget) -> None:
        """Makes room for a target that will come.

        Raises:
          ValueError: for a stop rule without a tokenizer that says what tokens spell, or one too
            many.
        """
        if target in self._known:
            return
        if target.stop is not None and target.stop not in self._rules:
            self._add(target.stop)
        self._has_top_k |= target.top_k is not None
        self._has_top_p |= target.top_p is not None
        self._known[target] = jax.tree.map(np.asarray, target.arrays(self._vocab_size, 1))

    def _add(self, rule: StopRule) -> None:
        """Appends the rule's states to the table."""
        arrays = decode.stop_arrays(rule, self._tokenizer, self._vocab_size)
        assert arrays is not None
        first = len(self._states)
        own = np.asarray(arrays.table)
        if first + len(own) > LARGEST_TABLE:
            raise ValueError(
                f"stop={rule!r} is one rule too many: all rules of a stream together may have "
                f"{LARGEST_TABLE} states."
            )
        self._states = np.concatenate([self._states, own + np.int16(first)])
        self._rules[rule] = first, first + int(arrays.states.final)
        rows = 1 << (len(self._states) - 1).bit_length()
        self._table = jnp.asarray(np.pad(self._states, ((0, rows - len(self._states)), (0, 0))))

    def _completed(self, target: Any) -> Any:
        """One target with the truncations that others have, allowing everything."""
        if target.top_k is None and self._has_top_k:
            target = target._replace(top_k=np.asarray(self._vocab_size, np.int32))
        if target.top_p is None and self._has_top_p:
            target = target._replace(top_p=np.ones_like(target.alpha))
        return target
