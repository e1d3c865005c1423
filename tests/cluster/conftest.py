"""A model, and the records of a single process, for runs under cluster managers."""

import pytest

from tests.cli import pods


@pytest.fixture(scope="session")
def evaluations(tmp_path_factory):
    return pods.Pods(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="session")
def alone(evaluations, tmp_path_factory):
    """The workdir of a single process."""
    workdir = tmp_path_factory.mktemp("alone") / "new"
    evaluations.alone(workdir, runs=pods.FEW)
    return workdir
