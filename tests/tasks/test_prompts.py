"""What surrounds a question."""

from collections import Counter

import pytest

from jax_power_smc.tasks import prompts
from jax_power_smc.tasks.dataset import Example

SHOTS = [Example("1", "One?", "1", "It is 1."), Example("2", "Two?", "2", "It is 2.")]


def test_braces_of_question_and_template_are_literal():
    template = r"{question} Use \boxed{} and {x}."
    assert (
        prompts.write_prompt(template, r"\frac{1}{2} {}") == r"\frac{1}{2} {} Use \boxed{} and {x}."
    )


def test_worked_examples_come_first_in_the_same_template():
    assert prompts.write_prompt("Q: {question}\nA: ", "Three?", SHOTS[:1]) == (
        "Q: One?\nA: \nIt is 1.\n\nQ: Three?\nA: "
    )
    # No empty line where the template ends one.
    assert prompts.write_prompt("{question}\n", "Three?", SHOTS) == (
        "One?\nIt is 1.\n\nTwo?\nIt is 2.\n\nThree?\n"
    )


def test_a_solution_is_not_searched_for_the_place_of_the_question():
    shot = Example("1", "One?", "1", "{question}")
    assert prompts.write_prompt("{question}\n", "Two?", [shot]) == "One?\n{question}\n\nTwo?\n"


def test_options_are_lettered():
    assert prompts.write_options("Which?\n", ["a", "b", "c", "d"]) == (
        "Which?\n\nA) a\nB) b\nC) c\nD) d"
    )
    with pytest.raises(ValueError):
        prompts.write_options("Which?", ["a", "b"])


def test_orders_follow_from_the_text_and_are_equally_likely():
    # The same on every machine and forever: records of old runs stay valid.
    assert prompts.shuffled(4, "rec123") == prompts.shuffled(4, "rec123") == [1, 2, 0, 3]
    orders = [prompts.shuffled(4, f"rec{i}") for i in range(4800)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    for index in range(4):
        places = Counter(order.index(index) for order in orders)
        # 1200 expected, standard deviation 30.
        assert all(abs(places[place] - 1200) < 150 for place in range(4))
    # 200 expected of each of the 24 orders, standard deviation 14.
    assert all(130 < n < 270 for n in Counter(map(tuple, orders)).values())


@pytest.mark.parametrize("value", ["", "no place", 5, "{Question}"])
def test_an_invalid_template_is_refused(value):
    with pytest.raises(ValueError, match=r"config.prompt_format is .*; it must be None or a text"):
        prompts.check_template("config.prompt_format", value)


def test_our_templates_are_valid():
    for template in (None, prompts.QUESTION, prompts.MATH, prompts.CHOICE, prompts.CODE_CHAT):
        prompts.check_template("x", template)
