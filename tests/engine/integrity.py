"""What holds of a scheduler between rounds, whatever has happened before.

Who has a row, which prefix stands in it, and that every request is in one place. For ``TableLM``
the cache is the tokens themselves, so that every row is compared with the prefix of the particles
that point to it, as the records say it.
"""

import jax
import numpy as np
import pytest

from jax_power_smc import TableLM
from jax_power_smc.engine import records
from jax_power_smc.engine.scheduler import Scheduler


def check_integrity(scheduler):
    """Asserts it; waits for the chunk that runs."""
    _check_requests(scheduler)
    if scheduler.rows._state is not None:
        _check_rows(scheduler)


@pytest.fixture
def integrity(monkeypatch):
    """The scheduler is checked after every round; the value counts the checks."""
    original, rounds = Scheduler._round, []

    def checked(self, arrivals, is_open):
        done = original(self, arrivals, is_open)
        check_integrity(self)
        assert all(request not in self._occupants for request in done)
        rounds.append(None)
        return done

    monkeypatch.setattr(Scheduler, "_round", checked)
    return rounds


def _check_requests(scheduler):
    occupants = [request for request in scheduler._occupants if request is not None]
    leaving = [request for group, _ in scheduler._leaving for request in group.values()]
    everywhere = [*occupants, *leaving, *scheduler._held]
    assert len(set(everywhere)) == len(everywhere), "a request is in two places"
    assert len(scheduler._occupants) == scheduler.sizes.slots
    assert len(scheduler._known.unseen) <= scheduler.lookahead
    for request in [*occupants, *leaving]:
        assert request.error is None and request.outcome is None
    for request in occupants:
        assert scheduler.rows.targets.has(request.target), "a stop rule was evicted"
    orders = [request.order for request in occupants]
    assert len(set(orders)) == len(orders), "two requests arrived at the same time"


def _check_rows(scheduler):
    rows = scheduler.rows
    prompts, table = jax.device_get(rows._state)
    shards, slots = rows.layout.data_shards, rows.allocator.slots_per_shard
    assert table.owner.shape == (shards * rows.num_rows,)
    # The first leaf of a ``TableLM``, or of what is derived from it.
    is_table = isinstance(rows.layout.source, TableLM)
    tokens = np.asarray(jax.tree.leaves(table.cache)[0]) if is_table else None
    in_use = []
    for shard in range(shards):
        here = slice(shard * rows.num_rows, (shard + 1) * rows.num_rows)
        local = jax.tree.map(lambda x, here=here: np.asarray(x)[here], table._replace(cache=()))
        cache = None if tokens is None or rows.layout.model_shards > 1 else tokens[here]
        used = local.owner < slots
        assert not np.any(used & local.spoiled), "a prompt has a row that is spoiled"
        in_use.append(int(np.sum(used | local.spoiled)))
        for slot in range(slots):
            place = shard * slots + slot
            state = jax.tree.map(lambda x, place=place: np.asarray(x)[place], prompts)
            _check_prompt(scheduler._occupants[place], slot, state, local, rows, cache)
    # What the host believes is never too little.
    assert max(in_use) <= rows.num_rows
    at_most = scheduler._known.at_most(scheduler._idle_shards)
    assert (np.array(in_use) <= at_most).all(), (in_use, at_most)


def _check_prompt(request, slot, state, table, rows, cache):
    """One prompt: its state without the axis of prompts; the row table of its device."""
    own = np.flatnonzero(table.owner == slot)
    pointed = np.unique(state.row_of[state.row_of < rows.num_rows])
    assert pointed.tolist() == own.tolist(), "a row is lost, or has another owner"
    if request is None or request.suspended is not None:
        assert len(own) == 0, "nobody's rows"
        return
    pieces = [pending.of(place) for pending, place in request.pieces]
    history = records.concatenate(pieces) if pieces else None
    count = 0 if history is None else len(history.step)
    assert state.step == count, "a step was not recorded"
    if count:
        assert history.step.tolist() == list(range(count)), "a step was recorded twice"
    num = len(state.row_of)
    particles = state.particles
    alive = (particles.log_weight > -np.inf) & ~particles.ended
    runs = bool(alive.any()) and state.step < request.cap
    if not runs:
        assert len(own) == 0, "a prompt that is done has rows"
    elif not state.stalled:
        assert (state.row_of[alive[:num]] < rows.num_rows).all(), "a live particle without a row"
    else:
        live = alive[:num] & state.draw.active[:num]
        parents = state.row_of[state.draw.parent[:num]][live]
        assert (parents < rows.num_rows).all(), "a pending token without its parent's row"
    for n in np.flatnonzero(state.row_of < rows.num_rows):
        row = state.row_of[n]
        text = np.asarray(request.prompt)
        if count:
            text = np.concatenate([text, records.trace(history, np.array([n]), count)[0][0]])
        assert table.position[row] == len(text) - 1 < rows.capacity
        assert table.token[row] == text[-1], "a row with another prefix"
        # A stalled prompt's logits were computed: the cache has its last token too.
        known = len(text) - (not state.stalled)
        if cache is not None:
            assert cache[row, :known].tolist() == text[:known].tolist(), "a cache of another prefix"
