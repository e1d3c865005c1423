"""Which slot a prompt gets, and which slots a program handles together.

On a mesh every "data" row of devices has an equal part of the slots, and an equal part of the
places of a group that enters or leaves; a device can put a prompt into slots of its own row only:

    8 slots in 2 rows, groups of 4      slots   0 1 2 3 | 4 5 6 7
                                        places  0 1     | 2 3

One device is one row.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class SlotAllocator:
    """Slots and groups of a mesh with so many "data" rows.

    Attributes:
      slots: P, a multiple of ``rows``.
      group: R, likewise.
      rows: D.
    """

    slots: int
    group: int
    rows: int

    @property
    def per_row(self) -> int:
        """Slots of one row."""
        return self.slots // self.rows

    def round_robin(self, slots: Iterable[int]) -> list[int]:
        """Slots in the order in which they are given away: of all rows in turn."""
        own: list[list[int]] = [[] for _ in range(self.rows)]
        for slot in slots:
            own[slot // self.per_row].append(slot)
        turns = itertools.zip_longest(*own)
        return [slot for turn in turns for slot in turn if slot is not None]

    def groups(self, slots: Sequence[int]) -> list[dict[int, int]]:
        """Slots as groups: place in the group -> slot."""
        places = self.group // self.rows
        groups: list[dict[int, int]] = []
        count = [0] * self.rows
        for slot in slots:
            row = slot // self.per_row
            number, place = divmod(count[row], places)
            count[row] += 1
            if number == len(groups):
                groups.append({})
            groups[number][row * places + place] = slot
        return groups

    def index(self, group: dict[int, int], otherwise: int) -> np.ndarray:
        """[R] int32, the slot at every place of a group, counted within its row."""
        index = np.full((self.group,), otherwise, np.int32)
        for place, slot in group.items():
            index[place] = slot % self.per_row
        return index
