"""Processes of one run that were started in different ways, each a thread of its own here."""

import math
from concurrent.futures import ThreadPoolExecutor

from jax_power_smc.cli.agreement import agree
from jax_power_smc.core.process_group import SINGLE_PROCESS, ProcessGroup
from tests.core.stores import stores


def together(*facts):
    """What each process says of its facts, or None."""

    def one(group):
        try:
            agree(group, "the start", facts[group.index])
        except ValueError as error:
            return str(error)
        return None

    with stores(len(facts)) as each, ThreadPoolExecutor(len(facts)) as pool:
        groups = [ProcessGroup(index, len(facts), store) for index, store in enumerate(each)]
        return list(pool.map(one, groups))


def test_processes_that_agree_continue():
    facts = {"config": {"alpha": math.nan, "seeds": (0,), "odd": object}, "version": {"jax": "1"}}
    assert together(facts, facts, facts) == [None] * 3


def test_all_refuse_by_name_where_any_two_differ():
    facts = {"config": {"alpha": 4.0, "limit": 2}, "version": {"jax": "1"}, "device": "TPU v5e"}
    other = {**facts, "config": {"alpha": 2.0, "limit": None}}
    third = {**facts, "version": {"jax": "2"}, "device": "cpu"}
    sentence = (
        "the processes of this run do not agree: process 1 has config.alpha 2.0 (process 0: 4.0), "
        'config.limit null (process 0: 2); process 3 has device "cpu" (process 0: "TPU v5e"), '
        'version.jax "2" (process 0: "1").'
    )
    assert together(facts, other, facts, third) == [sentence] * 4


def test_of_many_differences_some_are_named():
    said = together(dict.fromkeys("abcdefghij", 1), dict.fromkeys("abcdefghij", 2))
    assert said[0].endswith("h 2 (process 0: 1) and 2 more.") and said[0] == said[1]


def test_a_single_process_always_agrees():
    agree(SINGLE_PROCESS, "the start", {})
