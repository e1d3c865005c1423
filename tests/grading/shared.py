"""Data that is not in the repository; tests that need it are skipped where it is absent."""

import json

import pytest

from tests.paths import SHARED

DATA = SHARED / "data"


def needs(name):
    """The mark for tests that read a file of the shared data."""
    return pytest.mark.skipif(not (DATA / name).is_file(), reason=f"{SHARED}/data/{name} is absent")


def read_lines(name):
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def math_answers():
    """The reference answers of MATH500."""
    return [each["answer"] for each in json.loads((DATA / "MATH500.json").read_text())]
