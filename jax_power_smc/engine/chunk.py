"""A chunk of steps that was handed out, and what it showed of the rows once it has arrived."""

from typing import NamedTuple

import jax
import numpy as np

from jax_power_smc.engine import records
from jax_power_smc.engine.programs import Snapshot
from jax_power_smc.engine.records import PendingRecords
from jax_power_smc.engine.request import ActiveRequest, Suspended


class Chunk(NamedTuple):
    """A chunk; methods and properties read the snapshot, which must be in host memory.

    Attributes:
      occupants: the request with rows in each slot, if any.
      records: what was recorded in it.
      snapshot: how prompts stand after it.
      num_rows: R of each device.
      row_limit: how many rows may be in use on each device.
      entered: [D] int32, rows of each device that were put in just before it.
      longest: positions of the longest of these rows.
    """

    occupants: list[ActiveRequest | None]
    records: PendingRecords
    snapshot: Snapshot
    num_rows: int
    row_limit: int
    entered: np.ndarray
    longest: int

    @property
    def has_rows(self) -> np.ndarray:
        """[P] bool: prompts that had rows after the chunk."""
        return np.asarray((self.snapshot.prompts.row_of < self.num_rows).any(axis=1))

    @property
    def stalled(self) -> int:
        """How many prompts had rows after the chunk, and waited for more."""
        return int((self.snapshot.prompts.stalled & self.has_rows).sum())

    def stuck(self, slots_per_device: int) -> list[list[int]]:
        """For each device on which no prompt could move: the slots that have rows."""
        holds = np.asarray(self.snapshot.running) & self.has_rows
        stuck = np.flatnonzero(self.snapshot.stuck).tolist()
        by_device = [range(d * slots_per_device, (d + 1) * slots_per_device) for d in stuck]
        return [[slot for slot in slots if holds[slot]] for slots in by_device]

    def rows_in_use(self, without: np.ndarray, slots_per_device: int) -> np.ndarray:
        """[D] int32, after some prompts, [P] bool, gave theirs back."""
        counts = [len(np.unique(x[x < self.num_rows])) for x in self.snapshot.prompts.row_of]
        held = np.where(without, 0, counts).reshape(-1, slots_per_device)
        return held.sum(axis=1).astype(np.int32)

    def rows_needed(self, slot: int) -> int:
        """How many prefixes a stalled prompt has after the tokens that it drew."""
        prompts = self.snapshot.prompts
        count, draw = prompts.row_of.shape[1], prompts.draw
        runs = draw.active[slot, :count] & ~prompts.particles.ended[slot, :count]
        runs &= prompts.particles.log_weight[slot, :count] > -np.inf
        row = prompts.row_of[slot][draw.parent[slot, :count]]
        pairs = np.stack([row, draw.token[slot, :count]])
        return np.unique(pairs[:, runs], axis=1).shape[1]

    def suspended(self, request: ActiveRequest, slot: int) -> Suspended:
        """What a request, whose records end with this chunk, resumes from."""
        state = jax.tree.map(lambda x: x[slot], self.snapshot.prompts)
        row_of, stop_state = state.row_of, self.snapshot.stop_state[slot]
        rows = np.unique(row_of[row_of < self.num_rows])
        first = np.array([int(np.argmax(row_of == row)) for row in rows], np.int32)
        generated = np.zeros((len(rows), 0), np.int32)
        if pieces := [pending.of(place) for pending, place in request.pieces]:
            history = records.concatenate(pieces)
            generated = records.trace(history, first, len(history.step))[0]
        prompt = np.asarray(request.prompt)
        prefixes = [
            (row_of == row, np.concatenate([prompt, tokens]).astype(np.int32), int(stop_state[at]))
            for row, tokens, at in zip(rows, generated, first, strict=True)
        ]
        needs = self.rows_needed(slot) if state.stalled else len(prefixes)
        return Suspended(state, prefixes, max(needs, len(prefixes)))
