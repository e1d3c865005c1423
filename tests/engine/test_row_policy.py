"""How many rows there are: on made-up trajectories of what prompts need."""

import numpy as np
import pytest

from jax_power_smc.engine.row_policy import (
    Load,
    RowPlan,
    plan_capacity,
    plan_rows,
    row_ladder,
    smallest,
)

LADDER = row_ladder(48)
# More than the prompts could have, where that is not what a test is about.
MANY = 999


def test_sizes_double_and_from_16_on_go_by_halves():
    assert row_ladder(4) == (4,) and row_ladder(1) == (1,) and row_ladder(5) == (4, 5)
    assert LADDER == (4, 8, 16, 24, 32, 48)
    assert row_ladder(256) == (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
    assert row_ladder(100)[-3:] == (48, 64, 100)
    assert [smallest(LADDER, n) for n in (0, 4, 5, 48, 99)] == [4, 4, 8, 48, 48]


def test_an_empty_table_is_made_for_those_who_arrive():
    assert plan_rows(LADDER, 0, 3, Load(in_use=3), useful=MANY, reserve=0) == RowPlan(4, 4)
    assert plan_rows(LADDER, 0, 9, Load(in_use=9), MANY, reserve=2) == RowPlan(16, 15)
    assert plan_rows(LADDER, 0, 48, Load(in_use=48), useful=MANY, reserve=0) == RowPlan(48, 48)


def test_stalls_let_the_table_grow():
    load = Load(in_use=8, stalled=1, limit=8)
    assert plan_rows(LADDER, 8, 8, load, MANY, 0).num_rows == 16
    # Also where rows are free, since those there were are not enough.
    few = Load(in_use=3, stalled=2, limit=16)
    assert plan_rows(LADDER, 16, 16, few, MANY, 0).num_rows == 24
    assert plan_rows(LADDER, 48, 48, Load(40, 9, stalled=2, limit=48), MANY, 0).num_rows == 48


def test_stalls_below_a_limit_raise_the_limit_first():
    load = Load(in_use=3, stalled=2, limit=8)
    assert plan_rows(LADDER, 16, 8, load, MANY, 0) == RowPlan(16, 16)
    assert plan_rows(LADDER, 32, 8, load, MANY, 0) == RowPlan(16, 16)


def test_a_table_keeps_a_few_rows_for_those_who_may_arrive():
    # Another prompt or three, in the chunk that runs, do not let it grow.
    assert plan_rows(LADDER, 48, 40, Load(in_use=40), MANY, reserve=4) == RowPlan(48, 44)
    assert plan_rows((*LADDER, 64), 48, 40, Load(in_use=40), MANY, reserve=4) == RowPlan(48, 45)
    assert plan_rows((*LADDER, 64), 48, 46, Load(in_use=46), MANY, reserve=4) == RowPlan(64, 60)
    assert plan_rows((*LADDER, 64), 48, 46, Load(in_use=46), MANY, reserve=0) == RowPlan(48, 48)


def test_a_prompt_that_is_alone_has_more_slack():
    assert plan_rows(LADDER, 8, 8, Load(in_use=8), MANY, 0) == RowPlan(8, 8)
    assert plan_rows(LADDER, 8, 8, Load(in_use=8), MANY, 0, alone=True) == RowPlan(16, 16)
    stalled = Load(in_use=24, stalled=1)
    assert plan_rows(LADDER, 24, 24, stalled, MANY, 0) == RowPlan(32, 32)
    assert plan_rows(LADDER, 24, 24, stalled, MANY, 0, alone=True) == RowPlan(48, 48)


def test_a_table_shrinks_in_two_looks():
    # So many rows may be in use that the smaller table might not hold them: first a limit.
    first = plan_rows(LADDER, 32, 32, Load(in_use=5), MANY, 0)
    assert first == RowPlan(32, 8)
    # One look later no more are in use than the limit says.
    second = plan_rows(LADDER, 32, 8, Load(in_use=5), MANY, 0)
    assert second == RowPlan(8, 8)


def test_no_more_rows_than_the_prompts_can_have():
    # Plain decoding of seven prompts: nobody will ask for an eighth row.
    assert plan_rows(LADDER, 8, 8, Load(in_use=8), useful=7, reserve=0) == RowPlan(8, 7)
    # So it is known at once that a smaller table holds what is left.
    assert plan_rows(LADDER, 16, 4, Load(in_use=4), useful=4, reserve=0) == RowPlan(4, 4)
    assert plan_rows(LADDER, 8, 8, Load(in_use=4, stalled=1), useful=4, reserve=0).num_rows == 8


def test_a_table_does_not_shrink_by_a_few_rows_only():
    assert plan_rows(LADDER, 8, 4, Load(in_use=3), MANY, 0) == RowPlan(8, 8)
    assert plan_rows(LADDER, 16, 4, Load(in_use=3), MANY, 0) == RowPlan(4, 4)
    assert plan_rows((4, 8, 12), 12, 4, Load(in_use=5), MANY, 0) == RowPlan(12, 12)


def test_a_reserve_is_kept_at_the_largest_size_only():
    full = Load(in_use=44)
    assert plan_rows(LADDER, 48, 48, full, MANY, reserve=4).row_limit == 44
    assert plan_rows(LADDER, 32, 32, Load(in_use=28), MANY, reserve=4).row_limit == 30
    # Before anybody has to give his rows back, the reserve is used up.
    stuck = full._replace(stuck=True, stalled=3, limit=44)
    assert plan_rows(LADDER, 48, 48, stuck, MANY, 4).row_limit == 48
    assert plan_rows((4,), 4, 4, Load(in_use=4), MANY, reserve=9).row_limit == 1


class Prompts:
    """Prompts on one device whose needs follow trajectories, with the table seen a look late.

    Args:
      needs: for each prompt, the rows that it would have after each chunk.
    """

    def __init__(self, needs, slots, ladder=LADDER, reserve=1):
        self.waiting, self.slots, self.ladder = list(needs), slots, ladder
        self.reserve, self.running = reserve, []
        self.num_rows, self.row_limit, self.in_use = 0, 0, 0
        self.plans, self.loads = [], []

    def round(self, seen, before):
        """A chunk: ``seen`` is the load of the last one looked at, ``before`` the unseen limit."""
        at_most = max(seen.in_use, before)
        room = self.ladder[-1] - at_most
        arrivals = min(self.slots - len(self.running), len(self.waiting), max(room, 0))
        load = seen._replace(in_use=seen.in_use + arrivals)
        if seen.limit < self.row_limit:  # it was raised since
            load = load._replace(stalled=0)
        plan = plan_rows(self.ladder, self.num_rows, at_most + arrivals, load, MANY, self.reserve)
        self.plans.append(plan)
        assert plan.num_rows in self.ladder and 1 <= plan.row_limit <= plan.num_rows
        assert self.in_use + arrivals <= plan.num_rows, "rows in use are cut off"
        self.num_rows, self.row_limit = plan.num_rows, plan.row_limit
        for _ in range(arrivals):
            self.running.append([1, self.waiting.pop(0)])
        # In order of arrival; giving back never waits.
        self.in_use = sum(held for held, _ in self.running)
        stalled = 0
        for prompt in sorted(self.running, key=lambda x: x[1][0] > x[0]):
            held, needs = prompt
            more = needs[0] - held
            if more > 0 and (stalled or self.in_use + more > self.row_limit):
                stalled += 1
                continue
            self.in_use += more
            prompt[0], prompt[1] = needs[0], needs[1:]
        self.running = [x for x in self.running if x[1]]
        self.in_use = sum(held for held, _ in self.running)
        return Load(in_use=self.in_use, stalled=stalled, limit=self.row_limit)

    def run(self, most=400):
        seen, unseen = Load(), None
        while (self.waiting or self.running) and len(self.plans) < most:
            bound = 0 if unseen is None else max(self.row_limit, unseen.in_use)
            load = self.round(seen, bound)
            seen, unseen = (seen if unseen is None else unseen), load
            self.loads.append(load)
        return self


def some_needs(seed, prompts=20, largest=10):
    """A beginning with one row, a burst, and stragglers."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(prompts):
        peak = int(rng.integers(1, largest + 1))
        up, down = np.linspace(1, peak, 3), np.linspace(peak, 1, int(rng.integers(3, 9)))
        made.append([round(x) for x in (*up, *down)])
    return made


@pytest.mark.parametrize("seed", range(10))
def test_prompts_of_any_needs_are_served_and_no_row_in_use_is_cut_off(seed):
    done = Prompts(some_needs(seed), slots=6).run()
    assert not done.waiting and not done.running
    sizes = [plan.num_rows for plan in done.plans]
    assert max(sizes) > 4, "nothing grew"


def test_equal_trajectories_give_equal_plans():
    one, two = (Prompts(some_needs(3), slots=6).run().plans for _ in range(2))
    assert one == two


def test_the_table_follows_a_burst_up_and_down_again():
    burst = [[1, 1, 8, 8, 8, 1, 1, 1, 1, 1, 1, 1, 1]] * 4
    sizes = [plan.num_rows for plan in Prompts(burst, slots=4).run().plans]
    peak = sizes.index(max(sizes))
    assert max(sizes) >= 32 and sizes[-1] < max(sizes)
    assert sizes[:peak] == sorted(sizes[:peak]) and sizes[peak:] == sorted(sizes[peak:])[::-1]


# A prompt that needs about two rows for most of its time.
FEW = [1, 2, 3, 3, 3, 3, 2, 3, 3, 2, 2, 2, 2, 1, 1, 1]


def test_most_rows_are_in_use_where_prompts_need_few():
    done = Prompts([FEW] * 64, slots=8, ladder=row_ladder(128)).run()
    used = sum(load.in_use for load in done.loads)
    there = sum(plan.num_rows for plan in done.plans)
    assert used / there > 0.65
    stalled = sum(load.stalled for load in done.loads) / (8 * len(done.loads))
    assert stalled < 0.12


# --- capacity ---

CAPACITIES = (256, 512, 1024)


def test_capacity_grows_when_it_must_and_shrinks_when_it_stays_smaller():
    assert plan_capacity(CAPACITIES, 0, 20) == 256
    assert plan_capacity(CAPACITIES, 256, 257) == 512
    assert plan_capacity(CAPACITIES, 512, 204) == 256
    assert plan_capacity(CAPACITIES, 512, 206) == 512
    # Not yet: rows of a little more would make it grow again at once.
    assert plan_capacity(CAPACITIES, 1024, 900) == 1024
    assert plan_capacity(CAPACITIES, 512, 420) == 512
    assert plan_capacity((300,), 300, 299) == 300
