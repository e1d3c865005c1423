"""Processes of one run that were started in different ways, each a thread of its own here."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from jax_power_smc.cli.agreement import agree
from jax_power_smc.core import process_group as library
from jax_power_smc.core.process_group import SINGLE_PROCESS, ProcessGroup


@pytest.fixture
def together(monkeypatch):
    """A function of each process's facts: what each says, or None."""

    def together(*facts):
        meeting, held = threading.Barrier(len(facts)), {}

        class Client:
            key_value_set = staticmethod(held.__setitem__)
            wait_at_barrier = staticmethod(lambda name, timeout: meeting.wait(60))
            blocking_key_value_get = staticmethod(lambda name, timeout: held[name])

        monkeypatch.setattr(library.distributed.global_state, "client", Client)

        def one(index):
            try:
                agree(ProcessGroup(index, len(facts)), "the start", facts[index])
            except ValueError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(len(facts)) as pool:
            return list(pool.map(one, range(len(facts))))

    return together


def test_processes_that_agree_go_on(together):
    facts = {"config": {"alpha": math.nan, "seeds": (0,), "odd": object}, "version": {"jax": "1"}}
    assert together(facts, facts, facts) == [None] * 3


def test_all_refuse_by_name_where_any_two_differ(together):
    facts = {"config": {"alpha": 4.0, "limit": 2}, "version": {"jax": "1"}, "device": "TPU v5e"}
    other = {**facts, "config": {"alpha": 2.0, "limit": None}}
    third = {**facts, "version": {"jax": "2"}, "device": "cpu"}
    sentence = (
        "the processes of this run do not agree: process 1 has config.alpha 2.0 (process 0: 4.0), "
        'config.limit null (process 0: 2); process 3 has device "cpu" (process 0: "TPU v5e"), '
        'version.jax "2" (process 0: "1").'
    )
    assert together(facts, other, facts, third) == [sentence] * 4


def test_of_many_differences_some_are_named(together):
    said = together(dict.fromkeys("abcdefghij", 1), dict.fromkeys("abcdefghij", 2))
    assert said[0].endswith("h 2 (process 0: 1) and 2 more.") and said[0] == said[1]


def test_one_process_asks_nobody():
    agree(SINGLE_PROCESS, "the start", {})
