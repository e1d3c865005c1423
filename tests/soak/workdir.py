"""What a workdir holds, and how it may differ from that of a job that nothing disturbed."""

import json
import pathlib

from jax_power_smc.evaluation import records

# What two runs of one job do not share, in a record and in summary.json.
TIMES = {"seconds", "seconds_per_problem", "multiple", "compile_seconds"}
# Prompts enter in other company after a restart: another order of the same sums.
TOLERANCE = 1e-4


class SoakError(Exception):
    """The job broke a promise; the message says which."""


def lines(workdir):
    """All whole lines of records; the last one of a file may be torn."""
    found = []
    for path in sorted(pathlib.Path(workdir).glob("records*.jsonl")):
        found += path.read_bytes().split(b"\n")[:-1]
    return found


def items(workdir):
    """Item -> its record; ``SoakError`` if a line is not a record, or an item is there twice."""
    found = {}
    for line in lines(workdir):
        try:
            record = json.loads(line)
            item = records.item_of(record)
        except (ValueError, KeyError, TypeError) as error:
            raise SoakError(f"a line is no record ({error}): {line[:200]!r}") from None
        if item in found:
            raise SoakError(f"{item} was recorded twice")
        found[item] = record
    return found


def compare(workdir, reference):
    """``SoakError`` unless both hold the same records and the same table but for seconds."""
    ours, theirs = items(workdir), items(reference)
    if strays := sorted(pathlib.Path(workdir).glob("*rescued*")):
        raise SoakError(f"{strays[0].name}: the job took its own file for a changed one")
    if lost := theirs.keys() - ours.keys():
        raise SoakError(f"{len(lost)} items are missing, such as {min(lost)}")
    if new := ours.keys() - theirs.keys():
        raise SoakError(f"{len(new)} items are too many, such as {min(new)}")
    pairs = [(str(item), record, theirs[item]) for item, record in ours.items()]
    tables = [
        json.loads((pathlib.Path(path) / "summary.json").read_text())
        for path in (workdir, reference)
    ]
    for name, own, other in [*pairs, ("summary.json", *tables)]:
        if where := difference(own, other, name):
            raise SoakError(f"another value than that of the undisturbed job: {where}")


def difference(own, other, name):
    """The first place where two JSON values differ, without times; None if there is none."""
    if isinstance(own, dict) and isinstance(other, dict):
        if own.keys() != other.keys():
            return f"the fields of {name}"
        parts = [(f"{name}.{key}", own[key], other[key]) for key in own if key not in TIMES]
    elif isinstance(own, list) and isinstance(other, list) and len(own) == len(other):
        parts = [(f"{name}[{i}]", *pair) for i, pair in enumerate(zip(own, other, strict=True))]
    elif isinstance(own, float) and isinstance(other, float) and abs(own - other) <= TOLERANCE:
        return None
    else:
        return None if own == other and type(own) is type(other) else f"{name}: {own} and {other}"
    found = (difference(own, other, place) for place, own, other in parts)
    return next((place for place in found if place), None)
