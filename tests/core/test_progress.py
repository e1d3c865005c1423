"""The one display of progress: a bar on a terminal, lines elsewhere, nothing where unwanted."""

import io

from jax_power_smc.core import progress
from jax_power_smc.core.progress import ProgressDisplay, clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_come_when_the_last_one_is_old_or_a_stage_is_complete(monkeypatch):
    now, out = [100.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with ProgressDisplay(10.0, stream=out) as display:
        for done in range(1, 5):
            display.update("stage", done, 4, "well")
            now[0] += 6
        display.update("next", 1, 1, line="the next one is complete")
    assert out.getvalue().splitlines() == [
        "stage: 1/4, well",
        "stage: 3/4, well",
        "stage: 4/4, well",
        "the next one is complete",
    ]


def test_names_of_strangers_do_nothing_to_a_terminal():
    hostile = "\x1b]0;title\x07\u202e"
    for stream in (io.StringIO(), Terminal()):
        with ProgressDisplay(stream=stream) as display:
            display.update(hostile, 1, 1, hostile)
        out = stream.getvalue()
        assert "]0;title<U+0007>" in out and "\x07" not in out and "\x1b]" not in out


def test_nothing_is_shown_where_it_is_unwanted():
    for out, display in (
        (plain := io.StringIO(), ProgressDisplay(None, stream=plain)),
        (live := Terminal(), ProgressDisplay(stream=live, show=False)),
    ):
        with display:
            display.update("stage", 1, 1)
        assert out.getvalue() == ""


def test_bytes_are_shown_as_such(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    out = Terminal()
    with ProgressDisplay(in_bytes=True, stream=out) as display:
        display.update("a [bold] name", 2_000_000, 4_000_000, "[i]text[/i]")
    assert "a [bold] name" in out.getvalue() and "2.0/4.0 MB" in out.getvalue()
    assert "[i]text[/i]" in out.getvalue()


def test_a_clock_has_hours_minutes_and_seconds():
    assert [clock(x) for x in (0, 59.6, 3723)] == ["0:00:00", "0:01:00", "1:02:03"]
