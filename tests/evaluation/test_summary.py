"""The table: every figure of it against the scores that it comes from."""

import json
import statistics

import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc.evaluation import summary
from jax_power_smc.evaluation.intervals import accuracy_interval, mean_and_interval
from jax_power_smc.evaluation.scores import AnswerScore, ItemScores
from jax_power_smc.evaluation.summary import Run

IDS, SEEDS, ALPHA = tuple("abcde"), (0, 7), 4.0
PLAIN = Run("plain", "temperature 1", psmc.Ancestral(1.0))
MANY = Run("many", "4 samples", psmc.Ancestral(1.0, 4))
LOW = Run("low", "temperature 1/4", psmc.Ancestral(0.25))
SMC = Run("smc", "Power-SMC", psmc.PowerSMC(4))
SWOR = Run("swor", "without replacement", psmc.WithoutReplacement(6))
RUNS = [LOW, PLAIN, MANY, SMC, SWOR]


def item_scores(run, seed, name, rng, **changes):
    right = int(rng.integers(5))
    judged = {
        answer: AnswerScore(bool(rng.integers(2)), bool(rng.integers(2)), float(-rng.random()))
        for answer in ("draw", "vote", "best")
    }
    values = {
        "item": (run.name, seed, name),
        "answers": judged,
        "right": right / 4,
        "num_right": right,
        "num": 4,
        "log_evidence": float(rng.normal()) if run.has_weights else None,
        "failed": False,
        "ungraded": int(rng.integers(2)),
        "degenerate": float(rng.random()),
        "tokens": int(rng.integers(100)),
        "model_tokens": int(rng.integers(50)),
        "draw_length": 1 + int(rng.integers(20)),
        "seconds": dict(zip(("compile", "prefill", "decode"), rng.random(3).tolist(), strict=True)),
    }
    return ItemScores(**(values | changes))


@pytest.fixture(scope="module")
def everything():
    rng = np.random.default_rng(0)
    listed = [item_scores(run, s, name, rng) for run in RUNS for s in SEEDS for name in IDS]
    rng.shuffle(listed)
    return listed


def summarize(scores, runs=RUNS):
    made = summary.summarize(scores, runs, IDS, SEEDS, ALPHA, "a device")
    return json.loads(json.dumps(made, allow_nan=False))


@pytest.fixture(scope="module")
def made(everything):
    return summarize(everything)


def of(scores, run):
    return [r for r in scores if r.item[0] == run.name]


def matrix(scores, run, value, ids=IDS):
    own = {r.item: value(r) for r in of(scores, run)}
    return np.array([[own[run.name, s, name] for s in SEEDS] for name in ids], float)


def test_what_it_is_about(made):
    assert made["device"] == "a device" and made["problems"] == 5
    assert made["seeds"] == [0, 7] and made["complete"] is True


def test_one_row_for_every_answer_of_every_run(made):
    assert [(row["run"], row["answer"], row["method"]) for row in made["rows"]] == [
        ("low", "draw", "temperature 1/4"),
        ("plain", "draw", "temperature 1"),
        ("many", "draw", "4 samples"),
        ("many", "vote", "4 samples, vote"),
        ("many", "best", "4 samples, best by log p"),
        ("smc", "draw", "Power-SMC"),
        ("smc", "vote", "Power-SMC, vote"),
        ("smc", "best", "Power-SMC, best by log p"),
        ("swor", "draw", "without replacement"),
        ("swor", "vote", "without replacement, vote"),
        ("swor", "best", "without replacement, best by log p"),
    ]
    settings = {row["run"]: (row["sampler"], row["num_particles"]) for row in made["rows"]}
    assert settings["many"] == ("Ancestral", 4) and settings["swor"] == ("WithoutReplacement", 6)
    temperatures = {row["run"]: row["temperature"] for row in made["rows"]}
    assert temperatures == {"low": 0.25, "plain": 1.0, "many": 1.0, "smc": 0.25, "swor": 0.25}


def test_the_figures_of_a_row(made, everything):
    seconds = {}
    for run in RUNS:
        own = of(everything, run)
        spent = sum(r.seconds["prefill"] + r.seconds["decode"] for r in own)
        seconds[run.name] = spent / len(own)
    for row in made["rows"]:
        run = next(run for run in RUNS if run.name == row["run"])
        own, answer = of(everything, run), row["answer"]
        accuracy, low, high = accuracy_interval(
            matrix(everything, run, lambda r, a=answer: r.answers[a].correct)
        )
        assert (row["accuracy"], row["ci95"]) == (accuracy, [low, high])
        assert row["accuracy_string"] == pytest.approx(
            statistics.mean(r.answers[answer].correct_string for r in own)
        )
        assert row["mean_log_prob"] == pytest.approx(
            statistics.mean(r.answers[answer].log_prob for r in own)
        )
        if run.has_weights:
            evidence = statistics.mean(r.log_evidence for r in own)
            assert row["log_evidence"] == pytest.approx(evidence)
        else:
            assert row["log_evidence"] is None
        assert row["ungraded"] == sum(r.ungraded for r in own) and row["failed"] == 0
        assert row["degenerate"] == pytest.approx(statistics.mean(r.degenerate for r in own))
        assert row["tokens_per_problem"] == pytest.approx(statistics.mean(r.tokens for r in own))
        assert row["seconds_per_problem"] == pytest.approx(seconds[run.name])
        # Of plain decoding at temperature 1, wherever it stands in the table.
        assert row["multiple"] == pytest.approx(seconds[run.name] / seconds["plain"])
    assert made["compile_seconds"] == pytest.approx(sum(r.seconds["compile"] for r in everything))


def test_without_plain_decoding_there_is_no_multiple(everything):
    rows = summarize(of(everything, SMC), [SMC])["rows"]
    assert {row["multiple"] for row in rows} == {None}


def test_pass_at_k_up_to_n(made, everything):
    got = {(row["run"], row["k"]): row for row in made["pass_at_k"]}
    assert list(got) == [
        *(("many", k) for k in (1, 2, 4)),
        *(("smc", k) for k in (1, 2, 4)),
        *(("swor", k) for k in (1, 2, 4, 6)),
    ]
    for (name, k), row in got.items():
        run = next(run for run in RUNS if run.name == name)
        value, low, high = accuracy_interval(
            matrix(everything, run, lambda r, k=k, run=run: r.pass_at(k, run is MANY))
        )
        assert (row["value"], row["ci95"], row["method"]) == (value, [low, high], run.label)
    assert got["many", 4]["value"] >= got["many", 1]["value"]


def test_comparisons_pair_the_problems_and_seeds(made, everything):
    pairs = [(pair["method"], pair["against"]) for pair in made["comparisons"]]
    others = [row["method"] for row in made["rows"][:5]]
    assert pairs == [
        *(("Power-SMC", other) for other in others),
        *(("without replacement", other) for other in others),
        ("without replacement", "Power-SMC"),
    ]
    for pair in made["comparisons"]:
        ours = next(run for run in RUNS if run.label == pair["method"])
        row = next(row for row in made["rows"] if row["method"] == pair["against"])
        theirs = next(run for run in RUNS if run.name == row["run"])
        difference, low, high = mean_and_interval(
            matrix(everything, ours, lambda r: r.answers["draw"].correct)
            - matrix(everything, theirs, lambda r, a=row["answer"]: r.answers[a].correct)
        )
        assert pair["problems"] == 5 and pair["difference"] == difference
        assert pair["ci95"] == [low, high]


def test_items_that_failed_are_wrong_and_no_values_to_average():
    rng = np.random.default_rng(1)
    listed = [item_scores(SMC, s, name, rng) for s in SEEDS for name in IDS]
    nothing = dict.fromkeys(("draw", "vote", "best"), AnswerScore(False, False, None))
    dead = {"failed": True, "answers": nothing, "log_evidence": None, "right": 0.0, "num_right": 0}
    listed[0] = item_scores(SMC, 0, "a", rng, **dead)
    row = summarize(listed, [SMC])["rows"][0]
    assert row["failed"] == 1
    kept = listed[1:]
    assert row["accuracy"] == pytest.approx(sum(r.answers["draw"].correct for r in kept) / 10)
    mean = statistics.mean(r.answers["draw"].log_prob for r in kept)
    assert row["mean_log_prob"] == pytest.approx(mean)
    assert row["log_evidence"] == pytest.approx(statistics.mean(r.log_evidence for r in kept))
    alone = [item_scores(SMC, s, name, rng, **dead) for s in SEEDS for name in IDS]
    row = summarize(alone, [SMC])["rows"][0]
    assert row["mean_log_prob"] is None and row["log_evidence"] is None and row["accuracy"] == 0


def test_of_an_unfinished_job_only_what_has_all_seeds_counts(everything):
    missing = {("swor", 7, "b"), ("swor", 0, "e"), ("plain", 0, "c")}
    some = [r for r in everything if r.item not in missing and r.item[0] != "many"]
    got = summarize(some)
    assert got["complete"] is False
    counts = {row["run"]: row["problems"] for row in got["rows"]}
    assert counts == {"low": 5, "plain": 4, "smc": 5, "swor": 3}
    accuracy = matrix(everything, SWOR, lambda r: r.answers["draw"].correct, "acd").mean()
    row = next(row for row in got["rows"] if row["method"] == "without replacement")
    assert row["accuracy"] == accuracy
    pair = got["comparisons"][-2]
    assert (pair["method"], pair["against"]) == ("without replacement", "temperature 1")
    assert pair["problems"] == 2
    draws = [
        matrix(everything, run, lambda r: r.answers["draw"].correct, "ad") for run in (SWOR, PLAIN)
    ]
    assert pair["difference"] == pytest.approx((draws[0] - draws[1]).mean())


def test_nothing_finished_is_an_empty_table():
    got = summarize([])
    assert (got["rows"], got["comparisons"], got["pass_at_k"]) == ([], [], [])
    assert got["complete"] is False and got["compile_seconds"] == 0
