"""The evaluation launcher, on a model whose every answer is known."""

import contextlib
import dataclasses
import io
import json
import pathlib
import runpy
import shutil
import statistics
import sys

import numpy as np
import pytest
from jax_power_smc.evaluation.methods import Row, Run, standard_runs
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from jax_power_smc.evaluation.intervals import paired_bootstrap, wilson
from jax_power_smc.evaluation.job import Scores
from jax_power_smc.launchers import evaluate
from jax_power_smc.reasoner import problems
from jax_power_smc.samplers import Ancestral, PowerSMC
from tests.evaluation import tiny
from tests.launchers.command import ROOT, assert_refused, call, outcomes

CONFIG = "configs/tiny_reasoner.py"
N, RAMP, LIMIT = 4, 2, 4
SMALL = {
    "limit": LIMIT,
    "split": "valid",
    "problem_seed": 3,
    "seeds": (0, 1),
    "num_particles": N,
    "ramp_tokens": RAMP,
    "max_new_tokens": 8,
}
# The known model never says 7.
GOLD = (3, 4, 5, 7)


@pytest.fixture(autouse=True, scope="module")
def compiled_once(tmp_path_factory):
    with tiny.compiled_once(tmp_path_factory):
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_known(tmp_path_factory.mktemp("model"))


def make_config(model, /, **changes):
    """The published config made small; values of any type, as a config file may hold them."""
    published = runpy.run_path(str(ROOT / CONFIG))["get_config"]()
    return ConfigDict(published.to_dict() | SMALL | {"model": str(model)} | changes)


@dataclasses.dataclass
class Finished:
    """An evaluation in which the problems have answers that the known model may give.

    Attributes:
      scores: what was returned.
      out: what was printed.
      workdir: where the files are.
      asked: the arguments with which problems were made.
      listed: the problems.
    """

    scores: list
    out: str
    workdir: pathlib.Path
    asked: list
    listed: list

    def summary(self):
        return strictly((self.workdir / "summary.json").read_text())

    def records(self, method=None):
        lines = (self.workdir / "records.jsonl").read_text().splitlines()
        return [r for r in map(strictly, lines) if method in (None, r["method"])]


def strictly(text):
    """Parses JSON that holds no not-a-number and no infinity."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("evaluate") / "new"
    asked, listed = [], []
    make = problems.problems

    def easy(*arguments):
        asked.append(arguments)
        for problem, answer in zip(make(*arguments), GOLD, strict=True):
            listed.append(dataclasses.replace(problem, answer=answer))
            yield listed[-1]

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(evaluate.problems, "problems", easy)
        scores = evaluate.evaluate(make_config(model), str(workdir))
    return Finished(scores, out.getvalue(), workdir, asked, listed)


# --- What is written --------------------------------------------------------------------------


def test_the_rows_are_those_of_the_standard_runs(finished):
    runs = standard_runs(4.0, N, RAMP, 8)
    rows = finished.summary()["rows"]
    assert [row["method"] for row in rows] == [row.name for run in runs for row in run.rows]
    assert [(row["sampler"], row["num_particles"], row["temperature"]) for row in rows] == [
        (type(run.sampler).__name__, run.sampler.num_particles, run.temperature)
        for run in runs
        for _ in run.rows
    ]
    assert {row["alpha"] for row in rows} == {4.0}


def test_every_row_of_the_summary_has_what_readers_rely_on(finished):
    summary = finished.summary()
    assert isinstance(summary["device"], str) and summary["problems"] == LIMIT
    for row in summary["rows"]:
        assert row.keys() >= {
            *("sampler", "num_particles", "alpha", "temperature", "accuracy", "ci95"),
            *("mean_log_prob", "log_evidence", "tokens_per_problem", "seconds_per_problem"),
            "multiple",
        }
        assert row["ci95"] == list(wilson(row["accuracy"], LIMIT))


def test_accuracies_are_those_of_the_records(finished):
    accuracies = {row["method"]: row["accuracy"] for row in finished.summary()["rows"]}
    for method, accuracy in accuracies.items():
        records = finished.records(method)
        assert sorted((r["seed"], r["problem"]) for r in records) == [
            (seed, problem) for seed in (0, 1) for problem in range(LIMIT)
        ]
        assert accuracy == pytest.approx(statistics.mean(r["correct"] for r in records))
    assert accuracies["greedy"] == 1 / LIMIT
    assert len(set(accuracies.values())) > 1, "all methods alike would show no mix-up"


def test_the_problems_are_those_that_the_config_names(finished):
    assert finished.asked == [("valid", LIMIT, 3)]
    for record in finished.records():
        problem = finished.listed[record["problem"]]
        assert (record["prompt"], record["gold"]) == (problem.question, problem.answer)
        if record["response"] is not None:
            assert record["parsed"] == problems.parse_answer(record["response"])


def test_samplers_of_the_target_are_compared_with_every_decoder(finished):
    methods = [row["method"] for row in finished.summary()["rows"]]
    ours = ["Power-SMC", f"Power-SMC, ramp {RAMP}", "without replacement"]
    assert methods[-3:] == ours
    pairs = finished.summary()["comparisons"]
    assert [(pair["method"], pair["against"]) for pair in pairs] == [
        (name, other) for name in ours for other in methods if other not in ours
    ]
    for pair in pairs:
        judged = [[r["correct"] for r in finished.records(pair[k])] for k in ("method", "against")]
        means = [np.reshape(row, (2, LIMIT)).mean(axis=0) for row in judged]
        difference, low, high = paired_bootstrap(*means)
        assert pair["difference"] == pytest.approx(difference, abs=1e-12)
        assert pair["ci95"] == pytest.approx([low, high], abs=1e-12)


def test_compare_pairs_the_problems():
    def scores(name, *correct):
        sampler = PowerSMC(2) if name == "Power-SMC" else Ancestral()
        run = Run(sampler, (Row(name, "draw"),), 1.0)
        return Scores(run, run.rows[0], np.array(correct), -1.0, np.nan, 0, 4.0, 0.1, 1.0)

    pairs = evaluate.compare(
        [
            scores("greedy", 0.0, 0.5, 0.25),
            scores("vote", 1.0, 1.0, 1.0),
            scores("Power-SMC", 0.5, 1.0, 0.75),
        ]
    )
    # Over each problem half a point more: paired, that is certain.
    assert pairs[0] == {
        "method": "Power-SMC",
        "against": "greedy",
        "difference": 0.5,
        "ci95": [0.5, 0.5],
    }
    assert pairs[1]["against"] == "vote" and pairs[1]["difference"] == -0.25
    assert len(pairs) == 2


# --- What is printed --------------------------------------------------------------------------


def test_the_headline_says_what_is_evaluated(finished, model):
    assert finished.out.splitlines()[0] == (
        f"{model}: 4 problems of the valid split, alpha 4, N = 4, at most 8 tokens, seeds 0, 1"
    )


def test_the_table_shows_the_summary(finished):
    cells = [line.split("│")[1:-1] for line in finished.out.splitlines() if line.startswith("│")]
    printed = [[cell.strip() for cell in row] for row in cells]
    rows = finished.summary()["rows"]
    assert len(printed) == len(rows)
    for cell, row in zip(printed, rows, strict=True):
        low, high = row["ci95"]
        assert cell == [
            row["method"],
            str(row["num_particles"]),
            f"{100 * row['accuracy']:.1f}%",
            f"{100 * low:.1f} to {100 * high:.1f}",
            f"{row['mean_log_prob']:.2f}",
            f"{row['tokens_per_problem']:.0f}",
            f"{row['seconds_per_problem']:.3f}",
            f"{row['multiple']:.1f}x",
        ]
    assert printed[0][-1] == "1.0x"


def test_differences_are_printed_in_points(finished):
    for pair in finished.summary()["comparisons"]:
        low, high = (100 * end for end in pair["ci95"])
        line = (
            f"  {pair['method']} over {pair['against']}: {100 * pair['difference']:+.1f} "
            f"({low:+.1f} to {high:+.1f})"
        )
        assert line in finished.out.splitlines()


def test_progress_and_the_files_are_named(finished):
    accuracy = finished.summary()["rows"][0]["accuracy"]
    line = f"temperature 1: 8/8 problems, accuracy so far {accuracy:.3f}, 0 s left"
    assert line in finished.out.splitlines()
    for file in ("records.jsonl", "summary.json"):
        assert str(finished.workdir / file) in finished.out.splitlines()[-1]


def test_progress_without_a_terminal_is_a_line_now_and_then(monkeypatch, capsys):
    clock = iter([100.0, 105.0, 111.0, 112.0])
    monkeypatch.setattr(evaluate.time, "monotonic", lambda: next(clock))
    with evaluate._Progress() as progress:
        for done in (1, 2, 3, 4):
            progress.report("greedy", done, 4, 0.5, 10.0 - done)
    # The first, the one after more than ten seconds, and the last.
    assert capsys.readouterr().out.splitlines() == [
        f"greedy: {done}/4 problems, accuracy so far 0.500, {10 - done} s left"
        for done in (1, 3, 4)
    ]


def test_progress_on_a_terminal_is_a_live_line_for_each_method(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with evaluate._Progress() as progress:
        progress.report("greedy", 1, 4, 0.5, 9.0)
        progress.report("greedy", 4, 4, 0.25, 0.0)
        progress.report("vote", 2, 4, 0.75, 3.0)
    last = out.getvalue().split("greedy")[-1]
    assert "4/4" in last and "accuracy so far 0.250, 0 s left" in last
    assert "vote" in last and "2/4" in last and "accuracy so far 0.750, 3 s left" in last


# --- What is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("name", evaluate.FIELDS)
def test_every_field_must_be_there(name, tmp_path):
    config = make_config("no/such/model")
    del config[name]
    with pytest.raises(ValueError, match=f"the config lacks {name}"):
        evaluate.evaluate(config, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_all_missing_fields_are_named_together(tmp_path):
    with pytest.raises(ValueError, match="the config lacks model, split, limit, problem_seed, "):
        evaluate.evaluate(ConfigDict({"seeds": (0,)}), str(tmp_path / "new"))


INTEGERS = ("limit", "problem_seed", "num_particles", "ramp_tokens", "max_new_tokens")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *((name, None, f"config.{name} is None; it must be an integer") for name in INTEGERS),
        *((name, "3", f"config.{name} is '3'; it must be an integer") for name in INTEGERS),
        *((name, 2.0, f"config.{name} is 2.0; it must be an integer") for name in INTEGERS),
        *((name, True, f"config.{name} is True; it must be an integer") for name in INTEGERS),
        *((name, -1, f"config.{name} is -1; it must be an integer") for name in INTEGERS),
        *((name, 2**31, f"config.{name} is 2147483648; it must be") for name in INTEGERS),
        ("limit", 0, "config.limit is 0; it must be an integer of at least 1"),
        ("num_particles", 0, "config.num_particles is 0; it must be an integer of at least 1"),
        ("max_new_tokens", 0, "config.max_new_tokens is 0; it must be an integer of at least 1"),
        ("model", 5, "config.model is 5; it must be a name"),
        ("model", None, "config.model is None; it must be a name"),
        ("split", "dev", "config.split is 'dev'; allowed are train, valid, test"),
        ("split", None, "config.split is None; allowed are"),
        ("alpha", 0.5, "alpha is 0.5; it must be a finite number of at least 1"),
        ("alpha", 0.0, "alpha is 0.0"),
        ("alpha", "4", "alpha is '4'; it must be a finite number"),
        ("alpha", None, "alpha is None"),
        ("alpha", float("nan"), "alpha is nan"),
        ("seeds", 0, "config.seeds is 0; it must be a tuple of integers"),
        ("seeds", None, "config.seeds is None; it must be a tuple"),
        ("seeds", "01", "config.seeds is '01'; it must be a tuple"),
        ("seeds", (), "no seeds"),
        ("seeds", (0.5,), r"seeds\[0\] is 0.5; it must be an integer"),
        ("seeds", (1, 1), r"seeds is \(1, 1\); they must differ"),
        ("seeds", (2**32,), r"seeds\[0\] is 4294967296; it must be an integer of at most"),
    ],
)
def test_fields_are_checked_before_the_model_is_read(name, value, message, tmp_path):
    config = make_config("no/such/model", **{name: value})
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate(config, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


# --- The command line -------------------------------------------------------------------------


def flags(model, workdir="new", config=ROOT / CONFIG, **changes):
    values = SMALL | {"model": model, "limit": 3, "seeds": "(0,)"} | changes
    values = {f"config.{name}": value for name, value in values.items()}
    return [f"--{n}={v}" for n, v in ({"config": config, "workdir": workdir} | values).items()]


BAD = {
    "limit": "config.limit is 0; it must be an integer of at least 1",
    "alpha": "alpha is 0.0; it must be a finite number of at least 1",
    "no particles": "config.num_particles is 0; it must be an integer of at least 1",
    "split": "config.split is 'dev'; allowed are train, valid, test",
    "no seeds": "nothing to evaluate: no seeds",
    "seed": "seeds[0] is 0.5; it must be an integer",
    "lacking field": "the config lacks seeds, num_particles",
    "wrong type": "config.limit is '3'; it must be an integer",
    "wrong type of a flag": "--config.limit=many: invalid literal",
    "unknown field": "bogus",
    "no config": "--config must have a value",
    "no workdir": "--workdir must have a value",
    "extra argument": "unexpected arguments: more",
    "workdir is a file": "lacking.py: File exists.",
    "no such model": "'no/such' is neither a directory nor all in the hub's cache",
    "no config.json": "has no config.json",
    "missing tensor": "missing lm_head.weight",
    "long answer": "together they must not exceed the model's 256 positions",
}


@pytest.fixture(scope="module")
def refusals(model, tmp_path_factory):
    """The directory of the runs, and name -> (exit code, stdout, stderr)."""
    root = tmp_path_factory.mktemp("refusals")
    program = "import runpy\ndef get_config():\n    c = runpy.run_path({!r})['get_config']()\n"
    program = program.format(str(ROOT / CONFIG)) + "    {}\n    return c.unlock()\n"
    (root / "lacking.py").write_text(program.format("del c.seeds, c.num_particles"))
    (root / "wrong.py").write_text(program.format("del c.limit; c.unlock().limit = '3'"))
    empty, missing = root / "empty", shutil.copytree(model, root / "missing")
    empty.mkdir()
    tensors = load_file(missing / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, missing / "model.safetensors")
    cases = {
        "limit": flags(model, limit=0),
        "alpha": flags(model, alpha=0),
        "no particles": flags(model, num_particles=0),
        "split": flags(model, split="dev"),
        "no seeds": flags(model, seeds="()"),
        "seed": flags(model, seeds="(0.5,)"),
        "lacking field": ["--config=lacking.py", "--workdir=new"],
        "wrong type": ["--config=wrong.py", "--workdir=new"],
        "wrong type of a flag": flags(model, limit="many"),
        "unknown field": flags(model, bogus=1),
        "no config": ["--workdir=new"],
        "no workdir": flags(model)[:1],
        "extra argument": [*flags(model), "more"],
        "workdir is a file": flags(model, workdir="lacking.py"),
        "no such model": flags("no/such"),
        "no config.json": flags(empty),
        "missing tensor": flags(missing),
        "long answer": flags(model, max_new_tokens=250),
    }
    return root, outcomes("evaluate", cases, root)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name, refusals):
    root, outcome = refusals
    assert_refused(outcome[name], BAD[name])
    assert not (root / "new").exists()


@pytest.mark.slow
def test_the_command_prints_the_table_and_writes_both_files(model, tmp_path):
    arguments = flags(model, tmp_path / "new", config=CONFIG, split="test", ramp_tokens=0)
    code, out, err = call("evaluate", *arguments)
    assert (code, err) == ("0", "")
    summary = strictly((tmp_path / "new/summary.json").read_text())
    methods = [row.name for run in standard_runs(4.0, N, 0, 8) for row in run.rows]
    assert [row["method"] for row in summary["rows"]] == methods
    table = [line for line in out.splitlines() if line.startswith("│")]
    assert [line.split("│")[1].strip() for line in table] == methods
    records = (tmp_path / "new/records.jsonl").read_text().splitlines()
    listed = list(problems.problems("test", 3, 3))
    assert sorted((r["method"], r["prompt"], r["gold"]) for r in map(strictly, records)) == sorted(
        (method, problem.question, problem.answer) for method in methods for problem in listed
    )
