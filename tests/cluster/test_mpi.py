"""launch/mpi.sh with a real mpirun; JAX finds out from it who takes part."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.cli import pods
from tests.cli.command import ROOT

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not shutil.which("mpirun"), reason="mpirun is not installed"),
]


def test_mpirun_starts_processes_that_find_each_other(evaluations, alone, tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    _, _, _, *arguments = evaluations.command(tmp_path / "new", runs=pods.FEW)
    done = subprocess.run(
        [ROOT / "launch/mpi.sh", tmp_path / "hosts", "2", *arguments],
        cwd=ROOT,
        env=pods.environment_of(devices=1)
        # Where tests run in a container they are often root's.
        | {"PYTHON": sys.executable, "MPIRUN_FLAGS": "--oversubscribe --allow-run-as-root"},
        capture_output=True,
        text=True,
        timeout=pods.HANGS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Every answer: ") == 1
    pods.assert_same(tmp_path / "new", alone, pods.FEW)
    assert pods.shards(tmp_path / "new") == ["records-00000.jsonl", "records-00001.jsonl"]


@pytest.mark.pods
def test_bad_input_is_said_and_ends_the_job(evaluations, tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    _, _, _, *arguments = evaluations.command(tmp_path / "new", alpha=-1.0)
    done = subprocess.run(
        [ROOT / "launch/mpi.sh", tmp_path / "hosts", "2", *arguments],
        cwd=ROOT,
        env=os.environ
        | {"PYTHON": sys.executable, "MPIRUN_FLAGS": "--oversubscribe --allow-run-as-root"},
        capture_output=True,
        text=True,
        timeout=pods.HANGS,
    )
    assert done.returncode != 0
    assert "error: config.alpha is -1" in done.stderr
    assert not (tmp_path / "new").exists()
