"""Targets of different prompts in one structure, so that one executable serves them all."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc.core.mesh import REPLICATED
from jax_power_smc.engine import executables, programs
from jax_power_smc.engine.buckets import LARGEST_TABLE, power_of_two
from jax_power_smc.engine.decode import PromptInputs
from jax_power_smc.engine.layout import ONE_DEVICE, Layout
from jax_power_smc.targets.power import PowerTarget
from jax_power_smc.targets.stop_arrays import StopStates
from jax_power_smc.targets.stop_rules import StopRule, checked_token_bytes, token_table

# Rules get a power of two of states, so that few programs write them.
_SMALLEST_BLOCK = 8


def block_states(rule: StopRule) -> int:
    """Rows of the table that a rule takes."""
    return max(_SMALLEST_BLOCK, power_of_two(len(rule.automaton().table)))


class TargetBatch:
    """The targets of all prompts of a set of slots.

    Stop rules share one table on the device, in which each has a block of states of its own for as
    long as a prompt has it. A new rule is written into the table's own memory. The table doubles
    when it is full of rules that are in use, up to ``most_states``.

    Truncations and stop rules cost time, so their arrays exist only from the first prompt on that
    has one; for the others they then allow everything.

    Attributes:
      table: [states, V] int16, or None before the first rule. Writing a rule gives up its memory.
    """

    def __init__(
        self,
        vocab_size: int,
        tokenizer: Any,
        most_states: int = LARGEST_TABLE,
        layout: Layout = ONE_DEVICE,
    ) -> None:
        self._vocab_size, self._tokenizer = vocab_size, tokenizer
        self._most, self._layout = most_states, layout
        self._has_top_k = self._has_top_p = False
        self._pieces: list[bytes | None] | None = None
        # rule -> (first state, states of its block, final state)
        self._blocks: dict[StopRule, tuple[int, int, int]] = {}
        self.table: jax.Array | None = None

    def check(self, target: PowerTarget) -> None:
        """Raises ValueError for a target that can never be served.

        That is one with a stop rule, but without a tokenizer that says what tokens spell, or with
        more states than there may be.
        """
        if target.stop is None:
            return
        self._spelled(target.stop)
        states = len(target.stop.automaton().table)
        if states > self._most:
            raise ValueError(
                f"stop={target.stop!r} has {states} states, and the memory has room for those of "
                f"stop rules with {self._most} in all; use fewer slots or a shorter rule."
            )

    def place(self, target: PowerTarget, in_use: Collection[StopRule | None]) -> bool:
        """Makes room for a target that was checked, and says whether there is any for now.

        ``in_use`` are the rules that prompts still have; the others may have to go.
        """
        rule = target.stop
        if rule is not None and rule not in self._blocks and not self._place(rule, in_use):
            return False
        self._has_top_k |= target.top_k is not None
        self._has_top_p |= target.top_p is not None
        return True

    def arrays(
        self, asked: Sequence[tuple[PowerTarget, int]], rows: int
    ) -> tuple[Any, StopStates | None]:
        """Targets that were placed, with their caps, [rows, ...]; missing rows have cap 0: they
        are done. And where the stop rules are in ``table``; None if there is no table."""
        filled = [*asked, *[(asked[0][0], 0)] * (rows - len(asked))]
        # In host memory, like all that is handed to a program: an operation here would wait for
        # what the device is doing.
        one_each = {target: self._completed(target, cap) for target, cap in filled}
        stacked: Any = jax.tree.map(
            lambda *xs: np.stack(xs), *[one_each[target] for target, _ in filled]
        )
        caps = np.array([cap for _, cap in filled], np.int32)
        stop = None
        if self.table is not None:
            none = (0, 0, -1)
            blocks = [self._blocks.get(target.stop, none) for target, _ in filled]  # type: ignore[arg-type]
            starts, _, finals = np.array(blocks).T
            own: Any = starts.astype(np.int32), finals.astype(np.int16)
            stop = StopStates(*own)
        return stacked._replace(cap=caps), stop

    def widen(self, prompts: PromptInputs) -> PromptInputs:
        """Prompts [P, ...] made before the last call of ``arrays``, in the structure of now."""
        target, rows = prompts.target, prompts.target.cap.shape[0]
        widened = {}
        if target.top_k is None and self._has_top_k:
            widened["top_k"] = jnp.full((rows,), self._vocab_size, jnp.int32)
        if target.top_p is None and self._has_top_p:
            widened["top_p"] = jnp.ones((rows,), target.alpha.dtype)
        stop = prompts.stop
        if stop is None and self.table is not None:
            nowhere = jnp.full((rows,), -1, jnp.int16)
            stop = StopStates(jnp.zeros((rows,), jnp.int32), nowhere)
        return prompts._replace(target=target._replace(**widened), stop=stop)

    def _spelled(self, rule: StopRule) -> list[bytes | None]:
        if self._pieces is None:
            self._pieces = checked_token_bytes(rule, self._tokenizer, self._vocab_size)
        return self._pieces

    def _place(self, rule: StopRule, in_use: Collection[StopRule | None]) -> bool:
        automaton = rule.automaton()
        states = len(automaton.table)
        size = min(block_states(rule), self._most)
        rows = 0 if self.table is None else self.table.shape[0]
        first = self._gap(size, rows)
        if first is None:
            self._blocks = {r: block for r, block in self._blocks.items() if r in in_use}
            first = self._gap(size, rows)
        while first is None and rows < self._most:
            rows = min(max(2 * rows, size), self._most)
            first = self._gap(size, rows)
        if first is None:
            return False
        table = self._with_rows(rows)
        compiled = token_table(automaton, self._spelled(rule))
        own = np.zeros((size, self._vocab_size), np.int16)
        own[:states] = compiled.next_state + np.int16(first)
        (final,) = np.flatnonzero(compiled.accepting).tolist()
        self.table = self._write(table, own, first)
        self._blocks[rule] = first, size, first + final
        return True

    def _gap(self, size: int, rows: int) -> int | None:
        """Where so many of the table's rows belong to no rule, None if nowhere."""
        end = 0
        for first, length, _ in sorted(self._blocks.values()):
            if first - end >= size:
                break
            end = first + length
        return end if end + size <= rows else None

    def _with_rows(self, rows: int) -> jax.Array:
        """The table, enlarged if it has fewer rows."""
        old = self.table
        if old is not None and old.shape[0] == rows:
            return old
        shape = rows, self._vocab_size
        new = self._layout.zeros(lambda: jnp.zeros(shape, jnp.int16), REPLICATED)
        return new if old is None else self._write(new, old, 0)

    def _write(self, table: jax.Array, rows: Any, first: int) -> jax.Array:
        args = table, rows, np.int32(first)
        return executables.call(programs.write_rows, {}, args, self._layout)

    def _completed(self, target: PowerTarget, cap: int) -> Any:
        """One target with the truncations that others have, allowing everything."""
        arrays = target.host_arrays(self._vocab_size, cap)
        if arrays.top_k is None and self._has_top_k:
            arrays = arrays._replace(top_k=np.asarray(self._vocab_size, np.int32))
        if arrays.top_p is None and self._has_top_p:
            arrays = arrays._replace(top_p=np.ones_like(arrays.alpha))
        return arrays
