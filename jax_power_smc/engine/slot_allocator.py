"""Which slot a prompt gets, and which slots a program handles together.

On a mesh every data shard (the devices at one index of the axis "data") has an equal part of the
slots, and an equal part of the places of a group that enters or leaves. A device can put a prompt
only into slots of its own shard:

    8 slots on 2 data shards, groups of 4      slots   0 1 2 3 | 4 5 6 7
                                               places  0 1     | 2 3

One device is one data shard.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

# Slots that a program handles together: place in the group -> slot.
Group: TypeAlias = dict[int, int]


@dataclasses.dataclass(frozen=True)
class SlotAllocator:
    """Assigns slots on a mesh.

    Attributes:
      slots: P, a multiple of ``data_shards``.
      group: R, likewise.
      data_shards: D.
    """

    slots: int
    group: int
    data_shards: int

    @property
    def slots_per_shard(self) -> int:
        """P / D."""
        return self.slots // self.data_shards

    def round_robin(self, slots: Iterable[int]) -> list[int]:
        """Slots in the order in which they are assigned: one of each data shard, and again."""
        of_shard: list[list[int]] = [[] for _ in range(self.data_shards)]
        for slot in slots:
            of_shard[slot // self.slots_per_shard].append(slot)
        turns = itertools.zip_longest(*of_shard)
        return [slot for turn in turns for slot in turn if slot is not None]

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
        """[R] int32, the slot at every place of a group, counted within its data shard."""
        index = np.full((self.group,), otherwise, np.int32)
        for place, slot in group.items():
            index[place] = slot % self.slots_per_shard
        return index
