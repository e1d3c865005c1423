"""What the launchers show of their progress, on a terminal and elsewhere."""

import io
import itertools
import sys

from jax_power_smc.cli.progress import EvaluationProgress, TrainingProgress
from jax_power_smc.core import progress
from jax_power_smc.engine.stats import EngineStats
from jax_power_smc.evaluation.job import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


# --- Evaluations --------------------------------------------------------------------------------


def test_an_evaluation_elsewhere_is_a_line_now_and_then(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with EvaluationProgress() as shown:
        for done, left in ((1, float("nan")), (2, 70.0), (3, 65.0), (4, 0.0)):
            clock[0] += 6
            shown.report(Progress("greedy", done, 4, 0.5, left))
    # The first, the one after more than ten seconds, and the last.
    assert capsys.readouterr().out.splitlines() == [
        "greedy: 1/4 items, accuracy so far 0.500",
        "greedy: 3/4 items, accuracy so far 0.500, 0:01:05 left",
        "greedy: 4/4 items, accuracy so far 0.500, 0:00:00 left",
    ]


def test_rows_in_use_and_those_who_wait_for_some_are_shown(capsys):
    with EvaluationProgress() as shown:
        stats = EngineStats(steps=10, row_steps=74, table_steps=160)
        shown.report(Progress("smc", 4, 4, 0.5, 0.0, stats))
        stats.stalls = 3
        shown.report(Progress("smc", 4, 4, 0.5, 0.0, stats))
        shown.report(Progress("smc", 4, 4, 0.5, 0.0, EngineStats()))
    assert capsys.readouterr().out.splitlines() == [
        "smc: 4/4 items, accuracy so far 0.500, 7.4 of 16.0 rows, 0:00:00 left",
        "smc: 4/4 items, accuracy so far 0.500, 7.4 of 16.0 rows, 0.30 stalled, 0:00:00 left",
        "smc: 4/4 items, accuracy so far 0.500, 0:00:00 left",
    ]


def test_an_evaluation_on_a_terminal_is_a_live_line_for_each_run(monkeypatch):
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with EvaluationProgress() as shown:
        shown.report(Progress("greedy", 1, 4, 0.5, 9.0))
        shown.report(Progress("greedy", 4, 4, 0.25, 0.0))
        shown.report(Progress("a [bold] vote", 2, 4, 0.75, 3.0))
    last = out.getvalue().split("greedy")[-1]
    assert "4/4" in last and "accuracy so far 0.250, 0:00:00 left" in last
    assert "a [bold] vote" in last and "2/4" in last and "accuracy so far 0.750" in last


# --- Training -----------------------------------------------------------------------------------


def test_training_without_a_terminal_is_plain_lines(monkeypatch):
    out = io.StringIO()
    clock = itertools.count(0, 10)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with TrainingProgress(steps=1010, first_step=5) as shown:
        shown.report(10, tokens=500, loss=2.0, valid_loss=None)
        shown.report(20, tokens=1500, loss=1.5, valid_loss=1.25)
    assert out.getvalue().splitlines() == [
        "step 10/1010  loss 2.0000  0:33:20 left",
        "step 20/1010  loss 1.5000  valid 1.2500  100 tokens/s  0:16:30 left",
    ]


def test_training_on_a_terminal_is_a_live_line(monkeypatch):
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with TrainingProgress(steps=100) as shown:
        shown.report(40, tokens=500, loss=2.0, valid_loss=None)
    assert "40/100" in out.getvalue() and "loss 2.0000" in out.getvalue()
