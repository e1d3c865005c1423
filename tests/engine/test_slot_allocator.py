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
    first, second = allocator.groups([0, 4, 1, 2])
    assert first == {0: 0, 2: 4, 1: 1} and second == {0: 2}
    assert allocator.index(first, otherwise=9).tolist() == [0, 1, 0, 9]
    assert allocator.index(second, otherwise=9).tolist() == [2, 9, 9, 9]


def test_one_device_is_one_data_shard():
    allocator = SlotAllocator(slots=5, group=2, data_shards=1)
    assert allocator.place([3, 1, 4], np.array([9]), np.array([1])) == 3
    assert allocator.groups([3, 1, 4]) == [{0: 3, 1: 1}, {0: 4}]
    assert allocator.groups([]) == []


def place(free, in_use, room=(9, 9), needs=1):
    """On two shards with four slots each."""
    allocator = SlotAllocator(slots=8, group=4, data_shards=2)
    return allocator.place(free, np.array(in_use), np.array(room), needs)


def test_a_prompt_goes_where_the_fewest_rows_are_in_use():
    assert place([1, 2, 5, 6], [4, 3]) == 5 and place([1, 2, 5, 6], [3, 4]) == 1
    # Of equal ones to the first that is offered.
    assert place([1, 2, 5, 6], [3, 3]) == 1 and place([5, 1, 2], [3, 3]) == 5
    # A shard without a free slot, or without as many free rows, is no choice.
    assert place([1, 2], [9, 0]) == 1
    assert place([1, 5], [4, 0], room=[1, 0]) == 1 and place([1, 5], [0, 4], room=[3, 4]) == 1
    assert place([1, 5], [0, 4], room=[3, 4], needs=4) == 5
    assert place([1, 5], [0, 4], room=[3, 4], needs=5) is None and place([], [0, 0]) is None


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("slots", "group", "shards"), SHAPES)
def test_prompts_one_by_one_even_out_what_is_in_use(slots, group, shards, seed):
    allocator = SlotAllocator(slots, group, shards)
    free = sorted(some_slots(slots, seed))
    in_use = np.random.default_rng(seed).integers(0, 6, shards)
    room, before = np.full(shards, 100), in_use.copy()
    while free:
        slot = allocator.place(free, in_use, room)
        shard = slot // allocator.slots_per_shard
        offered = {each // allocator.slots_per_shard for each in free}
        assert in_use[shard] == min(in_use[list(offered)])
        free.remove(slot)
        in_use[shard] += 1
    assert in_use.sum() - before.sum() == len(some_slots(slots, seed))
    assert allocator.place(free, in_use, room) is None


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
