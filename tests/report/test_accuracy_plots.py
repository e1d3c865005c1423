"""Accuracy against time, and pass@k: what is drawn, and where."""

import numpy as np
import pytest

from jax_power_smc.report import accuracy_plots, style
from tests.report.plotted import HOSTILE, ancestral, report, row, smc, summary

SAMPLERS = {"t1": ancestral(), "smc": smc(4), "mh": {"kind": "mh", "num_chains": 1}}
ROWS = (
    row("t1", 0.2, 0.5, multiple=1.0),
    row("smc", 0.6, 2.0, multiple=4.0),
    row("smc", 0.7, 2.0, "vote", multiple=4.0),
    row("smc", 0.5, 2.0, "best", multiple=4.0),
    row("mh", 0.4, 8.0, multiple=16.0),
)


def made(rows=ROWS, pass_at_k=(), samplers=SAMPLERS, **values):
    return report(samplers, [], summary=summary(rows, pass_at_k), **values)


def marks(axes):
    """(x, y, marker, colour, filled) of the single marks."""
    return [
        (
            float(line.get_xdata()[0]),
            round(float(line.get_ydata()[0]), 6),
            line.get_marker(),
            line.get_color(),
            line.get_markerfacecolor() != "white",
        )
        for line in axes.get_lines()
        if len(line.get_xdata()) == 1
    ]


def test_every_answer_has_a_mark_at_its_time_and_accuracy():
    data = made()
    (plot,) = accuracy_plots.accuracy(data)
    axes = plot.figure.axes[0]
    look = style.run_styles(data)
    smc_look = look["smc"]
    assert marks(axes) == [
        (0.5, 20.0, look["t1"].marker, look["t1"].colour, True),
        (2.0, 60.0, smc_look.marker, smc_look.colour, True),
        (2.0, 70.0, "o", smc_look.colour, False),
        (2.0, 50.0, "D", smc_look.colour, False),
        (8.0, 40.0, look["mh"].marker, look["mh"].colour, True),
    ]
    bars = [c.get_segments()[0][:, 1].tolist() for c in axes.collections]
    assert np.allclose(bars, [[10, 30], [50, 70], [30, 50]])
    (legend,) = plot.figure.legends
    handles = dict(
        zip((t.get_text() for t in legend.get_texts()), legend.legend_handles, strict=True)
    )
    for run in SAMPLERS:
        drawn = handles[run]
        assert (drawn.get_marker(), drawn.get_color()) == (look[run].marker, look[run].colour)
    assert list(handles)[3:] == ["the draw, with 95 % interval", "weighted vote", "highest log p"]


def test_the_upper_axis_counts_in_plain_decoding():
    (plot,) = accuracy_plots.accuracy(made())
    axes = plot.figure.axes[0]
    (top,) = axes.child_axes
    plot.figure.draw_without_rendering()
    assert np.allclose(top.get_xlim(), np.array(axes.get_xlim()) / 0.5)
    assert "multiples" in plot.caption


def test_without_plain_decoding_there_is_no_upper_axis():
    rows = [x | {"multiple": None} for x in ROWS]
    (plot,) = accuracy_plots.accuracy(made(rows))
    assert plot.figure.axes[0].child_axes == [] and "multiples" not in plot.caption


def test_a_single_run_has_no_open_marks_in_its_legend():
    (plot,) = accuracy_plots.accuracy(made([row("t1", 1.0, 0.5)], samplers={"t1": ancestral()}))
    (legend,) = plot.figure.legends
    assert len(legend.get_texts()) == 2 and "open" not in plot.caption


def test_without_a_summary_there_is_nothing():
    data = report(SAMPLERS, [])
    assert accuracy_plots.accuracy(data) == accuracy_plots.pass_at_k(data) == []
    assert accuracy_plots.accuracy(made([])) == []


def test_no_mark_hides_another_at_the_same_place():
    samplers = {f"run{i}": smc(8) for i in range(4)}
    rows = [row(run, 0.5, 1.0 + (i == 3)) for i, run in enumerate(samplers)]
    (plot,) = accuracy_plots.accuracy(made(rows, samplers=samplers))
    sizes = [line.get_markersize() for line in plot.figure.axes[0].get_lines()]
    assert sizes[0] > sizes[1] > sizes[2] == sizes[3]
    assert "coincide" in plot.caption


def test_the_legend_of_many_runs_is_inside_the_figure():
    samplers = {f"run{i}": smc(8) for i in range(12)}
    label = {run: f"{run} with a name that is long" for run in samplers}
    rows = [row(run, float(i % 2), 1 + 0.2 * i) for i, run in enumerate(samplers)]
    (plot,) = accuracy_plots.accuracy(made(rows, samplers=samplers, labels=label))
    plot.figure.draw_without_rendering()
    (legend,) = plot.figure.legends
    box, axes_box = legend.get_window_extent(), plot.figure.axes[0].get_tightbbox()
    assert box.x0 >= 0 and box.x1 <= plot.figure.bbox.x1 and box.y0 >= 0
    assert box.y1 <= axes_box.y0 and axes_box.height > 300
    texts = [text.get_window_extent() for text in legend.get_texts()]
    assert not any(texts[i].overlaps(texts[j]) for i in range(len(texts)) for j in range(i))


def test_hostile_labels_are_drawn():
    samplers = {f"run{i}": smc(8) for i in range(len(HOSTILE))}
    rows = [row(run, 0.1, 1.0 + i) for i, run in enumerate(samplers)]
    label = dict(zip(samplers, HOSTILE, strict=True))
    passed = [{"run": "run0", "k": 1, "value": 0.5, "ci95": [0.4, 0.6]}]
    data = made(rows, passed, samplers, labels=label)
    for plot in accuracy_plots.accuracy(data) + accuracy_plots.pass_at_k(data):
        assert style.to_png(plot.figure).startswith(b"\x89PNG")


def test_pass_at_k_is_a_curve_with_intervals_for_each_run():
    passed = [
        {"run": "smc", "k": k, "value": value, "ci95": [value - 0.1, value + 0.2]}
        for k, value in ((4, 0.7), (1, 0.3), (2, 0.5))
    ]
    (plot,) = accuracy_plots.pass_at_k(made(pass_at_k=passed))
    (axes,) = plot.figure.axes
    (container,) = axes.containers
    line, _, (bars,) = container
    assert line.get_xdata().tolist() == [1, 2, 4]
    assert line.get_ydata() == pytest.approx([30, 50, 70])
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert np.allclose(ends, [[20, 50], [40, 70], [60, 90]])
    assert axes.get_xticks().tolist() == [1, 2, 4]
