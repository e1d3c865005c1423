"""A call that is late is given up; what others return or raise is passed on."""

import time

import pytest

from jax_power_smc.core.deadline import LateError, within


def test_what_is_in_time_is_as_without():
    assert within(60.0, "it", lambda: 7) == 7
    for kind in (KeyError, KeyboardInterrupt, SystemExit):

        def fail(kind=kind):
            raise kind("x")

        with pytest.raises(kind, match="x"):
            within(60.0, "it", fail)


def test_what_is_late_is_given_up():
    start = time.monotonic()
    with pytest.raises(LateError, match=r"^it took longer than 0.01 s\.$"):
        within(0.01, "it", lambda: time.sleep(20))
    assert time.monotonic() - start < 10
