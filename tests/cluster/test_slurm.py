"""launch/slurm.sbatch with a real SLURM; JAX finds out from it who takes part."""

import sys
import time

import pytest

from tests.cli import pods
from tests.cli.command import ROOT
from tests.cluster import slurm

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        bool(slurm.missing()), reason=f"not installed: {', '.join(slurm.missing())}"
    ),
]


@pytest.fixture(scope="module")
def cluster():
    with slurm.cluster() as running:
        yield running


@pytest.fixture
def submit(cluster, evaluations, tmp_path):
    """A function that submits the evaluation and returns the number of the job."""

    def submit(workdir, **values):
        _, _, _, *arguments = evaluations.command(workdir, runs=pods.FEW, **values)
        options = ["--nodes=1", "--ntasks-per-node=2", f"--output={tmp_path / 'said'}"]
        return cluster.call(
            *("sbatch", "--parsable", *options, "launch/slurm.sbatch", *arguments),
            cwd=ROOT,
            environment=pods.environment_of(devices=1)
            | cluster.environment
            | {"PYTHON": sys.executable},
        ).strip()

    return submit


def test_a_job_is_done_by_tasks_that_find_each_other(cluster, submit, alone, tmp_path):
    job = submit(tmp_path / "new")
    assert cluster.wait(job, pods.HANGS) == "COMPLETED", (tmp_path / "said").read_text()
    said = (tmp_path / "said").read_text()
    assert said.count("Every answer: ") == 1 and "(process 0 of 2)" in said
    assert pods.shards(tmp_path / "new") == ["records-00000.jsonl", "records-00001.jsonl"]
    pods.assert_same(tmp_path / "new", alone, pods.FEW)


@pytest.mark.pods
def test_a_job_that_is_terminated_stops_and_the_next_one_goes_on(cluster, submit, alone, tmp_path):
    total = pods.LIMIT * len(pods.FEW)
    job = submit(tmp_path / "new")
    deadline = time.monotonic() + pods.HANGS
    while pods.written(tmp_path / "new") < 2:
        assert cluster.state(job) in ("PENDING", "RUNNING"), (tmp_path / "said").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # As before the time limit: to all processes of all tasks, and not to the script.
    cluster.call("scancel", "--signal=TERM", job)
    assert cluster.wait(job, pods.HANGS) == "COMPLETED", (tmp_path / "said").read_text()
    count = pods.written(tmp_path / "new")
    assert 2 <= count < total
    sentence = f"Stopped with {count} of {total} items finished; the same command resumes it."
    assert sentence in (tmp_path / "said").read_text()

    job = submit(tmp_path / "new")
    assert cluster.wait(job, pods.HANGS) == "COMPLETED", (tmp_path / "said").read_text()
    assert f"{count} of {total} items were finished" in (tmp_path / "said").read_text()
    pods.assert_same(tmp_path / "new", alone, pods.FEW)


@pytest.mark.pods
def test_bad_input_fails_the_job_at_once(cluster, submit, tmp_path):
    job = submit(tmp_path / "new", alpha=-1.0)
    assert cluster.wait(job, pods.HANGS) == "FAILED"
    assert (tmp_path / "said").read_text().count("error: config.alpha is -1") == 2
