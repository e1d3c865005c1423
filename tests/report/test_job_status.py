"""The status of a job, and the summary of an unfinished one."""

import json

import numpy as np
import pytest

from jax_power_smc.evaluation import claim
from jax_power_smc.report.job_status import status_of
from jax_power_smc.report.load import read_report
from tests.report import workdirs

PROBLEMS = tuple("abcde")


@pytest.fixture(scope="module")
def config():
    return workdirs.default_config()


@pytest.fixture(scope="module")
def records(config):
    return workdirs.every_item(np.random.default_rng(0), config, PROBLEMS)


def status(workdir):
    return status_of(read_report(workdir))


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_finished_job_has_the_summary_that_it_wrote(config, records, tmp_path):
    workdir = workdirs.write(tmp_path, config, records, PROBLEMS)
    got = status(workdir)
    assert got.summary == workdirs.summary_of(config, records, PROBLEMS)
    assert (got.done, got.planned, got.problems, got.is_complete) == (30, 30, 5, True)
    assert got.text == "finished: 30 items"


def test_without_a_summary_it_is_made(config, records, tmp_path):
    some = [each for each in records if each["run"] != "swor" and each["id"] in "ab"]
    got = status(workdirs.write(tmp_path, config, some))
    assert got.summary["rows"] == workdirs.summary_of(config, some, ["a", "b"])["rows"]
    assert got.summary["complete"] is False and got.planned is None and not got.is_complete
    assert got.text == "not finished: 10 items so far" and got.problems == 2


def test_a_job_states_its_number_of_problems(config, records, tmp_path):
    workdir = workdirs.write(tmp_path, config, [each for each in records if each["id"] in "ab"])
    rewrite(workdir / "config.json", num_problems=5)
    got = status(workdir)
    assert got.text == "not finished: 12 of 30 items"
    assert (got.problems, got.summary["problems"], got.summary["complete"]) == (5, 5, False)


def test_a_summary_of_an_earlier_start_is_replaced(config, records, tmp_path):
    early = [each for each in records if each["id"] == "a"]
    workdir = workdirs.write(tmp_path, config, records[:-1])
    workdirs.store.write_json(
        workdir / "summary.json", workdirs.summary_of(config, early, PROBLEMS)
    )
    got = status(workdir)
    assert got.summary["rows"] == workdirs.summary_of(config, records[:-1], PROBLEMS)["rows"]
    assert got.text == "not finished: 29 of 30 items"


def test_a_config_of_another_version_has_what_the_job_wrote(config, records, tmp_path):
    workdir = workdirs.write(tmp_path, config, records[:3])
    held = json.loads((workdir / "config.json").read_text())
    held["config"]["samplers"]["smc"]["unknown"] = 1
    rewrite(workdir / "config.json", config=held["config"], hash=claim.hash_of(held))
    assert status(workdir).summary is None
    early = workdirs.summary_of(config, records[:1], PROBLEMS)
    workdirs.store.write_json(workdir / "summary.json", early)
    assert status(workdir).summary["rows"] == early["rows"]
