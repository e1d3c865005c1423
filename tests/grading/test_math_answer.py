"""Mathematics: equal answers are found, different ones are not taken for equal."""

import pytest

from jax_power_smc.grading.math_answer import LARGEST_NUMBER_OF_LEADERS, judge, merge
from tests.grading.shared import math_answers, needs, read_lines


@pytest.mark.parametrize(
    ("gold", "response"),
    [
        (r"2\sqrt{3}", r"so $\boxed{\sqrt{12}}$."),
        ("p - q", "The answer is -q + p."),
        ("p - q", "-q+p"),
        (r"\frac{1}{4}", "0.25"),
        ("18", r"It is \$18"),
        ("18", "Janet earns $18 a day."),
        ("18", "16 - 3\n#### 18.00"),
        ("9", "9"),
        (r"\{1, 2\}", r"\boxed{2} and \boxed{1}"),
        (r"x^2 - 1", r"\boxed{(x-1)(x+1)}"),
        (r"\$18.90", r"\boxed{18.9}"),
        ("070", r"\boxed{70}"),
        ("1,22", "1.22"),
        (r"\text{Evelyn}", "The answer is Evelyn."),
        ("12", "blah $x$.\n" * 3000 + r"\boxed{3 \cdot 4}" + "\nmore $y$." * 3000),
        ("12", "x" * 50_000 + r" \boxed{3 \cdot 4}"),
    ],
)
def test_right(gold, response):
    assert judge(gold, response)["correct"] is True


@pytest.mark.parametrize(
    ("gold", "response"),
    [
        ("5", r"\boxed{6}"),
        ("5", ""),
        ("5", "no idea"),
        (r"\frac{1}{2}", r"14\frac{1}{2}"),
        (r"(1,2)", r"\boxed{(2,1)}"),
        ("2", "AZYUK2A"),
        ("x", r"\boxed{y}"),
        ("32349", r"\boxed{32, 349}"),
        ("5", r"\boxed{" + "{" * 20_000),
    ],
)
def test_wrong(gold, response):
    assert judge(gold, response)["correct"] is False


def test_what_is_right_by_strings_is_right():
    # Math-Verify alone cannot read it.
    found = judge(r"\text{A} \heartsuit", r"\boxed{\text{A}\heartsuit}")
    assert found == {"parsed": r"A\heartsuit", "correct": True, "correct_string": True}


def test_options_of_one_case():
    assert not judge("$f(x)$", "$f(y)$")["correct"]
    assert judge("$f(x)$", "$f(y)$", {"strict": False})["correct"]
    assert not judge("$9$", "Answer $ \n 9 \n $", {"match_types": ["latex"]})["correct"]
    assert judge("$0.33$", r"$\frac{1}{3}$", {"precision": 2})["correct"]


def test_equal_wrong_answers_are_put_together():
    answers = [("0.25", 1), (r"\frac{1}{4}", 3), ("1/4", 1), (r"\sqrt{12}", 1), (r"2\sqrt{3}", 2)]
    answers += [("3", 1), ("4", 1), ("p-q", 1), ("-q+p", 1)]
    merged = merge(answers)
    quarter, root = r"\frac{1}{4}", r"2\sqrt{3}"
    assert merged["0.25"] == merged["1/4"] == merged[quarter] == quarter
    assert merged[r"\sqrt{12}"] == merged[root] == root
    assert merged["3"] == "3" and merged["4"] == "4"
    assert merged["p-q"] == merged["-q+p"]
    assert merge(answers[::-1]) == merged


def test_few_answers_are_compared_with():
    many = [(str(number), 2) for number in range(100, 100 + LARGEST_NUMBER_OF_LEADERS)]
    # The last to come is equal to a leader, and then to one that came too late to be one.
    assert merge([*many, ("100.0", 1)])["100.0"] == "100"
    assert merge([*many, ("5", 1), ("5.0", 1)])["5.0"] == "5.0"
    assert merge([("5", 2), ("5.0", 1)])["5.0"] == "5"


def test_long_answers_are_texts():
    long = "1+" * 100 + "1"
    assert merge([(long, 1), ("101", 2)]) == {long: long, "101": "101"}


@needs("MATH500.json")
@pytest.mark.parametrize("form", ["{}", "... \\boxed{{{}}}."])
def test_every_answer_of_math500_is_right_for_itself_and_no_other(form):
    answers = sorted(set(math_answers()))
    assert [each for each in answers if not judge(each, form.format(each))["correct"]] == []
    shifted = zip(answers[::3], answers[7::3], strict=False)
    assert sum(judge(gold, form.format(other))["correct"] for gold, other in shifted) < 5


@needs("grader_cases.jsonl")
@pytest.mark.parametrize(("with_opts", "least"), [(False, 262), (True, 268)])
def test_the_cases_of_the_library(with_opts, least):
    cases = read_lines("grader_cases.jsonl")
    agree = sum(
        judge(case["gold"], case["pred"], case["opts"] if with_opts else None)["correct"]
        == bool(case["expected"])
        for case in cases
    )
    assert len(cases) == 268 and agree >= least
