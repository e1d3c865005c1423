"""What tests of the engine share."""

import pytest

from jax_power_smc.engine import slot_plan
from tests.engine.integrity import integrity

__all__ = ["integrity"]


@pytest.fixture
def growing():
    """For tests in which the number of rows follows the load, as it does on a CPU."""


@pytest.fixture(autouse=True)
def one_number_of_rows(request, monkeypatch):
    """Tables have all their rows from the beginning: every size is a set of programs to compile."""
    if "growing" not in request.fixturenames:
        monkeypatch.setattr(slot_plan, "row_ladder", lambda most: (most,))
