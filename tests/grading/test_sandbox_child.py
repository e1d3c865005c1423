"""Plain data on its way between judge and candidate."""

import collections
import enum
import fractions
import json
import math

import numpy as np
import pytest

from jax_power_smc.grading.sandbox_child import decode, encode


class Size(enum.IntEnum):
    """A number with a name."""

    SMALL = 1


Pair = collections.namedtuple("Pair", "a b")


def sent(value):
    """The value after a round trip."""
    return decode(json.loads(json.dumps(encode(value))))


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, -1, 2**64, -(10**30), 0.1, -0.0, 1e300, math.inf),
        *("", "a\n\0\udcff\U0001f600", b"\0\xff", bytearray(b"a"), 1 - 2j, range(1, 9, 2)),
        *([], (), {}, set(), frozenset(), [[1, (2,)], {"a": [3]}], ("list", "dict")),
        *({1: 2, "1": 3, (4, 5): None, 1.5: True}, {frozenset([1]), (2,)}, ["dict", ["list"]]),
    ],
)
def test_plain_data_stays_what_it_is(value):
    back = sent(value)
    assert back == value and repr(back) == repr(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
        (Pair(1, 2), (1, 2)),
        (Size.SMALL, 1),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.float32(0.5), 0.5),
    ],
)
def test_kinds_of_it_become_plain(value, expected):
    back = sent(value)
    assert back == expected and type(back) is type(expected)


def test_nan_iterators_and_many_digits():
    assert math.isnan(sent(math.nan))
    assert list(sent(each for each in "abc")) == ["a", "b", "c"]
    assert sent(iter([1])) != [1]
    assert sent(1 << 20_000) == 1 << 20_000


@pytest.mark.parametrize(
    "value", [object(), len, int, fractions.Fraction(1, 3), np.zeros(2), [{1: len}]]
)
def test_all_else_is_refused(value):
    with pytest.raises(TypeError, match="is not plain data"):
        encode(value)
