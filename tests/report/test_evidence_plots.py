"""The gap of log Z: its values by hand, which problems count, and which runs one line joins."""

import numpy as np
import pytest

from jax_power_smc.report import evidence_plots, style
from tests.report.plotted import ancestral, item, report, smc, swor

SAMPLERS = {"t1": ancestral(), "smc4": smc(4), "smc16": smc(16), "swor": swor(4)}


def items(values):
    """values: (run, problem, seed) -> log Z_hat."""
    return [
        item(run, name, seed, log_evidence=value) for (run, name, seed), value in values.items()
    ]


ONE_SEED = {
    ("t1", "a", 0): None,
    ("smc4", "a", 0): -10.0,
    ("smc16", "a", 0): -8.0,
    ("swor", "a", 0): -7.0,
    ("smc4", "b", 0): -5.0,
    ("smc16", "b", 0): -4.0,
    ("swor", "b", 0): -6.0,
}


def points(axes):
    """run's marker -> (N, value) of the single marks."""
    return {
        line.get_marker(): (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in axes.get_lines()
        if len(line.get_xdata()) == 1 and line.get_marker() != "None"
    }


def test_the_gap_is_what_is_missing_to_the_highest_of_the_problem():
    known = evidence_plots.evidence(report(SAMPLERS, items(ONE_SEED)))
    assert (known.problems, known.left_out) == (2, 0)
    gaps = {run: gap[:, 0].tolist() for run, gap in known.gaps().items()}
    assert gaps == {"smc4": [3, 1], "smc16": [1, 0], "swor": [0, 2]}
    assert known.deviations() == {}


def test_the_means_are_drawn_against_n():
    data = report(SAMPLERS, items(ONE_SEED))
    (plot,) = evidence_plots.gap(data)
    (axes,) = plot.figure.axes
    styles = style.run_styles(data)
    drawn = points(axes)
    assert drawn[styles["smc4"].marker] == (4, 2.0)
    assert drawn[styles["smc16"].marker] == (16, 0.5)
    assert drawn[styles["swor"].marker] == (4, 1.0)
    joined = [line for line in axes.get_lines() if len(line.get_xdata()) == 2]
    assert [line.get_ydata().tolist() for line in joined] == [[2.0, 0.5]]
    (legend,) = plot.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["Power-SMC", "swor"]
    assert "2 problems" in plot.caption and "lower bound" in plot.caption


def test_only_problems_that_all_runs_with_evidence_have_count():
    values = ONE_SEED | {("smc4", "c", 0): -1.0, ("smc16", "c", 0): None, ("swor", "c", 0): -1.0}
    values |= {("smc4", "d", 0): -1.0}
    data = report(SAMPLERS, items(values))
    known = evidence_plots.evidence(data)
    assert (known.problems, known.left_out) == (2, 2)
    (plot,) = evidence_plots.gap(data)
    assert "2 problems without an estimate from every run are left out" in plot.caption


def test_an_item_that_failed_has_no_evidence():
    broken = [item("smc4", "b", log_evidence=-5.0, failed=True)]
    values = {key: value for key, value in ONE_SEED.items() if key[:2] != ("smc4", "b")}
    known = evidence_plots.evidence(report(SAMPLERS, items(values) + broken))
    assert known.problems == 1 and known.gaps()["smc4"].tolist() == [[3.0]]


def test_with_seeds_the_highest_is_over_all_and_their_spread_is_drawn():
    values = {
        ("smc4", "a", 0): -10.0,
        ("smc4", "a", 1): -6.0,
        ("smc16", "a", 0): -8.0,
        ("smc16", "a", 1): -8.0,
        ("smc4", "b", 0): -1.0,  # of seed 1 there is nothing
        ("smc16", "b", 0): -1.0,
        ("smc16", "b", 1): -1.0,
    }
    data = report(SAMPLERS, items(values))
    known = evidence_plots.evidence(data)
    assert known.problems == 1
    assert known.gaps()["smc4"].tolist() == [[4.0, 0.0]]
    assert known.deviations()["smc4"] == pytest.approx([np.std([-10, -6], ddof=1)])
    (plot,) = evidence_plots.gap(data)
    left, right = plot.figure.axes
    marker = style.run_styles(data)["smc4"].marker
    assert points(left)[marker] == (4, 2.0)
    assert points(right)[marker] == (4, pytest.approx(8**0.5))
    assert "deviation" in plot.caption


@pytest.mark.parametrize(
    "values",
    [
        {},
        {("t1", "a", 0): None},
        {("smc4", "a", 0): -1.0, ("swor", "b", 0): -1.0},
        {("smc4", "a", 0): -1.0, ("smc4", "b", 0): -1.0},
    ],
)
def test_without_anything_to_compare_there_is_nothing(values):
    assert evidence_plots.gap(report(SAMPLERS, items(values))) == []


def test_runs_that_differ_in_n_alone_are_one_line():
    samplers = {
        "large": smc(16),
        "small": smc(4),
        "ramped": smc(4, ramp_tokens=50),
        "ramped8": smc(8, ramp_tokens=50),
        "seldom": smc(4, ess_threshold=0.1),
        "seldom8": smc(8, ess_threshold=0.1, label="$mine"),
        "swor": swor(4),
    }
    data = report(samplers, [], {run: f"the {run}" for run in samplers})
    assert evidence_plots.series(data, list(samplers)) == {
        "Power-SMC, ess_threshold 0.5": ["small", "large"],
        "Power-SMC, ramp 50, ess_threshold 0.5": ["ramped", "ramped8"],
        "Power-SMC, ess_threshold 0.1": ["seldom", "seldom8"],
        "the swor": ["swor"],
    }


def test_values_that_span_much_are_on_a_logarithmic_axis():
    for smallest, scale in ((-9.0, "linear"), (-0.1, "log")):
        values = {
            ("smc4", "a", 0): -10.0,
            ("smc16", "a", 0): smallest,
            ("smc4", "b", 0): 0.0,
            ("smc16", "b", 0): -0.01,
            ("swor", "a", 0): -5.0,
            ("swor", "b", 0): -5.0,
        }
        (plot,) = evidence_plots.gap(report(SAMPLERS, items(values)))
        assert plot.figure.axes[0].get_yscale() == scale
