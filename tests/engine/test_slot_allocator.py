"""Slots and groups on a mesh: every prompt in a slot of the shard that its place belongs to."""

import random

import numpy as np
import pytest

from jax_power_smc.engine.slot_allocator import SlotAllocator

# slots, group, shards
SHAPES = [
    *((1, 1, 1), (5, 2, 1), (8, 8, 1)),
    *((8, 4, 2), (6, 2, 2), (8, 8, 2)),
    *((4, 4, 4), (12, 4, 4), (16, 8, 4), (8, 8, 8)),
]


def some_slots(slots, seed):
    """Free slots in any order and number, none and all among them."""
    chance = random.Random(seed)
    return chance.sample(range(slots), chance.choice([0, slots, chance.randint(0, slots)]))


def test_the_example():
    allocator = SlotAllocator(slots=8, group=4, data_shards=2)
    assert allocator.slots_per_shard == 4
    assert allocator.round_robin(range(8)) == [0, 4, 1, 5, 2, 6, 3, 7]
    first, second = allocator.groups([0, 4, 1, 2])
    assert first == {0: 0, 2: 4, 1: 1} and second == {0: 2}
    assert allocator.index(first, otherwise=9).tolist() == [0, 1, 0, 9]
    assert allocator.index(second, otherwise=9).tolist() == [2, 9, 9, 9]


def test_one_device_is_one_data_shard():
    allocator = SlotAllocator(slots=5, group=2, data_shards=1)
    assert allocator.round_robin([3, 1, 4]) == [3, 1, 4]
    assert allocator.groups([3, 1, 4]) == [{0: 3, 1: 1}, {0: 4}]
    assert allocator.groups([]) == []


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("slots", "group", "shards"), SHAPES)
def test_shards_get_equally_many_while_they_have_room(slots, group, shards, seed):
    allocator = SlotAllocator(slots, group, shards)
    free = some_slots(slots, seed)
    turns = allocator.round_robin(free)
    assert sorted(turns) == sorted(free)
    room = np.bincount([slot // allocator.slots_per_shard for slot in free], minlength=shards)
    for count in range(len(turns) + 1):
        chosen = [slot // allocator.slots_per_shard for slot in turns[:count]]
        got = np.bincount(chosen, minlength=shards)
        # A shard that has less than another one has no room left.
        assert np.all((got >= got.max() - 1) | (got == room))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("slots", "group", "shards"), SHAPES)
def test_what_every_shard_does_with_its_part_of_a_group(slots, group, shards, seed):
    allocator = SlotAllocator(slots, group, shards)
    asked = some_slots(slots, seed)
    groups = allocator.groups(asked)
    # As few as the shard with the most needs.
    most = max(np.bincount([slot // allocator.slots_per_shard for slot in asked], minlength=shards))
    assert len(groups) == -(-most // (group // shards))
    prompts = {slot: f"prompt of {slot}" for slot in asked}
    held = ["empty"] * slots
    for members in groups:
        assert members and all(0 <= place < group for place in members)
        index = allocator.index(members, otherwise=allocator.slots_per_shard)
        assert index.shape == (group,) and index.dtype == np.int32
        entered = [prompts.get(members.get(place), "padding") for place in range(group)]
        # As ``insert`` on each shard: what lies beyond its own slots is dropped.
        for shard in range(shards):
            own = slice(shard * group // shards, (shard + 1) * group // shards)
            for local, prompt in zip(index[own].tolist(), entered[own], strict=True):
                if local < allocator.slots_per_shard:
                    held[shard * allocator.slots_per_shard + local] = prompt
    assert held == [prompts.get(slot, "empty") for slot in range(slots)]
