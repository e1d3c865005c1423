"""Answers read off a particle set, against cases worked out by hand and by simulation."""

import itertools
import math

import numpy as np
import pytest

from jax_power_smc.evaluation import scores


def particle(weight, log_prob=-1.0, parsed="1", correct=False, string=None, note=None, **more):
    return {
        "log_weight": math.log(weight) if weight else None,
        "log_prob": log_prob,
        "parsed": parsed,
        "correct": correct,
        "correct_string": correct if string is None else string,
        "note": note,
        "tokens": [5, 6, 7],
        "loop": False,
        "very_short": False,
        **more,
    }


def record(*particles, choice=0, failure=None, log_evidence=-2.5):
    return {
        "run": "smc",
        "seed": 3,
        "id": "a",
        "failure": failure,
        "choice": choice,
        "log_evidence": log_evidence,
        "particles": list(particles),
        "info": {"model_tokens": 31, "drawn_tokens": 77},
        "seconds": {"compile": 1.0, "prefill": 2.0, "decode": 3.0},
    }


def test_the_draw_the_vote_and_the_best_may_all_differ():
    reading = scores.read(
        record(
            particle(0.40, -3.0, "1"),
            particle(0.25, -5.0, "2", correct=True),
            particle(0.25, -4.0, "2", correct=True),
            particle(0.10, -2.0, "3", string=True),
        )
    )
    assert reading.item == ("smc", 3, "a")
    assert reading.answers["draw"] == scores.AnswerScore(False, False, -3.0)
    mean = scores.AnswerScore(True, True, pytest.approx(-3.5))
    assert reading.answers["vote"] == mean
    assert reading.answers["best"] == scores.AnswerScore(False, True, -2.0)
    assert (reading.num, reading.num_right, reading.tokens) == (4, 2, 77)
    assert (reading.model_tokens, reading.draw_length) == (31, 3)
    assert reading.right == pytest.approx(0.5) and reading.log_evidence == -2.5
    assert not reading.failed and reading.seconds["decode"] == 3.0


def test_records_of_the_engine_with_a_row_per_particle_say_only_what_was_drawn():
    older = record(particle(1.0, -1.0)) | {"info": {"model_tokens": 77}}
    assert (scores.read(older).tokens, scores.read(older).model_tokens) == (77, None)


def test_the_draw_is_the_chosen_particle():
    particles = [particle(0.5, -1.0, correct=True), particle(0.5, -2.0)]
    for choice, correct in ((0, True), (1, False)):
        assert scores.read(record(*particles, choice=choice)).answers["draw"].correct is correct


def test_particles_of_weight_zero_have_no_say():
    reading = scores.read(
        record(particle(0.0, 9.0, "2", correct=True), particle(1.0, -1.0, "1"), choice=1)
    )
    assert not any(answer.correct for answer in reading.answers.values())
    assert (reading.num, reading.num_right, reading.right) == (1, 0, 0.0)


def test_what_has_no_answer_gets_no_vote():
    reading = scores.read(
        record(particle(0.9, parsed=None), particle(0.1, parsed="4", correct=True))
    )
    assert reading.answers["vote"].correct
    nothing = scores.read(record(particle(1.0, -7.0, parsed=None)))
    assert nothing.answers["vote"] == scores.AnswerScore(False, False, -7.0)


def test_ties_go_to_the_answer_seen_first():
    equal = [particle(0.5, parsed="4", correct=True), particle(0.5, parsed="5")]
    assert scores.read(record(*equal)).answers["vote"].correct
    assert not scores.read(record(*equal[::-1])).answers["vote"].correct


def test_the_verdict_of_a_vote_is_that_of_the_larger_weight():
    spelt = [
        particle(0.2, parsed="4", correct=True, string=True),
        particle(0.4, parsed="4", correct=True, string=False),
        particle(0.4, parsed="5", string=True),
    ]
    for order in (spelt, spelt[::-1]):
        vote = scores.read(record(*order)).answers["vote"]
        assert vote.correct and not vote.correct_string


def test_a_log_prob_that_is_not_finite_is_the_worst():
    reading = scores.read(record(particle(0.5, None, "1"), particle(0.5, -9.0, "1", correct=True)))
    assert reading.answers["best"] == scores.AnswerScore(True, True, -9.0)
    assert reading.answers["vote"].log_prob is None
    assert not reading.failed


@pytest.mark.parametrize(
    "broken",
    [
        record(particle(1.0, correct=True), failure="the model gave NaN."),
        record(particle(0.0, correct=True)),
        record(choice=None),
    ],
)
def test_a_result_that_means_nothing_is_wrong_in_every_way(broken):
    reading = scores.read(broken)
    assert reading.failed and reading.right == 0.0 and reading.num_right == 0
    assert set(reading.answers.values()) == {scores.AnswerScore(False, False, None)}
    assert reading.pass_at(1, True) == reading.pass_at(1, False) == 0.0


def test_weights_that_do_not_add_up_to_one_are_made_to():
    reading = scores.read(record(particle(0.3, correct=True), particle(0.3)))
    assert reading.right == pytest.approx(0.5)


def test_what_could_not_be_judged_and_what_is_degenerate_is_counted():
    reading = scores.read(
        record(
            particle(0.5, note="took longer than 10 s"),
            particle(0.2, loop=True),
            particle(0.1, very_short=True),
            particle(0.2),
        )
    )
    assert reading.ungraded == 1 and reading.degenerate == pytest.approx(0.3)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_pass_at_k_of_weighted_particles_is_that_of_draws_from_them(k):
    weights = np.array([0.5, 0.3, 0.2])
    right = [False, True, True]
    reading = scores.read(
        record(*(particle(w, correct=r) for w, r in zip(weights, right, strict=True)))
    )
    exact = sum(
        math.prod(weights[list(drawn)])
        for drawn in itertools.product(range(3), repeat=k)
        if any(right[i] for i in drawn)
    )
    assert reading.pass_at(k, independent=False) == pytest.approx(exact)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_pass_at_k_of_samples_is_unbiased(k):
    # Over all outcomes of four samples that are right with probability 0.3 each.
    mean = 0.0
    for outcome in itertools.product((True, False), repeat=4):
        reading = scores.read(record(*(particle(0.25, correct=right) for right in outcome)))
        chance = math.prod(0.3 if right else 0.7 for right in outcome)
        mean += chance * reading.pass_at(k, independent=True)
    assert mean == pytest.approx(1 - 0.7**k)
