"""The scheduler when something goes wrong: nothing is lost, no row leaks, others are unharmed."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc import PowerSMC, PowerTarget, StreamRequest, TableLM
from jax_power_smc.core.mesh import make_mesh
from jax_power_smc.engine.device_rows import DeviceRows
from jax_power_smc.engine.records import PendingRecords
from jax_power_smc.engine.scheduler import Scheduler
from tests.engine.runs import (
    CAP,
    KEY,
    PARAMS,
    PROMPTS,
    SLOTS,
    V,
    assert_same,
    chunks_of,
    make,
    plain,
    plain_of,
    run,
)
from tests.models.small import assert_sentence

pytestmark = pytest.mark.usefixtures("quick_compilation", "integrity")

TARGET = PowerTarget(1.5, (5,))
SMC = PowerSMC(6, 0.9)
FEW = 7


@pytest.fixture
def after_round(monkeypatch):
    """Calls each function that is appended after every round, with the scheduler."""
    original, calls = Scheduler._round, []

    def watched(self, arrivals, is_open):
        done = original(self, arrivals, is_open)
        for call in calls:
            call(self)
        return done

    monkeypatch.setattr(Scheduler, "_round", watched)
    return calls


@pytest.fixture
def last(after_round):
    """The scheduler of the last run."""
    seen = []
    after_round.append(lambda scheduler: seen.append(scheduler))
    return lambda: seen[-1]


def asked(target=TARGET, prompts=PROMPTS):
    return [
        StreamRequest(prompt, target, CAP, prompt_id=i, tag=i) for i, prompt in enumerate(prompts)
    ]


def stream(engine, requests):
    """What became of each request, by index."""
    with jax.enable_x64(True):
        done = {one.index: one for one in engine.stream(requests, key=KEY)}
    assert sorted(done) == list(range(len(requests)))
    return done


def assert_as_plain(done, expected, indices):
    for i in indices:
        assert done[i].error is None, done[i].error
        assert_same([done[i].result], expected.one(i))


def assert_all_rows_free(scheduler):
    _, table = jax.device_get(scheduler.rows._state)
    assert (table.owner >= scheduler.sizes.slots).all() and not table.spoiled.any()


# --- Cancelled ---


def is_stalled(scheduler, slot):
    return bool(np.asarray(scheduler.rows._state.prompts.stalled)[slot])


def is_preempted(scheduler, slot):
    return scheduler._occupants[slot].suspended is not None


@pytest.mark.parametrize("state", [is_stalled, is_preempted])
def test_a_request_is_cancelled_while_it_has_to_wait(after_round, last, state):
    cancelled = []

    def cancel(scheduler):
        for slot, request in enumerate(scheduler._occupants):
            if request is not None and not cancelled and state(scheduler, slot):
                request.cancelled = True
                cancelled.append(request.prompt_id)

    after_round.append(cancel)
    done = stream(make(SMC, rows=FEW), asked())
    assert len(cancelled) == 1
    assert done[cancelled[0]].error == "cancelled."
    assert_as_plain(done, plain(SMC, TARGET), set(range(5)) - set(cancelled))
    assert_all_rows_free(last())


# --- Too few rows ---


def test_a_prompt_that_alone_needs_more_rows_than_there_are_fails_by_name(last):
    # Small exponents have many prefixes, large ones few.
    target = PowerTarget(2.5, (5,))
    expected = plain(SMC, target)
    needs = np.asarray(expected.info.num_rows).max(axis=1)
    too_many = [i for i in range(5) if needs[i] > 4]
    assert 0 < len(too_many) < 5
    engine = make(SMC, rows=4)
    done = stream(engine, asked(target))
    for i in too_many:
        assert_sentence(done[i].error, "a prompt alone needs", "and there are 4; raise rows=")
        (rows,) = [int(word) for word in done[i].error.split() if word.isdigit()]
        assert 4 < rows <= needs[i]
    assert_as_plain(done, expected, set(range(5)) - set(too_many))
    assert_all_rows_free(last())
    assert_as_plain(stream(engine, asked(target)), expected, set(range(5)) - set(too_many))


# All particles have prefixes of their own, soon and for long.
FLAT, FLAT_TARGET = PowerSMC(6, 0.1), PowerTarget(1.0)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("is_list", [True, False])
def test_a_prompt_alone_gets_all_rows_at_once(slots, is_list):
    def requests():
        yield from asked(FLAT_TARGET, PROMPTS[:1])
        yield from [None] * 8

    engine = make(FLAT, rows=6, slots=slots)
    with jax.enable_x64(True):
        given = asked(FLAT_TARGET, PROMPTS[:1]) if is_list else requests()
        (done,) = engine.stream(given, key=KEY)
    assert_same([done.result], plain(FLAT, FLAT_TARGET))
    assert done.result.info.num_rows.max() == 6, "rows were never scarce"
    assert engine.stats.stalls == 0


def test_no_rows_are_reserved_where_nobody_can_come():
    engine = make(FLAT, rows=6 * SLOTS)
    done = stream(engine, asked(FLAT_TARGET, PROMPTS[:SLOTS]))
    rows = sum(one.result.info.num_rows for one in done.values())
    assert rows.max() == 6 * SLOTS and engine.stats.stalls == 0


# --- No memory ---


class Failure:
    """Lets a method fail on some calls, as a device does that runs out of memory.

    What was to be donated is gone then.
    """

    def __init__(self, monkeypatch, owner, name, calls, message="RESOURCE_EXHAUSTED: no memory."):
        original, self.count, self.failed = getattr(owner, name), 0, 0

        def failing(this, *args, **options):
            self.count += 1
            if self.count in calls:
                self.failed += 1
                if isinstance(this, DeviceRows):
                    jax.tree.map(lambda x: x.delete(), this._state)
                raise jax.errors.JaxRuntimeError(message)
            return original(this, *args, **options)

        monkeypatch.setattr(owner, name, failing)


PLACES = {
    "chunk": (DeviceRows, "decode_chunk"),
    "enter": (DeviceRows, "_enter"),
    "outcome": (Scheduler, "_look"),
}


@pytest.mark.parametrize("call", [1, 2, 5, 9])
@pytest.mark.parametrize("place", PLACES)
def test_a_lack_of_memory_changes_no_result(monkeypatch, last, place, call):
    failure = Failure(monkeypatch, *PLACES[place], {call})
    results = run(make(SMC, rows=14), TARGET)
    assert_same(results, plain(SMC, TARGET))
    assert failure.failed == (failure.count >= call)  # few programs let prompts enter
    assert last().sizes.rows == ((7,) if failure.failed else (14,))


def test_a_chunk_whose_records_do_not_come_is_taken_again(monkeypatch, last):
    failure = Failure(monkeypatch, PendingRecords, "fetch", {4})
    assert_same(run(make(SMC, rows=14), TARGET), plain(SMC, TARGET))
    assert failure.failed == 1 and last().sizes.rows == (7,)


def test_memory_may_fail_more_than_once_and_the_table_gets_smaller_each_time(monkeypatch, last):
    failure = Failure(monkeypatch, *PLACES["chunk"], {3, 4, 7})
    assert_same(run(make(SMC, rows=56), TARGET), plain(SMC, TARGET))
    assert failure.failed == 3 and last().sizes.rows == (7,)


def test_where_rows_follow_the_load_the_larger_tables_are_given_up(growing, monkeypatch, last):
    failure = Failure(monkeypatch, *PLACES["chunk"], {4})
    engine = make(SMC, rows=None)
    sizes = engine._sizes.rows
    assert sizes == (4, 8, 18)
    assert_same(run(engine, TARGET), plain(SMC, TARGET))
    assert failure.failed == 1
    assert last().sizes.rows == sizes[: len(last().sizes.rows)] != sizes


def test_with_rows_for_less_than_one_prompt_what_runs_has_failed(monkeypatch):
    Failure(monkeypatch, *PLACES["chunk"], {2})
    done = stream(make(SMC, rows=FEW, slots=2), asked())
    failed = [i for i in range(5) if done[i].error is not None]
    assert failed == [0, 1]
    assert_sentence(
        done[0].error, "memory does not suffice for 7 rows", "lower num_particles", "EXHAUSTED"
    )
    assert_as_plain(done, plain(SMC, TARGET), [2, 3, 4])


def test_another_failure_of_the_device_is_no_lack_of_memory(monkeypatch):
    Failure(monkeypatch, *PLACES["chunk"], {2}, "INTERNAL: the device has failed.")
    done = stream(make(SMC, rows=14, slots=2), asked())
    failed = [i for i in range(5) if done[i].error is not None]
    assert failed == [0, 1] and done[0].error == "INTERNAL: the device has failed."
    assert_as_plain(done, plain(SMC, TARGET), [2, 3, 4])


# --- Invalid logits ---


@dataclasses.dataclass(frozen=True)
class Poisoned(TableLM):
    """A table that returns NaN after token 4, and leaves it in the cache.

    As attention does, it multiplies entries that nobody may read by zero: a NaN would spread.
    """

    def init_cache(self, params, num_rows, capacity):
        own = super().init_cache(params, num_rows, capacity)
        return own, jnp.zeros((num_rows, capacity), params.logits.dtype)

    def extend(self, params, cache, tokens, position, count):
        own, values = cache
        logits, own = super().extend(params, own, tokens, position, count)
        entry = jnp.arange(values.shape[1], dtype=jnp.int32)[None]
        known = entry < (position + count)[:, None]
        bad = known & (own == 4) & (entry >= position[:, None])
        values = jnp.where(bad, jnp.nan, values)
        read = jnp.where(count[:, None] > 0, values, 0.0)
        return logits + jnp.sum(0 * read, axis=1)[:, None, None], (own, values)


# Token 4 comes after two tokens 3 alone, beyond what a prompt that enters overwrites.
BAD = [0, 3, 6]
AMONG_BAD = [[1, 0, 3, 3], [1, 2], [0], [0, 0, 3, 3], [2, 2], [0, 0, 0], [1, 2, 3, 3], [1], [2]]


def among_bad(sampler, rows):
    """What became of these prompts, and what is expected of them in the plain loop."""
    logits = np.array(PARAMS.logits)
    logits[..., 3:5] = -np.inf
    logits[0, 3 * (V + 1) + 3] = np.where(np.arange(V) == 4, 0.0, -np.inf)
    params = PARAMS._replace(logits=logits)
    engine = make(sampler, rows=rows, model=Poisoned(V, 2), params=params)
    done = stream(engine, asked(prompts=AMONG_BAD))
    return done, plain_of(TableLM(V, 2), params, sampler, TARGET, prompts=AMONG_BAD)


# A row of one particle is never overwritten by another one's copy, which would clean it.
@pytest.mark.parametrize(("sampler", "rows"), [(SMC, FEW), (SMC, 18), (PowerSMC(1), 3)])
def test_invalid_logits_harm_nobody_else_and_their_rows_are_used_again(last, sampler, rows):
    done, expected = among_bad(sampler, rows)
    for i in BAD:
        assert done[i].result.info.bad_logits.tolist() == [True]
        assert "invalid logits" in done[i].result.failures()[0]
    others = set(range(len(AMONG_BAD))) - set(BAD)
    assert_as_plain(done, expected, others)
    assert_all_rows_free(last())


def test_without_a_reset_what_is_left_in_a_row_harms_the_next_one(monkeypatch):
    def forget(self):
        table = self._state.rows
        self._state = self._state._replace(
            rows=table._replace(spoiled=jnp.zeros_like(table.spoiled))
        )

    monkeypatch.setattr(DeviceRows, "reset", forget)
    done, _ = among_bad(PowerSMC(1), 3)
    assert any(done[i].result.info.bad_logits[0] for i in range(len(AMONG_BAD)) if i not in BAD)


# --- Several devices ---


def on_two_devices(sampler, **options):
    """Two slots on each of them, unless told otherwise."""
    return make(sampler, mesh=make_mesh(1, jax.devices()[:2]), **{"slots": 4, **options})


@pytest.fixture
def devices(after_round):
    """prompt_id -> the devices on which a request has been, in order."""
    found = collections.defaultdict(list)

    def note(scheduler):
        for slot, request in enumerate(scheduler._occupants):
            if request is not None and not request.suspended:
                device = slot // scheduler.rows.allocator.slots_per_shard
                if found[request.prompt_id][-1:] != [device]:
                    found[request.prompt_id].append(device)

    after_round.append(note)
    return found


def test_prompts_enter_on_the_device_with_the_most_free_rows(devices):
    flat, peaked = PowerTarget(1.0), PowerTarget(8.0, (5,))

    def requests():
        yield StreamRequest(PROMPTS[0], flat, CAP)
        yield from [None] * 4
        for prompt in PROMPTS[1:]:
            yield StreamRequest(prompt, peaked, 2)

    with jax.enable_x64(True):
        engine = on_two_devices(SMC, rows=12, slots=12, chunk=1)
        done = list(engine.stream(requests(), key=KEY))
    assert [one.error for one in done] == [None] * 5
    stats = engine.stats
    assert len(stats.by_device) == 2 and sum(stats.by_device) == stats.row_steps
    assert stats.fullest_device == stats.by_device[0] / stats.steps > stats.mean_device
    # The first one's rows fill its device while the others come.
    assert devices[0] == [0] and all(devices[i] == [1] for i in range(1, 5))


def test_a_prompt_may_resume_on_another_device(devices):
    # Two that need many rows on one device, two that are soon done on the other.
    caps = [CAP, 2, CAP, 2]
    asked = [
        StreamRequest(prompt, TARGET, cap, prompt_id=i)
        for i, (prompt, cap) in enumerate(zip(PROMPTS, caps, strict=False))
    ]
    engine = on_two_devices(SMC, rows=FEW, chunk=1)
    done = stream(engine, asked)
    assert dict(devices) == {0: [0], 1: [1], 2: [0, 1], 3: [1]} and engine.stats.resumed > 0
    for i, cap in enumerate(caps):
        assert_same([done[i].result], plain(SMC, TARGET, cap=cap).one(i))


# --- A look at who runs ---


def test_nobody_overtakes_whoever_waits_for_his_rows(after_round):
    entered, waits = [], []

    def note(scheduler):
        running = [r.prompt_id for r in scheduler._occupants if r is not None]
        if waits and waits[-1]:
            assert set(running) <= set(waits[-1]), "somebody entered while others waited"
        preempted = any(r is not None and r.suspended for r in scheduler._occupants)
        waits.append(running if preempted else [])
        entered.extend(i for i in running if i not in entered)

    after_round.append(note)
    run(make(SMC, rows=FEW), TARGET)
    assert entered == [0, 1, 2, 3, 4] and any(waits)


def test_without_lookahead_the_results_are_the_same():
    engine = make(SMC, rows=FEW)
    scheduler = engine.scheduler
    with pytest.MonkeyPatch.context() as patch, chunks_of(4):

        def at_once(key):
            made = scheduler(key)
            made.lookahead = 0
            return made

        patch.setattr(engine, "scheduler", at_once)
        assert_same(run(engine, TARGET), plain(SMC, TARGET))
