"""What the processes of a job tell each other."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jax_power_smc.core import process_group
from jax_power_smc.core.process_group import SINGLE_PROCESS, ProcessGroup, Stop
from tests.core.stores import stores


@pytest.fixture
def groups():
    """Three processes that share a store."""
    with stores(3) as each:
        yield [ProcessGroup(index, 3, store) for index, store in enumerate(each)]


def at_once(groups, function):
    """What the function of a group returns, called for all of them at the same time."""
    with ThreadPoolExecutor(len(groups)) as pool:
        return list(pool.map(function, groups))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_shares_are_disjoint_complete_and_even(count):
    items = list(range(7))
    shares = [ProcessGroup(index, count).shard(items) for index in range(count)]
    assert sorted(item for share in shares for item in share) == items
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_a_single_process_is_the_first_and_does_not_wait():
    assert SINGLE_PROCESS.is_first and not ProcessGroup(1, 2).is_first
    SINGLE_PROCESS.barrier("alone")
    assert SINGLE_PROCESS.broadcast("what", "alone") == "alone"
    assert SINGLE_PROCESS.gather("what", "alone") == ["alone"]


def test_all_have_the_value_of_process_0(groups):
    assert at_once(groups, lambda group: group.broadcast("what", f"{group.index}")) == ["0"] * 3


def test_all_have_the_values_of_all(groups):
    said = at_once(groups, lambda group: group.gather("what", f"{group.index}"))
    assert said == [["0", "1", "2"]] * 3


def test_a_barrier_opens_when_all_have_reached_it(groups, monkeypatch):
    monkeypatch.setattr(process_group, "_POLL_SECONDS", 0.01)
    polled, passed = threading.Event(), threading.Event()

    def first():
        groups[0].barrier("here", polled.set)
        passed.set()

    thread = threading.Thread(target=first)
    thread.start()
    assert polled.wait(10)  # it is asked meanwhile
    groups[1].store.set("barrier/here/1", "reached")
    assert not passed.wait(0.1)
    groups[2].barrier("here")
    assert passed.wait(10)
    thread.join()


def test_if_process_0_is_lost_the_end_is_left_to_the_runtime(groups, monkeypatch):
    slept = []
    monkeypatch.setattr(process_group.time, "sleep", slept.append)
    groups[0].store.close()
    with pytest.raises(ConnectionError, match="process 0 was lost"):
        groups[1].barrier("all")
    assert not groups[2].all_fail(1)
    assert slept == [process_group._SECONDS_TO_BE_ENDED] * 2


@pytest.mark.parametrize(("others", "all_fail"), [((), False), ((0,), False), ((0, 2), True)])
def test_whether_all_have_failed(groups, others, all_fail):
    for index in others:
        groups[index].store.set(f"failed/{index}", "yes")
    assert groups[1].all_fail(10 if all_fail else 0.1) is all_fail


# --- Stopping -----------------------------------------------------------------------------------


def test_a_single_process_stops_when_it_is_asked_to():
    asked = []
    stop = Stop(SINGLE_PROCESS, lambda: bool(asked), in_step=False)
    assert not stop()
    asked.append(True)
    assert stop()
    asked.clear()
    assert stop()  # there is no way back


def test_all_stop_when_one_is_asked_to(groups):
    asked = []
    one = Stop(groups[1], lambda: bool(asked), in_step=False)
    others = [Stop(group, lambda: False, in_step=False) for group in (groups[0], groups[2])]
    assert not one() and not any(other() for other in others)
    asked.append(True)
    assert one()
    assert all(group.store.wait(["stop/1"], 10) for group in groups)
    assert all(other() and other() for other in others)


def test_in_step_all_stop_when_the_exchange_says_so(monkeypatch):
    library = process_group.multihost_utils
    monkeypatch.setattr(library, "process_allgather", lambda own: np.array([own, True]))
    assert Stop(ProcessGroup(0, 2), lambda: False, in_step=True)()
    monkeypatch.setattr(library, "process_allgather", lambda own: np.array([own, False]))
    assert not Stop(ProcessGroup(0, 2), lambda: False, in_step=True)()


def test_a_process_at_a_barrier_still_passes_on_that_it_is_asked_to_stop(groups, monkeypatch):
    monkeypatch.setattr(process_group, "_POLL_SECONDS", 0.01)
    stop = Stop(groups[0], lambda: True, in_step=False)
    thread = threading.Thread(target=groups[0].barrier, args=("all", stop.pass_on))
    thread.start()
    assert groups[1].store.wait(["stop/0"], 10)
    for group in groups[1:]:
        group.store.set(f"barrier/all/{group.index}", "reached")
    thread.join(10)
    assert not thread.is_alive()


def test_in_step_nothing_is_passed_on(monkeypatch):
    # The others would not take part in the exchange.
    monkeypatch.delattr(process_group.multihost_utils, "process_allgather")
    Stop(ProcessGroup(0, 2), lambda: True, in_step=True).pass_on()
