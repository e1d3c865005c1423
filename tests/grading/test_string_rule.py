"""The rule for strings: what is found in a response, and which spellings are the same."""

import time

import pytest

from jax_power_smc.grading.string_rule import (
    MAX_ANSWER_LENGTH,
    equal,
    extract,
    is_bare,
    last_boxed,
    normalise,
    reference_answer,
)
from tests.grading.shared import math_answers, needs, read_lines


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{1}, no, $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\fbox{4} and more", "4"),
        (r"it is \boxed 5$, I think", "5"),
        (r"\boxed{1} and then \boxed{2", None),
        (r"the answer is 4, or \boxed{", None),
        ("16 - 3 = 13\n#### 18", "18"),
        ("#### 18\nor\n#### 1,900\nbye", "1,900"),
        ("####", None),
        ("The answer is 3. No, the answer is 3.5. Next", "3.5"),
        ("The answer is: 1,800 dollars a day.", "1,800"),
        ("So the answer is $18.", "$18"),
        ("**Final Answer:**\n\n18 eggs", "18"),
        ("The final answer is 18. I hope it is correct.", "18"),
        ("The answer is p - q.", "p - q"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\left( 3, \frac{\pi}{2} \right)"),
        ("Evelyn", "Evelyn"),
        ("It is 18 dollars.", "18"),
        ("first 12, and then -1,234.5 more", "-1,234.5"),
        ("it wins with 2/3 of them", "2/3"),
        ("She needs 2 1/3 cups.", "2 1/3"),
        ("So the answer is 2 + 3 = 5 dollars.", "5"),
        ("The answer is 3/4 cups of flour.", "3/4"),
        ("The answer is 12, 15 and 18 apples.", "12, 15 and 18"),
        (r"\boxed{1}, $\boxed{2}$ and \boxed{3}", "1, 2, 3"),
        (r"\boxed{1} or rather \boxed{2}", "2"),
        (r"<think>\boxed{1}</think>It is 2", "2"),
        (r"\boxed{1}</think>It is 2", "2"),
        (r"<think>\boxed{1}", None),
        ("AZYUK2A", None),
        ("nothing at all", None),
        ("", None),
    ],
)
def test_extract(response, answer):
    assert extract(response) == answer


@pytest.mark.parametrize(
    "spellings",
    [
        (
            r"\frac{1}{2}",
            r"\dfrac12",
            r"\tfrac{1}{2}",
            "1/2",
            "0.5",
            ".5",
            "0.50",
            r"\frac 12",
            "$1/2$",
        ),
        (r"\frac{43}{7}", "43/7", r"\frac{43}7", r"\dfrac{43}{7}", r" \frac{43}{7}. "),
        (r"-\frac{3}{8}", "-3/8", r"-\frac38"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", r"\(( 3,\ \dfrac{\pi}{2} )\)"),
        (r"11\sqrt2", r"11 \sqrt{2}"),
        ("x=5", "5", "x = 5", "5.", "5.0", "05.0", r"\text{5}", "x \\in 5"),
        (r"10,\!080", "10,080", "10080", r"10,\! 080"),
        (r"\$32,\!348", "32348", "$32,348"),
        (r"15\mbox{ cm}^2", "15", r"15\text{ cm}^{2}", r"15\ \mathrm{cm}"),
        (r"90^\circ", "90", r"90^{\circ}", "90°", r"90\degree"),
        (r"25\%", "25", "25%"),
        (r"\text{Evelyn}", "Evelyn", r"\textbf{Evelyn}"),
        (r"x \leq 3", r"x\le 3"),
        (r"2\frac{1}{3}", "2 1/3", r"2\ 1/3", "2⅓", "+2 1/3"),
        ("-3", "- 3", "\u22123", "\u20133"),
        (r"2\sqrt{3}", "2√3", "2√(3)"),
        ("12345", "12 345", "12,345"),
    ],
)
def test_spellings_of_the_same_answer(spellings):
    assert {normalise(each) for each in spellings} == {normalise(spellings[0])} != {""}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,2", "12"),
        ("32, 349", "32349"),
        ("-5", "5"),
        ("0.55", "0.5"),
        ("10", "1"),
        ("100", "10.0"),
        (r"\leftarrow", "arrow"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
        ("(1,2)", "[1,2]"),
        ("2x", "2y"),
        ("2 1/3", "21/3"),
        ("3 5", "35"),
        ("12, 345", "12,345"),
    ],
)
def test_different_answers_stay_different(one, other):
    assert normalise(one) != normalise(other)


def test_an_answer_is_not_right_for_being_empty():
    assert not equal("$$", r"\boxed{}")
    assert not equal("5", "")


def test_the_reference_answer_may_be_marked():
    assert reference_answer("a lot of $text$\n#### 18") == "18"
    assert reference_answer(r"so it is $\boxed{7}$") == "7"
    assert reference_answer("the answer is 3") == "the answer is 3"
    assert equal("$1/2$", r"\boxed{\frac12}")


def test_what_is_only_an_answer():
    bare = ["p - q", "Evelyn", r"\cot x", "18", r"15\text{ square miles}", "(1, 2) and 3"]
    prose = ["it is 5", "Therefore 5", "5\n6", "", "...", "1" * (MAX_ANSWER_LENGTH + 1)]
    assert [each for each in bare + prose if is_bare(each)] == bare


@pytest.mark.parametrize(
    "text",
    [
        "9" * 200_000,
        r"\boxed{" * 20_000,
        r"\boxed{" + "{" * 100_000 + "}" * 100_000 + "}",
        "{" * 200_000,
        "the answer is " * 15_000,
        "answer" + " " * 200_000,
        "1,000" * 40_000,
        "." * 200_000,
        r"\frac" * 40_000,
        "\x00\udcff",
        "the answer is " + "1 + " * 50_000,
        "the answer is " + "1 a b + 2 c d = " * 10_000,
        "the answer is " + "1, " * 50_000,
        "√" * 100_000,
        "1 " * 100_000,
        "1_" * 100_000,
    ],
)
def test_whatever_a_model_writes_is_read_quickly(text):
    began = time.monotonic()
    assert last_boxed(text) is None
    assert not equal("5", text)
    assert len(normalise(text)) <= 2 * MAX_ANSWER_LENGTH
    assert time.monotonic() - began < 2


@needs("MATH500.json")
@pytest.mark.parametrize(
    "form", ["{}", "... \\boxed{{{}}}.", "So $\\boxed{{{}}}$", "The answer is {}."]
)
def test_every_answer_of_math500_is_right_for_itself_and_no_other(form):
    answers = math_answers()
    assert [each for each in answers if not equal(each, form.format(each))] == []
    shifted = zip(answers, answers[7:] + answers[:7], strict=True)
    assert sum(equal(gold, form.format(other)) for gold, other in shifted) < 10


@needs("gsm8k_test.jsonl")
def test_every_solution_of_gsm8k_is_right():
    solutions = [each["answer"] for each in read_lines("gsm8k_test.jsonl")]
    assert len(solutions) == 1319
    assert all(equal(each.rpartition("#### ")[2], each) for each in solutions)
