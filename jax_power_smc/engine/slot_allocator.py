"""Which slot a prompt gets, and which slots a program handles together.

On a mesh every data shard (the devices at one index of the axis "data") has an equal part of the
slots, and an equal part of the places of a group that enters or leaves. A device can put a prompt
only into slots of its own shard:

    8 slots on 2 data shards, groups of 4      slots   0 1 2 3 | 4 5 6 7
                                               places  0 1     | 2 3

One device is one data shard.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

# Slots that a program handles together: place in the group -> slot.
Group: TypeAlias = dict[int, int]


@dataclasses.dataclass(frozen=True)
class SlotAllocator:
    """Assigns slots on a mesh.

    Attributes:
      slots: P, a multiple of ``data_shards``.
      group: G, likewise.
      data_shards: D.
    """

    slots: int
    group: int
    data_shards: int

    @property
    def slots_per_shard(self) -> int:
        """P / D."""
        return self.slots // self.data_shards

    def place(
        self, free: Sequence[int], in_use: np.ndarray, room: np.ndarray, needs: int = 1
    ) -> int | None:
        """The slot for a prompt: on the data shard with the fewest rows in use, of those with room.

        Args:
          free: slots that may be taken, in order of preference where shards are equal.
          in_use: [D] int32, rows in use on each data shard, as far as known.
          room: [D] int32, how many rows are free for certain.
          needs: how many must be.

        Returns:
          None if there is no such slot.
        """
        shards = {slot: slot // self.slots_per_shard for slot in free}
        fitting = [slot for slot in free if room[shards[slot]] >= needs]
        return min(fitting, key=lambda slot: in_use[shards[slot]], default=None)

    def groups(self, slots: Sequence[int]) -> list[Group]:
        """Slots divided into as few groups as possible."""
        places = self.group // self.data_shards
        groups: list[Group] = []
        count = [0] * self.data_shards
        for slot in slots:
            shard = slot // self.slots_per_shard
            number, place = divmod(count[shard], places)
            count[shard] += 1
            if number == len(groups):
                groups.append({})
            groups[number][shard * places + place] = slot
        return groups

    def index(self, group: Group, otherwise: int) -> np.ndarray:
        """[G] int32, the slot at every place of a group, counted within its data shard."""
        index = np.full((self.group,), otherwise, np.int32)
        for place, slot in group.items():
            index[place] = slot % self.slots_per_shard
        return index
