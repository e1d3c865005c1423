"""Text that is drawn literally, distinct styles of runs, and the PNG."""

import io
import warnings

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from jax_power_smc.report import style
from tests.report.plotted import HOSTILE, ancestral, report, smc


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_is_drawn_without_a_warning(text):
    shown = style.printable(text)
    assert len(shown) <= style.LABEL and "\n" not in shown
    figure = style.new_figure(1.0)
    axes = figure.add_subplot()
    axes.set_title(shown)
    axes.plot([0, 1], label=shown)
    axes.set_xticks([0, 1], [shown, shown])
    style.legend_below(figure, axes.get_lines(), [shown])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        style.to_png(style.finish("a", "b", "c", figure).figure)
    assert not any(drawn.get_parse_math() for drawn in figure.findobj(Text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text, 3.5 %", "plain text, 3.5 %"),
        ("$x_1$", "$x_1$"),
        ("  two\n lines\t", "two lines"),
        ("a\x00b", r"a\u0000b"),
        ("\ud800", r"\ud800"),
        ("a\u202eb", r"a\u202eb"),
        ("\u4e2d", r"\u4e2d"),
        ("\N{NAZAR AMULET}", r"\U0001f9ff"),
        ("e\u0301", "\u00e9"),
        ("\u00fc \u03b1 \u2264", "\u00fc \u03b1 \u2264"),
        (12, "12"),
    ],
)
def test_text_is_made_printable(text, expected):
    assert style.printable(text) == expected


def test_long_text_is_cut_in_the_middle_and_never_within_a_sign():
    assert style.printable("a" * 100 + "b" * 100, 10) == "aaaaaa\N{HORIZONTAL ELLIPSIS}bbb"
    assert style.printable("0123456789", 10) == "0123456789"
    cut = style.printable("\u4e2d" * 50, 20)
    assert cut == r"\u4e2d\u4e2d" + "\N{HORIZONTAL ELLIPSIS}" + r"\u4e2d"


def test_every_run_has_its_own_style():
    samplers = {f"run{i}": smc(4) for i in range(40)}
    styles = style.run_styles(report(samplers, []))
    assert list(styles) == list(samplers)
    assert len({(look.colour, look.marker) for look in styles.values()}) == 40
    # Without colour, neighbours differ in the mark and in the line.
    pairs = list(zip(list(styles.values())[:-1], list(styles.values())[1:], strict=True))
    assert all(a.marker != b.marker and a.line != b.line for a, b in pairs)


def test_styles_do_not_depend_on_what_is_finished():
    samplers = {"a": ancestral(), "b": smc(4)}
    labels = {"a": "first", "b": "$second$"}
    look = style.run_styles(report(samplers, [], labels))["b"]
    assert look.label == "$second$" and look.colour == style.COLOURS[1]


def test_the_png_is_twice_as_wide_as_the_page():
    figure = style.new_figure(2.0)
    figure.add_subplot().plot([0, 1], [0, 1], color=style.COLOURS[0])
    picture = Image.open(io.BytesIO(style.to_png(figure)))
    assert picture.format == "PNG" and picture.size == (2000, 400)
    colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert [0, 0x72, 0xB2] in np.unique(colours, axis=0).tolist()


def test_legends_have_as_many_columns_as_fit():
    assert style.legend_columns(["a", "b", "c", "d", "e"]) == 4
    assert style.legend_columns(["a", "b"]) == 2
    assert style.legend_columns(["x" * 40] * 6) == 2
    assert style.legend_height(["x" * 40] * 6) > style.legend_height(["x"] * 6)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1001, 0.4, [0.15, 0.2, 0.3]),
        (0.5, 30, [0.5, 1, 2, 5, 10, 20]),
        (0.001, 1000, [0.001, 0.01, 0.1, 1, 10, 100, 1000]),
    ],
)
def test_logarithmic_ticks_are_few_and_plain(low, high, expected):
    axes = style.new_figure(2.0).add_subplot()
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    style.log_ticks(axes.xaxis, low, high)
    assert axes.get_xticks().tolist() == pytest.approx(expected)


def test_close_ends_of_a_logarithmic_axis_still_have_ticks():
    axes = style.new_figure(2.0).add_subplot()
    style.log_ticks(axes.xaxis, 2.1, 2.2)
    assert len(axes.get_xticks()) == 3


def test_sizes_that_are_close_are_not_written_over_each_other():
    axes = style.new_figure(2.0).add_subplot()
    style.size_axis(axes, [4, 8, 8, 64, 65], "N")
    assert axes.get_xticks().tolist() == [4, 8, 64]
