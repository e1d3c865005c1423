"""The soak notices what it is there for; the soak itself is ``make soak``."""

import copy
import json

import pytest

from tests.soak.workdir import SoakError, compare, items, lines

RECORDS = [
    {
        "run": run,
        "seed": 0,
        "id": name,
        "choice": 1,
        "particles": [{"tokens": [1, 2], "log_prob": -1.5}],
        "seconds": {"decode": 1.0},
    }
    for run in ("smc", "mh")
    for name in ("a", "b")
]
SUMMARY = {"complete": True, "rows": [{"accuracy": 0.5, "multiple": 2.0}], "compile_seconds": 3.0}


def write(directory, records, summary=SUMMARY, torn=""):
    """A workdir whose records are in two files."""
    directory.mkdir()
    half = len(records) // 2
    for name, part in (("records.jsonl", records[:half]), ("records-00001.jsonl", records[half:])):
        (directory / name).write_text("".join(json.dumps(each) + "\n" for each in part) + torn)
    (directory / "summary.json").write_text(json.dumps(summary))
    return directory


def changed(value, *path):
    """A copy of the records in which the first one has another value there."""
    records = copy.deepcopy(RECORDS)
    place = records[0]
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return records


@pytest.fixture
def reference(tmp_path):
    return write(tmp_path / "reference", RECORDS)


def test_what_may_differ_does_no_harm(tmp_path, reference):
    records = changed(-1.50001, "particles", 0, "log_prob")[::-1]
    records[0]["seconds"] = {"decode": 9.0, "compile": 1.0}
    summary = SUMMARY | {"compile_seconds": 0.0, "rows": [{"accuracy": 0.5, "multiple": 1.0}]}
    workdir = write(tmp_path / "workdir", records, summary, torn='{"run": "smc", "se')
    assert len(lines(workdir)) == len(items(workdir)) == 4
    compare(workdir, reference)


@pytest.mark.parametrize(
    ("records", "summary", "message"),
    [
        (RECORDS[1:], SUMMARY, "1 items are missing, such as ('smc', 0, 'a')"),
        ([*RECORDS, RECORDS[0]], SUMMARY, "('smc', 0, 'a') was recorded twice"),
        ([*RECORDS, RECORDS[0] | {"id": "c"}], SUMMARY, "1 items are too many"),
        ([*RECORDS, {"run": "smc"}], SUMMARY, "a line is no record"),
        (changed(3, "particles", 0, "tokens", 1), SUMMARY, "particles[0].tokens[1]: 3 and 2"),
        (changed([1], "particles", 0, "tokens"), SUMMARY, "particles[0].tokens: [1] and [1, 2]"),
        (changed(-1.51, "particles", 0, "log_prob"), SUMMARY, "log_prob: -1.51 and -1.5"),
        (changed(True, "choice"), SUMMARY, "choice: True and 1"),
        (changed(1, "more"), SUMMARY, "the fields of ('smc', 0, 'a')"),
        (RECORDS, SUMMARY | {"rows": [{"accuracy": 0.6, "multiple": 2.0}]}, "accuracy: 0.6"),
        (RECORDS, SUMMARY | {"complete": False}, "summary.json.complete: False and True"),
    ],
)
def test_anything_else_is_named(tmp_path, reference, records, summary, message):
    workdir = write(tmp_path / "workdir", records, summary)
    with pytest.raises(SoakError) as raised:
        compare(workdir, reference)
    assert message in str(raised.value)


def test_a_job_that_rescued_its_records_without_need_is_noticed(tmp_path, reference):
    workdir = write(tmp_path / "workdir", RECORDS)
    (workdir / "records-rescued-1.jsonl").touch()
    with pytest.raises(SoakError, match=r"records-rescued-1.jsonl: the job took its own file"):
        compare(workdir, reference)
