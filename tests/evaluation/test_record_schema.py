"""What is refused as a record, whoever wrote it."""

import json

import pytest

from jax_power_smc.evaluation import record_schema
from jax_power_smc.evaluation.scores import read
from tests.evaluation import made

NAN, INF = float("nan"), float("inf")
DEAD = made.particle(log_weight=None, log_prob=None)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gold": {"prompt": "def one():", "test": ["a", 1.5]}},
        {"more": [[[1]]]},
        {"choice": 1, "particles": [DEAD, made.particle()]},
        {"choice": None, "particles": [], "failure": "weight zero"},
        {"choice": 0, "particles": [DEAD], "failure": "weight zero"},
        {"particles": [made.particle(log_weight=-0.7), made.particle(log_weight=-0.6864)]},
        {"log_evidence": None},
    ],
)
def test_what_a_job_may_write_is_read(changes):
    record = made.record(**changes)
    record_schema.check(json.loads(json.dumps(record)))
    read(record)


def test_records_of_the_engine_before_lack_a_count():
    info = made.info()
    del info["drawn_tokens"], info["preempted"]
    record_schema.check(made.record(info=info))


def wrong(name, value, message, **also):
    return pytest.param({name: value, **also}, message, id=f"{name}: {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        wrong("run", 3, "run is 3; it must be a text"),
        wrong("prompt_id", 7, "prompt_id is 7; it must be .*, as id is 'a'"),
        wrong("seed", -1, r"seed is -1; it must be an integer in \[0, "),
        wrong("seed", True, "seed is True; it must be an integer"),
        wrong("seed", 1.0, "seed is 1.0; it must be an integer"),
        wrong("seed", 2**31, "seed is 2147483648; it must be an integer"),
        wrong("choice", -1, "choice is -1; it must be an integer"),
        wrong("choice", 1, "choice is 1; it must be an index of the 1 particles"),
        wrong("choice", None, "choice is None; it must be the index of a particle whose weight"),
        wrong("log_evidence", NAN, "log_evidence is nan; it must be a finite number"),
        wrong("log_evidence", INF, "log_evidence is inf; it must be a finite number"),
        wrong("log_evidence", 10**400, r"log_evidence is 1000.*\.\.\.; it must be a finite"),
        wrong("failure", 0, "failure is 0; it must be a text"),
        wrong("gold", json.loads("[" * 500 + "]" * 500), "gold cannot be read: its brackets are"),
        wrong("particles", {}, "particles is a dict; it must be a list"),
        wrong("particles", [7], r"particles\[0\] is 7; it must be an object"),
        wrong("info", [], "info is a list; it must be an object"),
        wrong("seconds", {"compile": 0.0, "prefill": 0.0}, "seconds has no decode"),
        wrong("seconds", {"compile": 0, "prefill": -1, "decode": 0}, "seconds.prefill is -1"),
    ],
)
def test_a_wrong_field_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        record_schema.check(made.record(**changes))


@pytest.mark.parametrize("value", [[], 7, None, "text", NAN, [[[]]]])
def test_what_is_no_object_is_no_record(value):
    with pytest.raises(ValueError, match=r"the line is .*; it must be an object"):
        record_schema.check(value)


@pytest.mark.parametrize("name", [name for name in made.record() if name != "digest"])
def test_every_field_must_be_there(name):
    record = made.record()
    del record[name]
    with pytest.raises(ValueError, match=f"the line has no {name}"):
        record_schema.check(record)


OTHER_TYPE = {str: 1, bool: 1, int: "1", float: "1", list: "1", dict: [], type(None): {}}


@pytest.mark.parametrize("part", ["particle", "info", "seconds"])
def test_every_field_has_one_type(part):
    whole = made.record()
    of = whole["particles"][0] if part == "particle" else whole[part]
    for name, value in list(of.items()):
        of[name] = OTHER_TYPE[type(value)]
        with pytest.raises(ValueError, match=name):
            record_schema.check(whole)
        of[name] = value
    record_schema.check(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_weight": 1000}, r"particles\[0\]\.log_weight is 1000; it must be .* at most 0"),
        ({"log_weight": NAN}, r"log_weight is nan"),
        ({"log_weight": -INF}, r"log_weight is -inf"),
        ({"log_weight": -3.0}, r"weights of its particles sum to 0\.04979; they must sum to 1"),
        ({"log_prob": 1.5}, "log_prob is 1.5; it must be a finite number of at most 0"),
        ({"tokens": [1, -1]}, "tokens is a list; it must be a list of non-negative integers"),
        ({"tokens": [1, 2.0]}, "tokens is a list"),
        ({"row": 2**40}, "row is 1099511627776; it must be an integer"),
        ({"finished": 1}, "finished is 1; it must be true or false"),
    ],
)
def test_a_wrong_particle_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        record_schema.check(made.record(particles=[made.particle(**changes)]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ess": [1.0, 2.0]}, "info.ess and info.forks have different lengths"),
        ({"ess": [NAN]}, r"info.ess\[0\] is nan"),
        ({"ess": [1e40]}, r"info.ess\[0\] is 1e\+40; it must be a finite number"),
        ({"forks": [2**31]}, "info.forks is a list; it must be a list of non-negative integers"),
        ({"moves": [[1, 2]]}, r"info.moves\[0\] is a list; it must be a step, a row and its"),
        ({"moves": [[1, 2, -3]]}, r"info.moves\[0\] is a list"),
        ({"coalescence": 2**31}, "info.coalescence is 2147483648"),
        ({"acceptance_rate": 2}, r"info.acceptance_rate is 2; it must be a number in \[0, 1\]"),
    ],
)
def test_wrong_diagnostics_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        record_schema.check(made.record(info=made.info(**changes)))
