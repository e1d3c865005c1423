"""Opening a grader, and each kind of answers through it."""

import time

import pytest

from jax_power_smc.grading.base import LONGEST, Verdict
from jax_power_smc.grading.factory import open_grader
from jax_power_smc.grading.references import KINDS


def test_math_goes_through_the_pool():
    with open_grader("math", processes=1, seconds=4) as grader:
        grader.submit(
            "a", "0.5", [r"\boxed{1/2}", r"\boxed{2/4}", "7", "7.0", r"\boxed{\frac{14}{2}}"]
        )
        grader.submit("b", 18, ["#### 18", r"\boxed{9^{9^{9}}}"])
        grader.submit("c", {"answer": "$f(x)$", "opts": {"strict": False}}, ["$f(y)$"])
        done = {}
        while grader.pending:
            done |= dict(grader.finished(wait=True))
    first = done["a"]
    assert [each.correct for each in first] == [True, True, False, False, False]
    assert [each.correct_string for each in first] == [True, False, False, False, False]
    assert first[0].parsed == first[1].parsed
    assert first[2].parsed == first[3].parsed == first[4].parsed == "7"
    assert done["b"] == [
        Verdict("18", True, True),
        Verdict(None, False, False, "took longer than 4 s"),
    ]
    assert done["c"][0].correct


@pytest.mark.parametrize(
    ("kind", "gold", "responses", "expected"),
    [
        (
            "choice",
            "B",
            [r"\boxed{B}", "The answer is (B).", "(C)"],
            [Verdict("B", True, True), Verdict("B", True, False), Verdict("C", False, False)],
        ),
        (
            "string",
            r"\frac{1}{2}",
            ["0.5", r"\boxed{2/4}", "?"],
            [
                Verdict(r"\frac{1}{2}", True, True),
                Verdict(r"\frac{2}{4}", False, False),
                Verdict(None, False, False),
            ],
        ),
        (
            "reasoner",
            42,
            ["6*7=42\nanswer 42", "answer 41", "42"],
            [Verdict("42", True, True), Verdict("41", False, False), Verdict(None, False, False)],
        ),
        (
            "reasoner",
            42,
            ["<think>answer 41</think>answer 42", "<think>\nanswer 42", "answer 42</think>"],
            [Verdict("42", True, True), *2 * [Verdict(None, False, False)]],
        ),
        (
            "string",
            "7",
            [r"<think>\boxed{3}</think>7", r"<think>\boxed{7}", r"\boxed{7}</think>"],
            [Verdict("7", True, True), *2 * [Verdict(None, False, False)]],
        ),
        (
            "choice",
            "A",
            ["<think>Answer: B</think>\n\n**A**", "<think>Answer: A", r"\boxed{A}</think>"],
            [Verdict("A", True, False), *2 * [Verdict(None, False, False)]],
        ),
    ],
)
def test_other_kinds_are_graded_inline(kind, gold, responses, expected):
    with open_grader(kind) as grader:
        grader.submit("tag", gold, [*responses, responses[0]])
        grader.submit("none", gold, [])
        assert grader.pending == 2
        assert grader.finished() == [("tag", [*expected, expected[0]]), ("none", [])]
        assert grader.pending == 0 and grader.finished(wait=True) == []
        grader.submit("dropped", gold, responses)
    assert grader.pending == 0 and grader.finished() == []
    with pytest.raises(ValueError, match="closed"):
        grader.submit("late", gold, responses)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "poetry"}, "kind is 'poetry'; allowed are math, choice"),
        ({"processes": 0}, "processes is 0"),
        ({"processes": True}, "processes is True"),
        ({"processes": 1.5}, "processes is 1.5"),
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seconds": "10"}, "seconds is '10'"),
    ],
)
def test_invalid_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        open_grader(**{"kind": "math"} | options)


@pytest.mark.parametrize(
    ("kind", "gold", "message"),
    [
        ("math", None, "gold is None"),
        ("math", " ", "gold is ' '"),
        ("math", float("inf"), "gold is inf"),
        ("math", True, "gold is True"),
        ("math", {"answer": "1"}, "an object must have exactly"),
        ("math", {"answer": "1", "opts": {"strict": 1}}, "opts has strict=1"),
        ("math", {"answer": "1", "opts": {"match_types": ["word"]}}, "opts.match_types"),
        ("math", {"answer": "1", "opts": 3}, "opts is 3"),
        ("string", ["5"], r"gold is \['5'\]"),
        ("choice", "K", "gold is 'K'"),
        ("choice", "(A)", r"gold is '\(A\)'"),
        ("choice", "", "gold is ''"),
        ("reasoner", "5", "gold is '5'"),
        ("reasoner", 5.5, "gold is 5.5"),
        ("code", "x", "gold is 'x'"),
        ("code", {"prompt": "", "test": ""}, "it must be an object with the texts"),
        ("code", {"prompt": "", "test": "", "entry_point": "a b"}, "entry_point is 'a b'"),
    ],
)
def test_invalid_reference_answers_are_refused(kind, gold, message):
    with (
        open_grader(kind, allow_code_execution=True, code_isolation="none") as grader,
        pytest.raises(ValueError, match=message),
    ):
        grader.submit(0, gold, ["x"])


def test_there_are_no_other_kinds():
    assert set(KINDS) == {"math", "choice", "code", "string", "reasoner"}


GOLDS = {"string": "1", "choice": "A", "reasoner": 1, "math": "1"}


@pytest.mark.parametrize("kind", GOLDS)
def test_a_response_without_end_is_not_graded(kind):
    huge = "The answer is 1. " * (3 * 10**6)
    start = time.process_time()
    with open_grader(kind, processes=1) as grader:
        grader.submit("a", GOLDS[kind], [huge, "1"])
        ((_, (first, second)),) = grader.finished(wait=True)
    assert time.process_time() - start < 10
    assert first == Verdict(None, False, False, f"is longer than {LONGEST} characters")
    assert second.note is None


def test_the_longest_response_is_the_callers_choice():
    with open_grader("string", longest=3) as grader:
        grader.submit("a", "123", ["123", "1234"])
        ((_, verdicts),) = grader.finished()
    assert [verdict.note for verdict in verdicts] == [None, "is longer than 3 characters"]
    with pytest.raises(ValueError, match="longest is 0"):
        open_grader("string", longest=0)


@pytest.mark.parametrize("kind", ["string", "math"])
def test_a_reference_answer_without_end_is_refused(kind):
    message = r"gold is 'x+\.\.\.; it must be a text of at most 10"
    with open_grader(kind, processes=1) as grader, pytest.raises(ValueError, match=message):
        grader.submit("a", "x" * (LONGEST + 1), ["x"])


# Each is slow for some expression that looks for answers, if that is written badly.
UNITS = (
    *("12 ", "1,", "1/2 ", "answer is ", r"\boxed{", "{", "####", "the answer to ", "I choose "),
    *("x<think></think>", "<think>", "</think>", "are 12, ", "1 + ", "12:00 pm ", "_{1}", " "),
)


@pytest.mark.parametrize("unit", UNITS)
def test_the_longest_response_is_graded_soon(unit):
    response = (unit * LONGEST)[:LONGEST]
    for kind in ("string", "choice", "reasoner"):
        start = time.process_time()
        with open_grader(kind) as grader:
            grader.submit("a", GOLDS[kind], [response])
            grader.finished()
        assert time.process_time() - start < 10
