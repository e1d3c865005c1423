"""Runs that several test modules read."""

import pytest

from tests.results.runs import SAMPLERS, first, runs_of, widened


@pytest.fixture(params=list(SAMPLERS))
def copies(request):
    return runs_of(request.param)


@pytest.fixture(params=list(SAMPLERS))
def few(request):
    """Three runs of three prompts; the last has one more particle, of weight zero."""
    runs = [first(run, 3) for run in runs_of(request.param)[:3]]
    return [*runs[:2], widened(runs[2])]
