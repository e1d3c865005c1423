"""Problems in full."""

import numpy as np
import pytest

from jax_power_smc.report import outputs
from jax_power_smc.report.load import read_report
from tests.report import workdirs


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def run_of(name="smc", num_particles=4):
    runs = workdirs.runs_of(workdirs.default_config(num_particles))
    return next(run for run in runs if run.name == name)


def in_full(records):
    return outputs.problem_in_full(records, {"plain": "temperature 1", "smc": "Power-SMC"})


def weighted(record, weights):
    for particle, weight in zip(record["particles"], weights, strict=True):
        particle["log_weight"] = None if weight == 0 else float(np.log(weight))
    return record


def test_outputs_are_sorted_by_weight_and_equal_ones_are_one(rng):
    run = run_of()
    parts = [workdirs.particle(rng, row, 6) for row in range(4)]
    parts[3] = parts[0] | {"row": 3}
    made = weighted(workdirs.record(rng, run, 0, "a", particles=parts), (0.3, 0.1, 0.4, 0.2))
    made["choice"] = 1
    (got,) = in_full([made]).runs
    shown = [*got.first, *got.more]
    assert [output.weight for output in shown] == pytest.approx([0.5, 0.4, 0.1])
    assert [output.copies for output in shown] == [2, 1, 1]
    assert [output.flags for output in shown] == [(), (), ("drawn",)]
    # What was drawn is seen at once, whatever its weight.
    assert got.first == shown and got.more == [] and got.drawn is shown[2]
    assert shown[1].text == parts[2]["text"] and shown[1].answer == parts[2]["parsed"]
    assert shown[1].log_prob == parts[2]["log_prob"] and shown[1].tokens == 6
    right = sum(w for p, w in zip(parts, (0.3, 0.1, 0.4, 0.2), strict=True) if p["correct"])
    assert got.right == pytest.approx(right) and got.num_particles == 4 and got.left_out == 0


def test_only_the_heaviest_are_shown_and_the_drawn_one(rng):
    made = workdirs.record(rng, run_of(num_particles=64), 0, "a")
    weights = np.arange(64, 0, -1) / np.arange(65).sum()
    weighted(made, weights)
    made["choice"] = 60
    (got,) = in_full([made]).runs
    assert [o.is_drawn for o in got.first] == [False] * outputs.OPEN_OUTPUTS + [True]
    assert len(got.first) + len(got.more) == outputs.MOST_OUTPUTS + 1
    assert got.left_out == 64 - outputs.MOST_OUTPUTS - 1
    assert got.left_out_weight == pytest.approx(weights[outputs.MOST_OUTPUTS :].sum() - weights[60])


def test_marks_and_flags(rng):
    parts = [workdirs.particle(rng, row, 6) for row in range(4)]
    parts[0] |= {"correct": True, "loop": True, "finished": False}
    parts[1] |= {"correct": False, "very_short": True}
    parts[2] |= {"correct": False, "note": "took longer than 10 s", "parsed": None}
    made = weighted(
        workdirs.record(rng, run_of(), 0, "a", particles=parts, choice=0), (0.4, 0.3, 0.2, 0.1)
    )
    first, second, third = [*in_full([made]).runs[0].first, *in_full([made]).runs[0].more][:3]
    assert (first.mark, first.flags) == ("right", ("drawn", "loop", "unfinished"))
    assert (second.mark, second.flags) == ("wrong", ("very short",))
    assert (third.mark, third.note, third.answer) == ("not graded", "took longer than 10 s", None)


def test_a_failed_result_has_no_drawn_answer(rng):
    made = workdirs.record(rng, run_of(), 0, "a", failure="no mass")
    (got,) = in_full([made]).runs
    assert got.drawn is None and got.failure == "no mass" and got.right == 0
    nothing = workdirs.record(rng, run_of(), 0, "a")
    nothing |= {"particles": [], "choice": None}
    (got,) = in_full([nothing]).runs
    assert (got.drawn, got.first, got.left_out_weight) == (None, [], 0.0)


def test_weight_zero_comes_last(rng):
    made = weighted(workdirs.record(rng, run_of(), 0, "a", choice=1), (0, 0.5, 0.25, 0.25))
    (got,) = in_full([made]).runs
    assert got.more[-1].weight == 0 and got.more[-1].text == made["particles"][0]["text"]


def test_of_several_seeds_the_first_is_shown_in_the_order_of_the_table(rng):
    records = [workdirs.record(rng, run_of(name), seed, "a")
               for seed in (3, 1) for name in ("smc", "plain")]  # fmt: skip
    got = in_full(records)
    assert (got.seed, got.seeds) == (1, 2)
    assert [run.label for run in got.runs] == ["temperature 1", "Power-SMC"]
    assert got.records == [records[3], records[2]]


@pytest.mark.parametrize(
    ("gold", "text"),
    [("1/2", "1/2"), (42, "42"), ({"prompt": "def f():\n", "n": 1}, "prompt:\ndef f():\n\nn:\n1")],
)
def test_the_reference_answer_is_text(gold, text, rng):
    assert in_full([workdirs.record(rng, run_of(), 0, "a", gold=gold)]).reference == text


def test_a_long_text_is_shown_at_its_ends():
    text = "a" * 50_000 + "b" * 50_000
    short = outputs.shortened(text)
    assert short.startswith("a" * outputs.HEAD + "\n[...") and short.endswith("b" * outputs.TAIL)
    assert f"{100_000 - outputs.HEAD - outputs.TAIL:,} characters" in short
    assert outputs.shortened(text[: outputs.HEAD]) == text[: outputs.HEAD]


def test_contested_problems_are_those_on_which_runs_disagree(tmp_path, rng):
    config = workdirs.default_config(1)
    runs = workdirs.runs_of(config)
    # Which of the six runs are right about a problem; d is like c, and e lacks a run.
    right = {"all": "xxxxxx", "none": "......", "b": "x.....", "c": "xxx...", "d": "xxx..."}
    right |= {"e": ".x.x.", "f": "...xxx"}
    records = []
    for name, marks in right.items():
        for run, mark in zip(runs, marks, strict=False):
            part = workdirs.particle(rng, 0, 3, correct=mark == "x")
            records.append(workdirs.record(rng, run, 0, name, particles=[part]))
    data = read_report(workdirs.write(tmp_path, config, records))
    assert outputs.most_contested(data, 2) == ["c", "f"]
    assert outputs.most_contested(data, 4) == ["c", "f", "b", "all"]
    assert sorted(outputs.most_contested(data, 99)) == sorted(right)
