"""The summary by run, and its comparisons by pair."""

import numpy as np
import pytest

from jax_power_smc.report.summary_rows import Estimate, comparisons, run_summaries
from tests.report import workdirs

PROBLEMS = tuple("abcd")


@pytest.fixture(scope="module")
def summary():
    config = workdirs.default_config()
    config.samplers.warm = workdirs.job_config.entry("ancestral", temperature=0.7)
    config.samplers.greedy = workdirs.job_config.entry("ancestral", temperature=0.0)
    records = workdirs.every_item(np.random.default_rng(0), config, PROBLEMS)
    return workdirs.summary_of(config, records, PROBLEMS)


def test_a_row_has_all_answers_of_a_run(summary):
    rows = {row.figures["run"]: row for row in run_summaries(summary)}
    assert list(rows) == ["plain", "warm", "low", "greedy", "many", "mh", "smc", "swor"]
    for row in summary["rows"]:
        got = rows[row["run"]]
        estimate = got.accuracy[row["answer"]]
        assert estimate.value == row["accuracy"]
        assert estimate.ends == pytest.approx(row["ci95"], abs=1e-6)
        assert got.figures["num_particles"] == row["num_particles"]
    assert list(rows["plain"].accuracy) == list(rows["mh"].accuracy) == ["draw"]
    assert rows["low"].pass_at_n is None
    last = next(r for r in summary["pass_at_k"] if (r["run"], r["k"]) == ("smc", 4))
    assert rows["smc"].pass_at_n.value == last["value"] and rows["smc"].label == "Power-SMC"
    assert [name for name, row in rows.items() if row.is_plain] == ["plain"]


def test_comparisons_are_by_pair(summary):
    got = comparisons(summary)
    assert got.methods == ["Power-SMC", "without replacement"]
    assert len(got.cells) == len(summary["comparisons"])
    for pair in summary["comparisons"]:
        cell = got.cells[pair["method"], pair["against"]]
        assert (cell.value, cell.problems) == (pair["difference"], 4)
    assert [name for name in got.against if name not in {a for _, a in got.cells}] == []


def test_minor_comparisons_can_be_left_out(summary):
    assert comparisons(summary, main_only=True).against == [
        "temperature 1",
        "temperature 1/4",
        "4 samples at temperature 1, vote",
        "4 samples at temperature 1, best by log p",
        "Metropolis-Hastings",
        "Power-SMC",
    ]


def test_other_temperatures_are_kept_if_there_are_no_better_ones():
    config = workdirs.default_config()
    for name in ("plain", "low", "many", "mh", "swor"):
        del config.samplers[name]
    config.samplers.warm = workdirs.job_config.entry("ancestral", temperature=0.7)
    records = workdirs.every_item(np.random.default_rng(0), config, PROBLEMS)
    made = workdirs.summary_of(config, records, PROBLEMS)
    assert comparisons(made, main_only=True).against == ["temperature 0.7"]


@pytest.mark.parametrize(
    ("ends", "clear"), [((0.1, 0.2), True), ((-0.2, -0.1), True), ((0.0, 0.2), False)]
)
def test_an_interval_that_holds_0_is_not_clear(ends, clear):
    assert Estimate(0.1, ends).is_clear is clear
