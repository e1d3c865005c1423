"""Text that is safe to look at."""

import io

import pytest

from jax_power_smc.core.sanitize import VisibleStream, as_is, on_one_line, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\0b", "a<U+0000>b"),
        ("\x1b[31m", "<U+001B>[31m"),
        ("x\u202ey\u2066z", "x<U+202E>y<U+2066>z"),
        ("half \ud83d, \udfff", "half <U+D83D>, <U+DFFF>"),
        ("lone\rreturn", "lone<U+000D>return"),
        ("page\x0cbreak\x0b\x85\u2028", "page<U+000C>break<U+000B><U+0085><U+2028>"),
        ("\ufeff\u200b\xad\U000e0041", "<U+FEFF><U+200B><U+00AD><U+E0041>"),
    ],
)
def test_what_cannot_be_seen_is_shown_by_its_number(text, shown):
    assert visible(text) == shown
    assert visible(text).encode()


@pytest.mark.parametrize(
    "text", ["", "two\nlines\tand tabs", "é 漢字 שלום 👩\u200d🔬 \xa0x", "<b>&amp;</b> {{7*7}}"]
)
def test_other_text_stays(text):
    assert visible(text) == text


def test_ends_of_lines_are_newlines():
    assert visible("a\r\nb\n") == "a\nb\n"


def test_on_one_line():
    assert on_one_line("  a\r\n b\t\tc\0 ") == "a b c<U+0000>"


def test_a_visible_stream_replaces_what_is_written_and_is_otherwise_the_one_below():
    below = io.StringIO()
    stream = VisibleStream(below)
    print("a\x1bb", file=stream)
    assert below.getvalue() == stream.getvalue() == "a<U+001B>b\n"
    as_is(stream).write("\x1b")
    as_is(below).write("\x07")
    assert below.getvalue() == "a<U+001B>b\n\x1b\x07"
