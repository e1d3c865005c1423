"""Degenerate outputs, failures, and what was not graded."""

import numpy as np
import pytest

from jax_power_smc.report import quality_flags
from jax_power_smc.report.load import read_report
from tests.report import workdirs

CONFIG = workdirs.default_config(2)
PLAIN, MANY = (workdirs.runs_of(CONFIG)[i] for i in (0, 2))


@pytest.fixture
def make(tmp_path):
    """The data of a job with a record for every tuple of changes to the particles of a run."""
    rng = np.random.default_rng(0)

    def made(items):
        records = []
        for name, (changes, own) in items.items():
            parts = [workdirs.particle(rng, row, 5, **c) for row, c in enumerate(changes)]
            records.append(workdirs.record(rng, MANY, 0, name, particles=parts) | own)
        return read_report(workdirs.write(tmp_path, CONFIG, records))

    return made


def test_shares_are_over_the_items_that_worked(make):
    data = make(
        {
            "fine": (({}, {}), {}),
            "half": (({"loop": True, "finished": False}, {}), {}),
            "short": (({"very_short": True}, {"very_short": True}), {}),
            "capped": (({"finished": False}, {"finished": False}), {}),
            "dead": (({"loop": True}, {"loop": True}), {"failure": "no mass"}),
        }
    )
    (row,) = quality_flags.degenerate(data)
    assert (row.run, row.label, row.items) == ("many", MANY.label, 4)
    assert (row.loops, row.very_short, row.unfinished) == pytest.approx((0.125, 0.25, 0.375))
    assert [(item.problem, item.share) for item in row.worst] == [
        ("short", pytest.approx(1)),
        ("capped", pytest.approx(1)),
        ("half", pytest.approx(0.5)),
    ]


def test_only_some_items_are_named(make):
    data = make(
        {f"{i}": (({"loop": True}, {}), {}) for i in range(quality_flags.MOST_EXAMPLES + 5)}
    )
    assert len(quality_flags.degenerate(data)[0].worst) == quality_flags.MOST_EXAMPLES


def test_every_sentence_is_there_once(make):
    slow, bad = {"note": "took too long"}, {"note": "no number"}
    number = quality_flags.MOST_EXAMPLES + 1
    data = make(
        {f"slow{i}": ((slow, slow), {}) for i in range(number)}
        | {"both": ((slow, bad), {}), "dead": (({}, {}), {"failure": "no mass"})}
    )
    first, second = quality_flags.ungraded(data)
    assert (first.sentence, first.items, second.sentence) == (
        "took too long",
        number + 1,
        bad["note"],
    )
    assert first.examples == [(f"slow{i}", 0) for i in range(quality_flags.MOST_EXAMPLES)]
    assert second.examples == [("both", 0)]
    (failure,) = quality_flags.failures(data)
    assert (failure.run, failure.sentence, failure.examples) == ("many", "no mass", [("dead", 0)])


def test_a_result_without_particles_failed(make):
    data = make({"empty": (({}, {}), {"particles": [], "choice": None})})
    assert quality_flags.failures(data)[0].sentence == "no particle has any weight."
    assert quality_flags.degenerate(data) == []
