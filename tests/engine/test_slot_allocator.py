"""Slots and groups on a mesh: every prompt in a slot of the row that its place belongs to."""

import random

import numpy as np
import pytest

from jax_power_smc.engine.slot_allocator import SlotAllocator

# slots, group, rows
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
    places = SlotAllocator(slots=8, group=4, rows=2)
    assert places.per_row == 4
    assert places.round_robin(range(8)) == [0, 4, 1, 5, 2, 6, 3, 7]
    first, second = places.groups([0, 4, 1, 2])
    assert first == {0: 0, 2: 4, 1: 1} and second == {0: 2}
    assert places.index(first, otherwise=9).tolist() == [0, 1, 0, 9]
    assert places.index(second, otherwise=9).tolist() == [2, 9, 9, 9]


def test_one_device_is_one_row():
    places = SlotAllocator(slots=5, group=2, rows=1)
    assert places.round_robin([3, 1, 4]) == [3, 1, 4]
    assert places.groups([3, 1, 4]) == [{0: 3, 1: 1}, {0: 4}]
    assert places.groups([]) == []


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("slots", "group", "rows"), SHAPES)
def test_rows_get_equally_many_as_long_as_they_have_room(slots, group, rows, seed):
    places = SlotAllocator(slots, group, rows)
    free = some_slots(slots, seed)
    turns = places.round_robin(free)
    assert sorted(turns) == sorted(free)
    room = np.bincount([slot // places.per_row for slot in free], minlength=rows)
    for count in range(len(turns) + 1):
        got = np.bincount([slot // places.per_row for slot in turns[:count]], minlength=rows)
        # A row that has less than another one has no room left.
        assert np.all((got >= got.max() - 1) | (got == room))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("slots", "group", "rows"), SHAPES)
def test_what_every_row_does_with_its_part_of_a_group(slots, group, rows, seed):
    places = SlotAllocator(slots, group, rows)
    asked = some_slots(slots, seed)
    groups = places.groups(asked)
    # As few as the row with the most needs.
    most = max(np.bincount([slot // places.per_row for slot in asked], minlength=rows))
    assert len(groups) == -(-most // (group // rows))
    prompts = {slot: f"prompt of {slot}" for slot in asked}
    held = ["nobody"] * slots
    for members in groups:
        assert members and all(0 <= place < group for place in members)
        index = places.index(members, otherwise=places.per_row)
        assert index.shape == (group,) and index.dtype == np.int32
        entered = [prompts.get(members.get(place), "padding") for place in range(group)]
        # As ``insert`` on each row: what lies beyond its own slots is dropped.
        for row in range(rows):
            own = slice(row * group // rows, (row + 1) * group // rows)
            for local, prompt in zip(index[own].tolist(), entered[own], strict=True):
                if local < places.per_row:
                    held[row * places.per_row + local] = prompt
    assert held == [prompts.get(slot, "nobody") for slot in range(slots)]
