"""Targets of different prompts in one structure, so that one executable serves them all."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc.core.mesh import REPLICATED
from jax_power_smc.engine import executables, programs
from jax_power_smc.engine.buckets import MOST_STOP_STATES, power_of_two
from jax_power_smc.engine.decode import PromptInputs
from jax_power_smc.engine.layout import ONE_DEVICE, Layout
from jax_power_smc.targets.power import PowerTarget
from jax_power_smc.targets.stop_arrays import StopStates
from jax_power_smc.targets.stop_rules import StopRule, checked_token_bytes, token_table

# Blocks are powers of two, so that few programs write them.
_SMALLEST_BLOCK = 8


def block_states(rule: StopRule) -> int:
    """States of the table that are reserved for a rule."""
    return max(_SMALLEST_BLOCK, power_of_two(len(rule.automaton().table)))


class TargetBatch:
    """The targets of all prompts in a set of slots.

    Stop rules share one table on the device. Each has its own block of states there while any
    prompt uses it; a new rule is written in place. When the table is full of rules that are in
    use, it doubles, up to ``most_states``.

    Truncations and stop rules cost time, so their arrays exist only once some prompt has one; for
    prompts without one they then allow everything.

    Attributes:
      table: [states, V] int16, or None before the first rule. Writing a rule donates it.
    """

    def __init__(
        self,
        vocab_size: int,
        tokenizer: Any,
        most_states: int = MOST_STOP_STATES,
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

        That is one whose stop rule has too many states, or with a stop rule but no tokenizer to
        say what tokens spell.
        """
        if target.stop is None:
            return
        self._spelled(target.stop)
        states = len(target.stop.automaton().table)
        if states > self._most:
            raise ValueError(
                f"stop={target.stop!r} has {states} states, and the memory has room for stop rules "
                f"with {self._most} states in total; use fewer slots or a shorter rule."
            )

    def place(self, target: PowerTarget, in_use: Collection[StopRule | None]) -> bool:
        """Makes room for a target that was checked; returns whether there is any at the moment.

        ``in_use`` are the rules that prompts still need; the others may be evicted.
        """
        rule = target.stop
        if rule is not None and rule not in self._blocks and not self._place(rule, in_use):
            return False
        self._has_top_k |= target.top_k is not None
        self._has_top_p |= target.top_p is not None
        return True

    def arrays(
        self, placed: Sequence[tuple[PowerTarget, int]], count: int
    ) -> tuple[Any, StopStates | None]:
        """Targets that were placed, with their caps, as arrays [count, ...].

        Missing ones have cap 0 and draw nothing. Also returns where the stop rules are in
        ``table``; None if there is no table.
        """
        filled = [*placed, *[(placed[0][0], 0)] * (count - len(placed))]
        # In host memory, like everything that is handed to a program: an operation on the device
        # would wait for the work that it has.
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
        """Prompts [P, ...] made before the last call of ``arrays``, in the present structure."""
        target, count = prompts.target, prompts.target.cap.shape[0]
        widened = {}
        if target.top_k is None and self._has_top_k:
            widened["top_k"] = jnp.full((count,), self._vocab_size, jnp.int32)
        if target.top_p is None and self._has_top_p:
            widened["top_p"] = jnp.ones((count,), target.alpha.dtype)
        stop = prompts.stop
        if stop is None and self.table is not None:
            nowhere = jnp.full((count,), -1, jnp.int16)
            stop = StopStates(jnp.zeros((count,), jnp.int32), nowhere)
        return prompts._replace(target=target._replace(**widened), stop=stop)

    def has(self, target: PowerTarget) -> bool:
        """Whether the target is placed."""
        return target.stop is None or target.stop in self._blocks

    def _spelled(self, rule: StopRule) -> list[bytes | None]:
        if self._pieces is None:
            self._pieces = checked_token_bytes(rule, self._tokenizer, self._vocab_size)
        return self._pieces

    def _place(self, rule: StopRule, in_use: Collection[StopRule | None]) -> bool:
        automaton = rule.automaton()
        states = len(automaton.table)
        size = min(block_states(rule), self._most)
        total = 0 if self.table is None else self.table.shape[0]
        first = self._gap(size, total)
        if first is None:
            self._blocks = {r: block for r, block in self._blocks.items() if r in in_use}
            first = self._gap(size, total)
        while first is None and total < self._most:
            total = min(max(2 * total, size), self._most)
            first = self._gap(size, total)
        if first is None:
            return False
        table = self._with_states(total)
        compiled = token_table(automaton, self._spelled(rule))
        own = np.zeros((size, self._vocab_size), np.int16)
        own[:states] = compiled.next_state + np.int16(first)
        (final,) = np.flatnonzero(compiled.accepting).tolist()
        self.table = self._write(table, own, first)
        self._blocks[rule] = first, size, first + final
        return True

    def _gap(self, size: int, total: int) -> int | None:
        """The first of ``size`` free states in a table of ``total``; None without such a gap."""
        end = 0
        for first, length, _ in sorted(self._blocks.values()):
            if first - end >= size:
                break
            end = first + length
        return end if end + size <= total else None

    def _with_states(self, total: int) -> jax.Array:
        """The table, enlarged if it has fewer states."""
        old = self.table
        if old is not None and old.shape[0] == total:
            return old
        shape = total, self._vocab_size
        new = self._layout.zeros(lambda: jnp.zeros(shape, jnp.int16), REPLICATED)
        return new if old is None else self._write(new, old, 0)

    def _write(self, table: jax.Array, states: Any, first: int) -> jax.Array:
        args = table, states, np.int32(first)
        return executables.call(programs.write_states, {}, args, self._layout)

    def _completed(self, target: PowerTarget, cap: int) -> Any:
        """One target, with truncations that allow everything where others have some."""
        arrays: Any = target.host_arrays(self._vocab_size, cap)
        if arrays.top_k is None and self._has_top_k:
            arrays = arrays._replace(top_k=np.asarray(self._vocab_size, np.int32))
        if arrays.top_p is None and self._has_top_p:
            arrays = arrays._replace(top_p=np.ones_like(arrays.alpha))
        return arrays
