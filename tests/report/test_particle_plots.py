"""Lengths and diversity of particles, against shares worked out by hand."""

import numpy as np
import pytest

from jax_power_smc.report import particle_plots
from tests.report.plotted import ancestral, item, report, smc


def sized(run="smc", lengths=(), weights=(), **values):
    return item(run, lengths=np.array(lengths), weights=np.array(weights, float), **values)


def test_lengths_count_by_weight_and_every_problem_the_same():
    items = [sized(lengths=[1, 3], weights=[0.25, 0.75]), sized(lengths=[3], weights=[1.0])]
    shares = particle_plots.length_histogram(items, np.array([0, 2, 4]))
    assert shares == pytest.approx([0.125, 0.875])


@pytest.mark.parametrize("longest", [0, 1, 29, 30, 31, 2048])
def test_bins_are_whole_tokens_and_hold_the_longest(longest):
    edges = particle_plots.length_edges(longest)
    assert edges.dtype.kind == "i" and edges[-1] > longest and len(edges) <= 33
    assert np.histogram([0, longest], edges)[0].sum() == 2


def test_histograms_share_their_bins_and_name_the_median():
    items = [
        sized(lengths=[2, 9], weights=[0.9, 0.1]),
        sized("t1", lengths=[40], weights=[1.0], unfinished=0.5),
    ]
    (plot,) = particle_plots.lengths(report({"t1": ancestral(), "smc": smc(2)}, items))
    first, second = plot.figure.axes
    assert [axes.get_title() for axes in (first, second)] == ["t1", "smc"]
    assert first.texts[0].get_text() == "median 40\n50 % at the limit"
    assert second.texts[0].get_text() == "median 2"
    (filled, _) = second.patches
    values, edges, _ = filled.get_data()
    assert values.sum() == pytest.approx(100) and edges[-1] > 40
    assert values[2 // (edges[1] - edges[0])] == pytest.approx(90)


def test_the_median_is_by_weight():
    items = [sized(lengths=[5, 1, 3], weights=[0.2, 0.5, 0.3])]
    assert particle_plots._weighted_median(items) == 1
    items = [sized(lengths=[5, 1, 3], weights=[0.2, 0.4, 0.4])]
    assert particle_plots._weighted_median(items) == 3


@pytest.mark.parametrize(
    ("coalescence", "lengths", "expected"), [(0, [4, 2], 0), (1, [4, 2], 0.25), (384, [4], 1)]
)
def test_the_common_beginning_is_a_share_of_the_longest(coalescence, lengths, expected):
    made = sized(
        lengths=lengths, weights=[1 / len(lengths)] * len(lengths), coalescence=coalescence
    )
    assert particle_plots.common_share(made) == expected


def test_boxes_are_quartiles_of_the_problems():
    items = [item("smc", str(i), distinct_roots=i + 1, coalescence=i % 2) for i in range(5)]
    data = report({"t1": ancestral(), "smc": smc(8)}, [*items, item("t1")])
    (plot,) = particle_plots.diversity(data)
    left, right = plot.figure.axes
    (box,) = left.patches
    assert (box.get_x(), box.get_width()) == (2, 2)
    (median,) = left.get_lines()
    assert median.get_xdata().tolist() == [3]
    assert right.get_lines()[0].get_xdata().tolist() == [0]
    # A single sample is no set of particles.
    assert [label.get_text() for label in left.get_yticklabels()] == ["smc"]


def test_without_particles_there_is_nothing():
    broken = [item("smc", failed=True), sized()]
    data = report({"smc": smc(8)}, broken)
    assert particle_plots.lengths(data) == particle_plots.diversity(data) == []
    single = report({"t1": ancestral()}, [item("t1")])
    assert particle_plots.diversity(single) == [] and len(particle_plots.lengths(single)) == 1
