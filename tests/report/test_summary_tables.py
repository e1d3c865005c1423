"""The table in the terminal: its figures are those of the summary, and it fits."""

import json

import numpy as np
import pytest

from jax_power_smc.report import summary_tables, tables
from tests.report import workdirs

PROBLEMS = tuple("abcdefgh")
WIDTH = 110


@pytest.fixture(scope="module")
def config():
    return workdirs.default_config()


@pytest.fixture(scope="module")
def records(config):
    return workdirs.every_item(np.random.default_rng(0), config, PROBLEMS)


@pytest.fixture(scope="module")
def summary(config, records):
    return workdirs.summary_of(config, records, PROBLEMS)


@pytest.fixture
def show(capsys):
    """Prints a summary into a pipe, and returns what is printed."""

    def shown(summary):
        before = json.dumps(summary)
        summary_tables.show(summary)
        assert json.dumps(summary) == before
        out = capsys.readouterr().out
        printed = [line for line in out.splitlines() if "  " in line]
        assert max(map(len, printed), default=0) <= tables.FILE_WIDTH
        return out

    return shown


def line_of(out, label, which=0):
    """The words after a label where it begins a line."""
    found = [line for line in out.splitlines() if line.startswith(f" {label}  ")]
    return found[which].strip().removeprefix(label).split()


def percent(value):
    return f"{round(100 * value, 1) + 0.0:.1f}"


def interval(ends, form=percent):
    return [f"[{form(ends[0])},", f"{form(ends[1])}]"]


def points(value):
    return f"{round(100 * value, 1):+.1f}".replace("+0.0", "0.0").replace("-0.0", "0.0")


@pytest.mark.parametrize(("width", "heads"), [(WIDTH, ["pass@N"]), (130, ["pass@N", "95%"])])
def test_one_line_a_run_with_its_figures(width, heads, show, summary, monkeypatch):
    monkeypatch.setattr(tables, "FILE_WIDTH", width)
    out = show(summary)
    heads = ["method", "N", "draw", "95%", "vote", "log", "p", *heads, "tokens", "s/problem"]
    assert [line.split() for line in out.splitlines() if line.startswith(" method")] == [
        [*heads, "multiple"]
    ]
    passed = {row["run"]: row for row in summary["pass_at_k"] if row["k"] == 4}
    for name in ("plain", "low", "many", "mh", "smc", "swor"):
        rows = {row["answer"]: row for row in summary["rows"] if row["run"] == name}
        draw = rows["draw"]
        expected = [str(draw["num_particles"]), percent(draw["accuracy"])]
        expected += interval(draw["ci95"])
        if len(rows) == 3:
            expected += [percent(rows["vote"]["accuracy"]), percent(rows["best"]["accuracy"])]
            expected.append(percent(passed[name]["value"]))
            expected += interval(passed[name]["ci95"]) if width > WIDTH else []
        else:
            expected += ["–"] * 3  # noqa: RUF001
        tokens = draw["tokens_per_problem"]
        expected.append(f"{tokens:.1f}" if tokens < 10 else f"{tokens:.0f}")
        expected += [f"{draw['seconds_per_problem']:.3f}", f"{draw['multiple']:.2f}"]
        assert line_of(out, draw["method"]) == expected


def test_no_column_is_empty_where_all_runs_have_one_particle(show):
    config = workdirs.default_config()
    for name in ("many", "mh", "smc", "swor"):
        del config.samplers[name]
    records = workdirs.every_item(np.random.default_rng(0), config, PROBLEMS)
    out = show(workdirs.summary_of(config, records, PROBLEMS))
    assert out.count("95%") == 2 and "in points over" not in out  # a head, and the sentence


def test_comparisons_are_a_matrix_in_points(show, summary):
    out = show(summary)
    pairs = {(pair["method"], pair["against"]): pair for pair in summary["comparisons"]}
    ours = ("Power-SMC", "without replacement")
    for label in (
        "temperature 1",
        "temperature 1/4",
        "4 samples at temperature 1, vote",
        "4 samples at temperature 1, best by log p",
        "Metropolis-Hastings",
        "Power-SMC",
    ):
        expected = []
        for method in ours:
            if (method, label) in pairs:
                pair = pairs[method, label]
                expected.append(points(pair["difference"]))
                expected += interval(pair["ci95"], points)
        assert line_of(out, label, -1) == expected
    assert out.count("4 samples at temperature 1  ") == 1, "its draw is that of plain decoding"


def test_many_weighted_samplers_get_several_tables(show):
    config = workdirs.default_config(2)
    for number in range(1, 8):
        config.samplers[f"more{number}"] = workdirs.job_config.entry(
            "smc", num_particles=2, ramp_tokens=number
        )
    records = workdirs.every_item(np.random.default_rng(1), config, PROBLEMS[:2])
    out = show(workdirs.summary_of(config, records, PROBLEMS[:2]))
    heads = [line for line in out.splitlines() if "the draw, in points over" in line]
    assert len(heads) == 3
    for name in ("without replacement", *(f"Power-SMC, ramp {i}" for i in range(1, 8))):
        assert sum(name in head for head in heads) == 1


def test_what_the_multiple_is_and_the_compilation(show, summary, config, records):
    assert "over those of temperature 1. s/problem has no compilation in it, which took 24 s" in (
        show(summary)
    )
    others = [each for each in records if each["run"] != "plain"]
    out = show(workdirs.summary_of(config, others, PROBLEMS))
    assert "there is no plain decoding" in out
    assert line_of(out, "Power-SMC")[-1] == "–"  # noqa: RUF001


def test_problems_are_shown_where_they_differ(show, summary, config, records):
    assert "problems " not in show(summary).split("the draw")[0]
    some = [each for each in records if each["run"] != "smc" or each["id"] in "abc"]
    out = show(workdirs.summary_of(config, some, PROBLEMS))
    assert line_of(out, "Power-SMC")[:2] == ["4", "3"]
    assert line_of(out, "temperature 1")[:2] == ["1", "8"]
    assert "The job is not finished" in out and "The job is not finished" not in show(summary)


def test_failed_and_ungraded_items_are_named_where_there_are_some(show, summary, config, records):
    assert "failed:" not in show(summary) and "graded" not in show(summary)
    changed = json.loads(json.dumps(records))
    smc = [each for each in changed if each["run"] == "smc"]
    smc[0]["failure"] = "no mass"
    smc[1]["particles"][2]["note"] = "took too long"
    out = show(workdirs.summary_of(config, changed, PROBLEMS))
    assert "Items that failed: Power-SMC 1." in out
    assert "Answers that could not be graded, and count as wrong: Power-SMC 1." in out


def test_nothing_in_a_label_is_markup_or_a_control(show, config, records):
    changed = workdirs.default_config()
    label = "[bold]x[/bold] :smile: \x1b[31m \ud800 \u202e"
    changed.samplers.smc.label = label
    out = show(workdirs.summary_of(changed, records, PROBLEMS))
    flat = " ".join(out.split())
    assert "[bold]x[/bold] :smile:" in flat and "<U+001B>[31m" in flat
    assert "<U+D800>" in flat and "<U+202E>" in flat and "\x1b" not in out


def test_a_job_with_nothing_finished_is_a_sentence(show, config):
    assert show(workdirs.summary_of(config, [], PROBLEMS)).count("\n") == 1


def test_a_narrow_terminal_has_fewer_columns(monkeypatch, capsys, summary):
    monkeypatch.setattr(tables, "FILE_WIDTH", 80)
    summary_tables.show(summary)
    out = capsys.readouterr().out
    (heads,) = [line for line in out.splitlines() if line.startswith(" method")]
    assert "multiple" in heads and "s/problem" not in heads
    assert max(len(line) for line in out.splitlines() if "  " in line) <= 80
    assert line_of(out, "temperature 1")[1] == percent(summary["rows"][0]["accuracy"])
