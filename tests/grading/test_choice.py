"""Multiple choice: the letter that a response states."""

import time

import pytest

from jax_power_smc.grading.choice import judge, parse_letter
from jax_power_smc.grading.verdict import Verdict


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        (r"so $\boxed{C}$.", "C"),
        (r"$\boxed{\text{(C)}}$", "C"),
        (r"\boxed{\textbf{(H)}\ 3}", "H"),
        (r"\boxed{C) 5 m}", "C"),
        ("it must be (C)", "C"),
        ("The answer is C", "C"),
        ("The answer is C because of x", "C"),
        ("Answer: C)", "C"),
        ("ANSWER: C", "C"),
        ("**Answer:** **D**", "D"),
        ("The correct answer is option B.", "B"),
        (r"The correct option is $\boxed{J}$", "J"),
        ("The answer to the question is:\n\n(B) foo", "B"),
        ("the answer is **(B)**", "B"),
        ("The answer is D, not C.", "D"),
        ("The answer is (A). Wait. The answer is (B).", "B"),
        (r"\boxed{A}. No, the answer is B.", "B"),
        (r"The answer is B. No, \boxed{A}.", "A"),
        ("The answer is A", "A"),
        ("The answer is A\nfoo", "A"),
        ("The answer is A because x", "A"),
        ("C", "C"),
        ("(C).", "C"),
        ("A bird flew", None),
        ("The answer is A bird", None),
        ("Answer: I think so", None),
        ("The answer is a B", None),
        ("The answer is Cat", None),
        ("The answer is not C", None),
        (r"\boxed{42}", None),
        (r"\boxed{K}", None),
        ("", None),
    ],
)
def test_parse_letter(response, letter):
    assert parse_letter(response) == letter


def test_the_plain_rule_wants_the_letter_in_a_box():
    assert judge("C", r"\boxed{C}") == Verdict("C", True, True)
    assert judge("C", r"\boxed{\text{(C)}}") == Verdict("C", True, False)
    assert judge("C", "The answer is C") == Verdict("C", True, False)
    assert judge("C", r"\boxed{D}") == Verdict("D", False, False)
    assert judge("C", "") == Verdict(None, False, False)


@pytest.mark.parametrize(
    "piece", ["answer is ", "answer ", "(", r"\boxed{", "answer to ", r"answer is \text{", "A "]
)
def test_whatever_a_model_writes_is_read_quickly(piece):
    began = time.monotonic()
    for text in (piece * 20_000, "answer is" + piece * 20_000 + "option" + piece * 20_000):
        assert parse_letter(text) == ("A" if text.startswith("answer isA") else None)
    assert time.monotonic() - began < 3
