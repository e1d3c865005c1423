"""Effective sample size and forks along the steps, against quartiles worked out by hand."""

import numpy as np
import pytest

from jax_power_smc.report import step_plots, style
from tests.report.plotted import ancestral, item, report, smc, swor


def curve(*ess, forks=None, **values):
    forks = [0] * len(ess) if forks is None else forks
    return item("smc", ess=np.array(ess, np.float32), forks=np.array(forks, np.int32), **values)


ITEMS = [curve(4, 2, forks=[0, 2]), curve(4, 4, 1), curve(2, 1, 3, 4, forks=[1, 0, 0, 4])]


def test_quartiles_are_over_the_items_that_still_run():
    course = step_plots.step_curves(ITEMS, 4, width=1)
    assert course.steps.tolist() == [0, 1, 2, 3]
    assert course.running == pytest.approx([1, 1, 2 / 3, 1 / 3])
    assert course.ess[1] == pytest.approx([1, 0.5, 0.5, 1])
    assert course.ess[:, 0] == pytest.approx([0.75, 1, 1])
    assert course.ess[:, 2] == pytest.approx([0.375, 0.5, 0.625])
    assert course.forks[1] == pytest.approx([0, 0, 0, 1])


def test_steps_are_taken_together_item_by_item():
    course = step_plots.step_curves(ITEMS, 4, width=2)
    assert course.steps.tolist() == [0.5, 2.5]
    assert course.running == pytest.approx([1, 2 / 3])
    # The means of the items are 3, 4, 1.5 and then 1 (one step alone) and 3.5.
    assert course.ess[1] == pytest.approx([0.75, 2.25 / 4])
    assert course.forks[2] == pytest.approx([0.1875, 0.375])


def test_what_is_drawn_are_the_curves():
    data = report({"t1": ancestral(), "smc": smc(4)}, [*ITEMS, item("t1")])
    (plot,) = step_plots.steps(data)
    (axes,) = [a for a in plot.figure.axes if a.get_visible()]
    assert axes.get_title() == "smc"
    running, ess, forks = (line.get_ydata() for line in axes.get_lines())
    course = step_plots.step_curves(ITEMS, 4, 1)
    assert running == pytest.approx(course.running)
    assert ess == pytest.approx(course.ess[1]) and forks == pytest.approx(course.forks[1])
    assert axes.get_lines()[1].get_color() == style.run_styles(data)["smc"].colour


def test_long_runs_are_drawn_with_few_points():
    long = [curve(*np.full(1050, 3.0)), curve(*np.full(10, 1.0))]
    (plot,) = step_plots.steps(report({"smc": smc(4)}, long))
    line = plot.figure.axes[0].get_lines()[1]
    assert len(line.get_xdata()) <= step_plots.MOST_BINS
    assert line.get_xdata()[-1] < 1050 and "11 steps" in plot.caption


def test_more_than_n_sequences_are_on_the_axis():
    pool = item("swor", ess=np.array([1, 7.5], np.float32), forks=np.array([0, 0]))
    (plot,) = step_plots.steps(report({"swor": swor(4)}, [pool]))
    assert plot.figure.axes[0].get_ylim()[1] > 7.5 / 4 and "exceed N" in plot.caption


def test_items_that_failed_or_never_began_are_left_out():
    broken = [curve(4, failed=True), curve()]
    samplers = {"smc": smc(4)}
    assert step_plots.steps(report(samplers, broken)) == []
    (plot,) = step_plots.steps(report(samplers, [*broken, curve(4, 2)]))
    assert plot.figure.axes[0].get_lines()[1].get_ydata() == pytest.approx([1, 0.5])


def test_independent_samples_have_no_panel():
    assert step_plots.steps(report({"t1": ancestral(8)}, [item("t1")])) == []


@pytest.mark.parametrize(("runs", "columns"), [(1, 1), (3, 3), (5, 3), (7, 4), (9, 3), (12, 4)])
def test_panels_leave_few_empty_places(runs, columns):
    samplers = {f"run{i}": smc(4) for i in range(runs)}
    (plot,) = step_plots.steps(report(samplers, [item(run) for run in samplers]))
    visible = [axes for axes in plot.figure.axes if axes.get_visible()]
    assert len(visible) == runs
    assert visible[0].get_gridspec().ncols == columns
