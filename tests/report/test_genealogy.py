"""The picture of an ancestry: ends, colours, weights, and text that is not to be trusted."""

import math
import warnings

import numpy as np
import pytest

from jax_power_smc.report import genealogy, style
from tests.report.plotted import HOSTILE, particle, record


def picture(made, label="Power-SMC"):
    (plot,) = genealogy.genealogy([made], {"smc": label})
    return plot


def ends(axes):
    """(x, y, colour, filled) of the marks at the ends, but for the ring."""
    return [
        (
            line.get_xdata()[0],
            line.get_ydata()[0],
            line.get_color(),
            line.get_markerfacecolor() != "white",
        )
        for line in axes.get_lines()
        if line.get_color() != "black"
    ]


def ring(axes):
    (line,) = [line for line in axes.get_lines() if line.get_color() == "black"]
    return line.get_xdata()[0], line.get_ydata()[0]


def words(axes):
    return {text.xy: text.get_text() for text in axes.texts if text.get_text()}


def family(**values):
    """0 and 2 of one family, 1 and 3 of another; of different answers and lengths."""
    return record(
        [
            particle(0, 4, 0.1, parsed="12"),
            particle(1, 5, 0.5, parsed="42", correct=True),
            particle(2, 6, 0.395, parsed="13", finished=False),
            particle(3, 5, 0.005, parsed="42", correct=True),
        ],
        [(1, 2, 0), (3, 3, 1)],
        **values,
    )


def test_every_particle_ends_where_it_ended():
    axes = picture(family(choice=2)).figure.axes[0]
    colours = genealogy._OTHER_COLOURS
    # The right ones on top, the heaviest first; the other family as its heaviest answer.
    assert ends(axes) == [
        (5, 0, genealogy.RIGHT, True),
        (5, 1, genealogy.RIGHT, True),
        (6, 2, colours[0], False),
        (4, 3, colours[1], True),
    ]
    assert words(axes) == {(5, 0): "50 %", (6, 2): "40 %  drawn", (4, 3): "10 %"}
    assert ring(axes) == (6, 2)


def test_lines_lead_from_the_prompt_to_the_ends():
    axes = picture(family()).figure.axes[0]
    (lines,) = [c for c in axes.collections if len(c.get_segments()) == 6]
    drawn = {
        tuple(map(tuple, segment.tolist())): (tuple(colour), float(width))
        for segment, colour, width in zip(
            lines.get_segments(), lines.get_colors(), lines.get_linewidths(), strict=True
        )
    }
    assert set(drawn) == {
        ((0, 0.5), (3, 0.5)),
        ((3, 0.5), (3, 0), (5, 0)),
        ((3, 0.5), (3, 1), (5, 1)),
        ((0, 2.5), (1, 2.5)),
        ((1, 2.5), (1, 2), (6, 2)),
        ((1, 2.5), (1, 3), (4, 3)),
    }
    # Of one answer alone, a stretch has its colour; else it is dark.
    assert drawn[(0, 0.5), (3, 0.5)][0] == drawn[(3, 0.5), (3, 0), (5, 0)][0]
    assert drawn[(0, 2.5), (1, 2.5)][0] != drawn[(1, 2.5), (1, 2), (6, 2)][0]
    widths = [drawn[(0, 0.5), (3, 0.5)][1], drawn[(0, 2.5), (1, 2.5)][1]]
    assert widths[0] > widths[1] > drawn[(3, 0.5), (3, 1), (5, 1)][1]


def test_the_legend_names_the_answers_with_their_weight():
    (legend,) = picture(family()).figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["right: 42 (50 %)", "13 (40 %)", "12 (10 %)"]


def test_answers_beyond_the_heaviest_are_grey():
    weights = np.arange(8, 0, -1) / 36
    made = record(
        [particle(i, 3, float(w), parsed=None if i == 1 else str(i)) for i, w in enumerate(weights)]
    )
    plot = picture(made)
    (legend,) = plot.figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[:2] == ["0 (22 %)", "no answer (19 %)"]
    assert texts[-1] == "4 other answers (28 %)" and len(texts) == 5
    assert [colour for _, _, colour, _ in ends(plot.figure.axes[0])].count(style.GREY) == 4


def test_copies_of_a_sequence_are_one_end_with_their_weight():
    made = record(
        [particle(row, 3, 0.25, parsed="7") for row in range(4)],
        [(4, 1, 0), (4, 2, 0), (5, 3, 2)],
        choice=3,
    )
    axes = picture(made).figure.axes[0]
    assert ends(axes) == [(3, 0, genealogy._OTHER_COLOURS[0], True)]
    assert words(axes) == {(3, 0): "100 %  \N{MULTIPLICATION SIGN}4  drawn"}


def test_particles_of_weight_zero_are_not_drawn():
    made = record([particle(0, 3, 0.5), particle(1, 9, 0.0), particle(2, 4, 0.5)])
    assert [x for x, *_ in ends(picture(made).figure.axes[0])] == [3, 4]


def test_weights_need_not_add_up_to_one():
    made = record([particle(0, 3, 0.3), particle(1, 4, 0.1)])
    assert set(words(picture(made).figure.axes[0]).values()) == {"75 %  drawn", "25 %"}


@pytest.mark.parametrize(
    "made",
    [
        record([particle(0, 3, 1.0)]),
        record([]),
        record([particle(0, 3, 0.0), particle(1, 3, 0.0)]),
        family(failure="it broke."),
    ],
)
def test_where_there_is_no_ancestry_there_is_nothing(made):
    assert genealogy.genealogy([made], {"smc": "Power-SMC"}) == []


def test_pictures_have_names_of_their_own_that_are_fit_for_files():
    made = [family(run=run, id=name) for run in ("a", "b/../$") for name in ("x", "y", "\ud800")]
    plots = genealogy.genealogy(made, {"a": "A"})
    names = [plot.name for plot in plots]
    assert len(set(names)) == 6
    assert all(name.isascii() and name.replace("-", "").isalnum() for name in names)
    assert plots[0].title == "A: ancestry of the particles"


def test_seeds_are_told_apart():
    titles = [p.title for p in genealogy.genealogy([family(), family(seed=7)], {})]
    assert titles == [f"smc, seed {seed}: ancestry of the particles" for seed in (0, 7)]


@pytest.mark.parametrize("start", range(0, len(HOSTILE), 4))
def test_no_answer_is_read_as_a_formula(start):
    texts = HOSTILE[start : start + 4]
    made = record(
        [particle(i, 3, 0.25, parsed=text, correct=i == 0) for i, text in enumerate(texts)]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot = picture(made, HOSTILE[0])
        assert style.to_png(plot.figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("num", [8, 16, 64])
def test_what_is_written_at_the_ends_hides_nothing(num):
    rng = np.random.default_rng(num)
    lengths = rng.integers(5, 40, num)
    moves = []
    for step in (2, 9, 17):
        moves += [(step, row, int(rng.integers(0, num // 3))) for row in range(num // 3, num)]
    made = record(
        [
            particle(i, int(n), 1 / num, parsed=str(i % 5), correct=i % 5 == 2)
            for i, n in enumerate(lengths)
        ],
        moves,
    )
    figure = picture(made).figure
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(boxes) > num // 3
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    whole = figure.bbox
    assert all(whole.x0 <= box.x0 and box.x1 <= whole.x1 for box in boxes)
    assert all(whole.y0 <= box.y0 and box.y1 <= whole.y1 for box in boxes)


def test_of_very_many_ends_the_heaviest_are_drawn():
    num = genealogy.MOST_LEAVES + 20
    weights = np.arange(1, num + 1)
    made = record([particle(i, 3, float(w)) for i, w in enumerate(weights)], choice=num - 1)
    plot = picture(made)
    assert len(ends(plot.figure.axes[0])) == genealogy.MOST_LEAVES
    assert "20 lightest" in plot.caption
    assert math.isclose(ring(plot.figure.axes[0])[1], 0)
