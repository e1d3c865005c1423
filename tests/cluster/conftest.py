"""A model, and the records of a single process, for runs under cluster managers."""

import pytest

from tests.launchers import pods


def pytest_collection_modifyitems(items):
    """All of them are for ``make test-cluster`` only."""
    for item in items:
        if "cluster" in item.path.parent.name:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def evaluations(tmp_path_factory):
    return pods.Pods(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="session")
def alone(evaluations, tmp_path_factory):
    """The workdir of a single process."""
    workdir = tmp_path_factory.mktemp("alone") / "new"
    evaluations.alone(workdir, runs=pods.FEW)
    return workdir
