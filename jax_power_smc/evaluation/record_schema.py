"""What a record must look like: types, ranges, and how its parts fit together.

Records are read by days-long jobs and by reports, and may have been edited in between: a record
that passes ``check`` can be used without further thought. Fields of their own are let through.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

from jax_power_smc.core.files import check_levels
from jax_power_smc.core.prng import prompt_id
from jax_power_smc.results.result import PHASES

# Raises ValueError unless the value, which the second argument names, is right.
_Check = Callable[[Any, str], None]

# Counts become arrays of int32; weights, and what is summed from them, are rounded.
_MOST, _ROUNDING = 2**31 - 1, 0.01
# Characters of a wrong value that an error shows.
_SHOWN = 40


def check(record: Any) -> None:
    """Raises ValueError for the first part that cannot be as a job wrote it."""
    _RECORD(record, "")
    try:
        check_levels(record["gold"])
    except ValueError as error:
        raise ValueError(f"gold cannot be read: {error}") from None
    if record["prompt_id"] != (number := prompt_id(record["id"])):
        raise _wrong(record["prompt_id"], "prompt_id", f"{number}, as id is {record['id']!r}")
    info, particles = record["info"], record["particles"]
    if len(info["ess"]) != len(info["forks"]):
        raise ValueError("info.ess and info.forks have different lengths")
    logs = [particle["log_weight"] for particle in particles]
    alive = [index for index, value in enumerate(logs) if value is not None]
    total = math.fsum(math.exp(logs[index]) for index in alive)
    if alive and abs(total - 1) > _ROUNDING:
        raise ValueError(f"the weights of its particles sum to {total:.4g}; they must sum to 1")
    choice = record["choice"]
    if choice is not None and choice >= len(particles):
        raise _wrong(choice, "choice", f"an index of the {len(particles)} particles")
    if alive and choice not in alive:
        raise _wrong(choice, "choice", "the index of a particle whose weight is not zero")


def _wrong(value: Any, name: str, needed: str) -> ValueError:
    if isinstance(value, list | dict):
        shown = f"a {type(value).__name__}"
    else:
        shown = repr(value[: 2 * _SHOWN] if isinstance(value, str) else value)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return ValueError(f"{name or 'the line'} is {shown}; it must be {needed}")


def _is(needed: str, holds: Callable[[Any], bool]) -> _Check:
    def check(value: Any, name: str) -> None:
        if not holds(value):
            raise _wrong(value, name, needed)

    return check


def _number(low: float, high: float, needed: str) -> _Check:
    # Python's bool is an int, and JSON's 1 an int where a float was meant.
    return _is(
        needed,
        lambda x: isinstance(x, int | float) and not isinstance(x, bool) and low <= x <= high,
    )


def _or_null(inner: _Check) -> _Check:
    def check(value: Any, name: str) -> None:
        if value is not None:
            inner(value, name)

    return check


def _list(inner: _Check) -> _Check:
    def check(value: Any, name: str) -> None:
        if not isinstance(value, list):
            raise _wrong(value, name, "a list")
        for index, each in enumerate(value):
            inner(each, f"{name}[{index}]")

    return check


def _are_counts(values: Iterable[Any]) -> bool:
    # Of long lists: much quicker than one check for each.
    return all(type(x) is int and 0 <= x <= _MOST for x in values)


def _object(fields: dict[str, _Check], optional: tuple[str, ...] = ()) -> _Check:
    def check(value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(value, name, "an object")
        for field, inner in fields.items():
            if field in value:
                inner(value[field], f"{name}.{field}" if name else field)
            elif field not in optional:
                raise ValueError(f"{name or 'the line'} has no {field}")

    return check


_TEXT = _is("a text", lambda x: isinstance(x, str))
_FLAG = _is("true or false", lambda x: isinstance(x, bool))
_COUNT = _is(f"an integer in [0, {_MOST}]", lambda x: _are_counts([x]))
_COUNTS = _is("a list of non-negative integers", lambda x: isinstance(x, list) and _are_counts(x))
_TOTAL = _is("an integer of at least 0", lambda x: type(x) is int and 0 <= x < 2**63)
_FINITE = _number(-1e300, 1e300, "a finite number")
_SIZE = _number(0, 1e12, "a finite number of at least 0")
_SHARE = _number(-_ROUNDING, 1 + _ROUNDING, "a number in [0, 1]")
_LOG = _number(-1e300, _ROUNDING, "a finite number of at most 0, or null")
_MOVE = _is(
    "a step, a row and its parent",
    lambda x: isinstance(x, list) and len(x) == 3 and _are_counts(x),
)
_PARTICLE = _object(
    {
        "tokens": _COUNTS,
        "text": _TEXT,
        "finished": _FLAG,
        "log_prob": _or_null(_LOG),
        "log_weight": _or_null(_LOG),
        "loop": _FLAG,
        "very_short": _FLAG,
        "row": _COUNT,
        "parsed": _or_null(_TEXT),
        "correct": _FLAG,
        "correct_string": _FLAG,
        "note": _or_null(_TEXT),
    }
)
_INFO = _object(
    {
        "ess": _list(_SIZE),
        "forks": _COUNTS,
        "moves": _list(_MOVE),
        "distinct_roots": _COUNT,
        "coalescence": _COUNT,
        "unfinished_mass": _or_null(_SHARE),
        "dropped_mass": _or_null(_SHARE),
        "acceptance_rate": _or_null(_SHARE),
        "model_tokens": _TOTAL,
        "drawn_tokens": _TOTAL,
        "preempted": _TOTAL,
    },
    optional=("drawn_tokens", "preempted"),
)
_RECORD = _object(
    {
        "run": _TEXT,
        "seed": _COUNT,
        "id": _TEXT,
        "prompt_id": _TOTAL,
        "prompt": _TEXT,
        "gold": lambda value, name: None,
        "rendered": _TEXT,
        "failure": _or_null(_TEXT),
        "log_evidence": _or_null(_FINITE),
        "choice": _or_null(_COUNT),
        "particles": _list(_PARTICLE),
        "info": _INFO,
        "seconds": _object(dict.fromkeys(PHASES, _SIZE)),
    }
)
