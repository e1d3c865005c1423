"""Multiple choice: the letter that a response states."""

import time

import pytest

from jax_power_smc.grading.base import Verdict
from jax_power_smc.grading.multiple_choice import judge, parse_letter


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


CHOOSE_C = [
    "C) 5 m",
    "**C) 5 m**",
    "C. 5 m",
    "Option C is correct.",
    "C is the correct answer.",
    "I choose C.",
    "C: 5 m",
    "(C) 5 m",
    "C",
    "**C**",
    "C.",
    "(C)",
    "$C$",
    "$\\text{C}$",
    "\\textbf{C}",
    "### C",
    "Option C",
    "Answer C",
    "Final Answer: C",
    "**Answer: C**",
    "Answer: **C**",
    "Answer: (C) 5 m",
    "Answer: $\\boxed{C}$",
    "The answer is: C.",
    "The correct answer is C) 5 m.",
    "The correct option is C",
    "The correct choice is **C**.",
    "My answer is C.",
    "My final answer is (C).",
    "So the answer is C: 5 m",
    "Therefore, the correct answer is option C.",
    "I would choose C.",
    "I'd go with C.",
    "I\u2019ll pick option C.",
    "We select option (C).",
    "I pick C because it is larger.",
    "I select C: 5 m",
    "C is correct.",
    "(C) is correct.",
    "**C** is the correct option.",
    "Option (C) is the right answer.",
    "C is the right choice.",
    "C is the best answer.",
    "C seems most likely.",
    "C must be correct.",
    "The best answer would be C.",
    "The answer should be C.",
    "The answer must be C.",
    "The answer has to be C.",
    "The right one is C.",
    "The correct letter is C.",
    "So, C.",
    "Therefore, C",
    "Thus: C",
    "Hence it is C.",
    "So it must be C.",
    "Answer = C",
    "Answer - C",
    "ANSWER: C",
    "answer: C",
    "Long reasoning here about A and B.\n\nC",
    "Reasoning (A) fails.\n\n**C) 5 m**",
    "Reasoning.\nSo option C is the correct one.",
    "Option A is incorrect. Option B is not correct. Option C is correct.",
    "A is wrong, B is not the correct answer; C is correct.",
    "Choice C is correct.",
    "**Correct answer: C**",
    "Correct Answer: C) 5 m",
    "**Final answer:** C) 5 m",
    "The answer to this question is C.",
    "Given this, I am going with C.",
    "<think>Answer: B</think>\n\n**C**",
    "Answer: B</think>**C**",
    "<think>the answer is A</think>The answer is C.",
    "\\boxed{C) 5 m}",
    "\\boxed{\\text{Option C}}",
    "\\boxed{\\text{C. 5 m}}",
    "C) 5 m\n\nBecause 2 + 3 = 5.",
    "The answer is **C) 5 m**",
    "It is option C that is correct: the answer is C",
    "A) 1 m\nB) 2 m\nC) 5 m\n\nThe answer is C.",
    "Out of all options, only C is correct.",
    "Statement C is true, so the answer is C.",
    "The correct answer is:\n\n**C**",
    "The correct answer is:\nC) 5 m",
    "<think>\\boxed{A}</think>\n$\\boxed{C}$",
]
CHOOSE_NONE = [
    "A) 1 m\nB) 2 m\nC) 5 m\nD) 7 m",
    "Option C is incorrect.",
    "C is not the correct answer.",
    "I would not choose C.",
    "<think>Answer: C",
    "<think>The answer is C</think>",
    "Please choose A, B, C or D.",
    "I choose between A and B.",
    "A bird is the correct animal",
    "I am the best.",
    "A is a letter",
    "The field B is large.",
    "I. Introduction\nJ. Smith",
    "A correct answer needs care.",
    "I answer A question",
    "I think so",
    "Not C",
    "The answer is not C.",
    "It is neither A nor B.",
    "I don't think C is correct.",
    "I can't choose C.",
    "A cat",
    "I choose a B",
]


@pytest.mark.parametrize("response", CHOOSE_C)
def test_many_ways_to_choose(response):
    assert judge("C", response).parsed == "C"


@pytest.mark.parametrize("response", CHOOSE_NONE)
def test_nothing_is_chosen(response):
    assert parse_letter(response) is None


def test_the_plain_rule_wants_the_letter_in_a_box():
    assert judge("C", r"\boxed{C}") == Verdict("C", True, True)
    assert judge("C", r"\boxed{\text{(C)}}") == Verdict("C", True, False)
    assert judge("C", "The answer is C") == Verdict("C", True, False)
    assert judge("C", r"\boxed{D}") == Verdict("D", False, False)
    assert judge("C", "") == Verdict(None, False, False)


@pytest.mark.parametrize(
    "piece",
    [
        *("answer is ", "answer ", "(", r"\boxed{", "answer to ", r"answer is \text{", "A "),
        *("I choose ", "not ", "so ", "c is ", "<think>", "- K) x\n"),
    ],
)
def test_whatever_a_model_writes_is_read_quickly(piece):
    began = time.monotonic()
    for text in (piece * 20_000, "answer is" + piece * 20_000 + "option" + piece * 20_000):
        assert parse_letter(text) == ("A" if text.startswith("answer isA") else None)
    assert time.monotonic() - began < 3
