"""Targets of different prompts in one structure, so that one executable serves them all."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc.core.mesh import REPLICATED
from jax_power_smc.engine import executables, programs
from jax_power_smc.engine.buckets import MOST_STOP_STATES, power_of_two
from jax_power_smc.engine.layout import ONE_DEVICE, Layout
from jax_power_smc.engine.state import PromptInputs
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

    The different sets of end tokens are one array, of which a prompt has an index. Stop rules
    share one table on the device. Each has its own block of states there while any prompt uses
    it; a new rule is written in place. When the table is full of rules that are in use, it
    doubles, up to ``most_states``.

    Restrictions cost time, so their arrays exist only once some prompt has one (a minimum length,
    "forced_eos", a truncation or a stop rule); for prompts without one they then allow everything.

    Attributes:
      table: [states, V] int16, or None before the first rule. Writing a rule donates it.
      end_sets: [E, V] bool, on the devices.
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
        # What some target restricts, and what leaves everything allowed.
        self._unrestricted: dict[str, Any] = {}
        self._end_sets: list[tuple[int, ...] | None] = []
        self.end_sets = self._put_end_sets()
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

    def place(self, target: PowerTarget, in_use: Collection[PowerTarget]) -> bool:
        """Makes room for a target that was checked; returns whether there is any at the moment.

        ``in_use`` are the targets that prompts still need; what the others need may be evicted.
        """
        rule = target.stop
        missing = rule is not None and rule not in self._blocks
        if missing and not self._place(rule, {other.stop for other in in_use}):  # type: ignore[arg-type]
            return False
        self._place_end_set(target.eos_ids, {other.eos_ids for other in in_use})
        everything = {"min_new_tokens": 0, "forced": False, "top_k": self._vocab_size, "top_p": 1.0}
        own = self._restrictions(target)
        self._unrestricted |= {name: everything[name] for name, x in own.items() if x is not None}
        return True

    def arrays(
        self, placed: Sequence[tuple[PowerTarget, int]], count: int
    ) -> tuple[Any, np.ndarray, StopStates | None]:
        """Targets that were placed, with their caps, as arrays [count, ...].

        Missing ones have cap 0 and draw nothing. Also returns the index of the end tokens [count],
        and where the stop rules are in ``table``; None if there is no table.
        """
        filled = [*placed, *[(placed[0][0], 0)] * (count - len(placed))]
        # In host memory, like everything that is handed to a program: an operation on the device
        # would wait for the work that it has.
        one_each = {target: self._completed(target) for target, _ in filled}
        stacked: Any = jax.tree.map(
            lambda *xs: np.stack(xs), *[one_each[target] for target, _ in filled]
        )
        caps = np.array([cap for _, cap in filled], np.int32)
        end_set = np.array([self._end_sets.index(t.eos_ids) for t, _ in filled], np.int32)
        stop = None
        if self.table is not None:
            none = (0, 0, -1)
            blocks = [self._blocks.get(target.stop, none) for target, _ in filled]  # type: ignore[arg-type]
            starts, _, finals = np.array(blocks).T
            own: Any = starts.astype(np.int32), finals.astype(np.int16)
            stop = StopStates(*own)
        return stacked._replace(cap=caps), end_set, stop

    def widen(self, inputs: PromptInputs) -> PromptInputs:
        """Inputs [P, ...] made before the last call of ``arrays``, in the present structure."""
        target, count = inputs.target, inputs.target.cap.shape[0]
        like = self._completed(PowerTarget(1.0))
        widened = {
            name: jnp.full((count,), getattr(like, name))
            for name in self._unrestricted
            if getattr(target, name) is None
        }
        stop = inputs.stop
        if stop is None and self.table is not None:
            nowhere = jnp.full((count,), -1, jnp.int16)
            stop = StopStates(jnp.zeros((count,), jnp.int32), nowhere)
        return inputs._replace(target=target._replace(**widened), stop=stop)

    def start_state(self, target: PowerTarget) -> int:
        """The state of a placed target's stop rule before the first token; 0 without a rule."""
        return 0 if target.stop is None else self._blocks[target.stop][0]

    def has(self, target: PowerTarget) -> bool:
        """Whether the target is placed."""
        placed = target.stop is None or target.stop in self._blocks
        return placed and target.eos_ids in self._end_sets

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

    def _place_end_set(self, eos_ids: tuple[int, ...], in_use: Collection[tuple[int, ...]]) -> None:
        if eos_ids in self._end_sets:
            return
        self._end_sets = [ids if ids in in_use else None for ids in self._end_sets]
        if None not in self._end_sets:
            more = power_of_two(len(self._end_sets) + 1) - len(self._end_sets)
            self._end_sets += [None] * more
        self._end_sets[self._end_sets.index(None)] = eos_ids
        self.end_sets = self._put_end_sets()

    def _put_end_sets(self) -> jax.Array:
        sets = np.zeros((max(1, len(self._end_sets)), self._vocab_size), bool)
        for row, ids in zip(sets, self._end_sets, strict=False):
            row[list(ids or ())] = True
        return self._layout.put(jnp.asarray(sets), self._layout.logits)

    @staticmethod
    def _restrictions(target: PowerTarget) -> dict[str, Any]:
        return {
            "min_new_tokens": target.min_new_tokens or None,
            "forced": target.length == "forced_eos" or None,
            "top_k": target.top_k,
            "top_p": target.top_p,
        }

    def _completed(self, target: PowerTarget) -> Any:
        """One target, with everything allowed where others are restricted."""
        arrays: Any = target.host_arrays(self._vocab_size, 0)
        own = self._restrictions(target)
        kinds: dict[str, Any] = {
            "min_new_tokens": np.int32,
            "forced": bool,
            "top_k": np.int32,
            "top_p": arrays.alpha.dtype,
        }
        fields = {
            name: np.asarray(self._unrestricted[name] if own[name] is None else own[name], kind)
            if name in self._unrestricted
            else None
            for name, kind in kinds.items()
        }
        if fields["top_k"] is not None:
            fields["top_k"] = np.minimum(fields["top_k"], np.int32(self._vocab_size))
        return arrays._replace(ends=None, **fields)
