"""What items follow from: its digests, the scope, and the records that do not belong."""

import dataclasses

import pytest

from jax_power_smc.evaluation import conditions
from jax_power_smc.evaluation.conditions import Conditions, Scope, checked

MADE = Conditions(
    {"algorithm": 1, "target": {"alpha": 4.0}},
    {"smc": {"num_particles": 8}, "mh": {}},
    {"a": "1", "b": "2"},
    {"a": "3", "b": "4"},
)
ITEM = ("smc", 0, "a")


def record(run="smc", seed=0, id="a", made=MADE):
    return {"run": run, "seed": seed, "id": id, "digest": made.digests((run, seed, id))}


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("algorithm", {"common": {**MADE.common, "algorithm": 2}}),
        ("target", {"common": {**MADE.common, "target": {"alpha": 2.0}}}),
        ("sampler", {"samplers": {"smc": {"num_particles": 9}}}),
        ("problem", {"problems": {"a": "9"}}),
        ("rendering", {"renderings": {"a": "9"}}),
    ],
)
def test_a_part_that_changes_changes_its_digest_alone(part, changes):
    other = dataclasses.replace(MADE, **changes)
    assert other.differing(record()) == [part]
    assert MADE.differing(record()) == []


def test_what_is_not_known_is_not_compared():
    bare = Conditions(MADE.common, {}, {}, {})
    assert bare.differing(record()) == []
    assert bare.digests(ITEM).keys() == {"algorithm", "target", "seed"}


def test_records_outside_the_scope_are_left_out_but_checked():
    scope = Scope(["smc"], [0], ["a"])
    listed = [record(), record("mh"), record(seed=1), record(id="b")]
    assert list(checked(listed, MADE, scope, "DIR")) == listed[:1]
    assert len(scope) == 1 and len(Scope(["x", "y"], [0, 1], "abc")) == 12
    other = dataclasses.replace(MADE, common={**MADE.common, "algorithm": 2})
    with pytest.raises(ValueError, match=r"DIR holds 1 record\(s\) .*\(mh, seed 0, 'a': algor"):
        list(checked([record(), record("mh", made=other)], MADE, scope, "DIR"))


def test_some_of_many_records_that_do_not_belong_are_named():
    other = dataclasses.replace(MADE, samplers={"smc": {}}, renderings={"a": "", "b": ""})
    listed = [record(), *(record(seed=seed, made=other) for seed in range(1, 6))]
    with pytest.raises(ValueError, match="5 record") as refusal:
        list(checked(listed, MADE, Scope(["smc"], range(6), "a"), "DIR"))
    assert "smc, seed 3, 'a': sampler and rendering; and 2 more)" in str(refusal.value)


@pytest.mark.parametrize("digest", [None, "0123456789ab"])
def test_records_without_digests_are_of_an_earlier_version(digest):
    old = record() | {"digest": digest}
    with pytest.raises(ValueError, match="DIR was written by an earlier version"):
        list(checked([old], MADE, Scope(["smc"], [0], "a"), "DIR"))


def test_the_scope_is_that_of_the_latest_start():
    held = {
        "config": {"seeds": [0, 2], "samplers": {}},
        "labels": {"smc": "Power-SMC"},
        "num_problems": 2,
        "problems": {"b": "", "a": "", "c": ""},
    }
    assert conditions.scope_of(held) == Scope(["smc"], [0, 2], ["b", "a"])
