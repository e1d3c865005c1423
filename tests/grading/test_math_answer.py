"""Mathematics: equal answers are found, different ones are not taken for equal."""

import pytest

from jax_power_smc.grading import string_rule
from jax_power_smc.grading.math_answer import MAX_LEADERS, judge, merge
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


def test_equal_wrong_answers_are_merged():
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
    many = [(str(number), 2) for number in range(100, 100 + MAX_LEADERS)]
    # The last is equal to a leader, and then to an answer that came too late to be one.
    assert merge([*many, ("100.0", 1)])["100.0"] == "100"
    assert merge([*many, ("5", 1), ("5.0", 1)])["5.0"] == "5.0"
    assert merge([("5", 2), ("5.0", 1)])["5.0"] == "5"


def test_long_answers_are_texts():
    long = "1+" * 100 + "1"
    assert merge([(long, 1), ("101", 2)]) == {long: long, "101": "101"}


def boxed(*answers):
    return [rf"so \boxed{{{answer}}}." for answer in answers]


def stated(*answers):
    return [f"The answer is {answer}." for answer in answers]


def every_way(*answers):
    return [
        form.format(answer)
        for answer in answers
        for form in (
            "so \\boxed{{{}}}.",
            "The answer is {}.",
            "3 + 4\n#### {}",
            "It is:\n$\\boxed{{{}}}$",
        )
    ]


# kind -> gold, right responses, wrong responses.
KINDS = {
    "a list is not one of its parts": [
        ("3, 5, 7", every_way("3,5,7", "7, 5, 3"), every_way("7", "3", "3, 5", "3, 5, 8", "357")),
        ("15", every_way("15"), every_way("12, 15", "15, 12", "12,15", "12 and 15", "15, -15")),
        ("1,-2", every_way("1, -2", "-2,1"), every_way("1", "-2", "1,2", "-1,2")),
        ("12", stated("12, not 15", "12, because 5 + 7 = 12"), stated("12, 15 and 18 apples")),
        (
            "12",
            [r"\boxed{10}. No: \boxed{12}"],
            [r"\boxed{10} and \boxed{12}", r"\boxed{12}, \boxed{5}"],
        ),
        ("2", [], boxed(r"x=1 \text{ or } x=2", "x=1, x=2")),
        ("58,500", every_way("58500", r"58{,}500"), every_way("58, 500", "58,5007", "500", "58")),
    ],
    "a sign": [
        ("- 3", every_way("-3", "- 3", "\u22123", "\u20133"), every_way("3", "+3")),
        ("3", every_way("3", "+ 3"), every_way("- 3", "\u2212 3", "\u20133")),
        ("-3", stated("- 3 dollars each", "\u22123 degrees outside"), stated("3 degrees outside")),
        ("x - 3", every_way("x \u2013 3", "x \u2212 3"), every_way("x+3")),
        (r"-\frac{1}{2}", every_way("- 1/2", "\u22120.5"), every_way("1/2", "0.5")),
        ("(-1, 2)", every_way("(\u22121, 2)", "( - 1, 2)"), every_way("(1,2)", "(1,-2)")),
    ],
    "numbers by their size": [
        (
            "0.0000001",
            every_way("1e-7", r"1\times10^{-7}", ".0000001"),
            every_way("0.0000002", "0", "1e-8", "0.00000011"),
        ),
        (
            r"6.63\times10^{-34}",
            every_way("6.63e-34", r"6.63 \cdot 10^{-34}", "6.63 × 10^-34", "6.63×10⁻³⁴"),  # noqa: RUF001
            every_way(r"9.11\times10^{-31}", "6.63", "6.64e-34", r"6.63\times10^{34}"),
        ),
        (r"\frac{1}{2^{99}}", every_way("2^{-99}"), every_way(r"\frac{1}{2^{98}}", "0")),
        ("1/3", every_way("0.333333", "0.3333333"), every_way("0.3333", "0.33")),
        ("1000000", every_way("1,000,000", "10^6", "1000000.0"), every_way("1000001", "1000001.0")),
        (r"\frac{1000000}{3}", every_way("333333.333"), every_way("333333", "333334")),
        ("0", every_way("0.0"), every_way("0.0000001", "10^{-30}")),
        ("(0.0000001, 1)", every_way("(1e-7, 1)"), every_way("(0.0000002, 1)")),
        ("x = 6.63e-34", every_way("6.63e-34"), every_way("x = 9.11e-31")),
        (r"\frac{x}{2^{99}}", boxed("2^{-99}x"), boxed(r"\frac{x}{2^{98}}")),
        (r"\frac{9}{19}", [], boxed(r"\frac{10}{0}")),
    ],
    "mixed numbers": [
        (
            r"\frac{7}{3}",
            every_way("2 1/3", r"2\frac{1}{3}", "2⅓", r"2\ 1/3"),
            every_way("21/3", "7"),
        ),
        ("3.5", every_way("3 1/2", "3½", "7/2"), every_way("31/2", "1/2", "3", "2 1/2")),
        ("2 1/3", every_way("7/3", "2 1/3"), every_way("21/3", "7", "2/3")),
        ("-7/3", every_way("-2 1/3", "\u22122⅓"), every_way("-5/3", "2 1/3")),
        (
            "5/2",
            [*stated("2 1/2 cups of it"), "She needs 2 1/2 cups of it."],
            stated("1 1/2 cups of it"),
        ),
        ("1/2", [], [*stated("2 1/2 cups of it"), "She needs 2 1/2 cups of it."]),
        ("2", [], stated("2/3 cups of flour", "2 1/2 cups of flour")),
    ],
    "sums": [
        (
            "5",
            stated(
                "2 + 3 = 5 dollars",
                "2 + 3 = $5",
                "2 apples + 3 apples = 5 apples",
                "5 * 1 = 2 + 3 = 5 cents",
            )
            + stated("5 because 2 + 2 = 4 plus one", "5 (since 2+3=5)", "10 / 2 = 5 per person"),
            stated("2 + 3 = 6 dollars", "5 + 1 = 6 dollars", "5 + 2 dollars", "5/2 dollars each"),
        ),
        ("3", stated("3 dollars"), stated("3:30 in the afternoon")),
    ],
    "values with a unit": [
        (r"3\sqrt{2}", stated("3√2 cm long", "3 √2 cm long"), stated("3 cm long", "2√3 cm long")),
        (r"\sqrt{2}", stated("√2 metres or so"), stated("2 metres or so", "∛2 metres or so")),
        (r"3\pi", stated("3π cm long"), stated("3 cm long")),
        (r"\frac{3\pi}{4}", stated("3π/4 radians more"), stated("3 radians more", "3π radians")),
        ("100", stated("10² metres", "1 × 10² metres"), stated("10 metres", "10³ metres")),  # noqa: RUF001
        (r"6.02 \times 10^{23}", stated("6.02 × 10²³ atoms"), stated("6.02 × 10 atoms")),  # noqa: RUF001
        ("5000", stated("5 × 10³ kg of sand", "5·10³ kg of sand"), stated("5 × 10 kg of sand")),  # noqa: RUF001
        ("0.005", ["As $x=7$, the answer is 5·10⁻³ kg of sand."], stated("5·10³ kg of sand")),
        (r"2 - \sqrt{3}", stated("2 \u2212 √3 cm long"), stated("2 cm long", "2 + √3 cm long")),
        ("2.5", stated("2½ cups of it", "2 1/2 cups of it"), stated("½ cup of it", "2 cups of it")),
        ("52_8", stated("52₈ because of it"), stated("52₉ because of it")),
    ],
    "halves of the day": [
        (
            r"2:30 \text{ p.m.}",
            every_way(r"2:30 \text{ p.m.}", r"2:30\text{ PM}", "2:30 p.m.", "2:30pm", "2:30"),
            every_way(r"2:30 \text{ a.m.}", "2:30 a.m.", "2:30 AM", "3:30 p.m.", "3:30"),
        ),
        ("10:30", [*every_way("10:30 a.m.", "10:30"), *stated("10:30 a.m. on Monday")], []),
        ("7 p.m.", every_way("7 PM", "7"), [*every_way("7 a.m."), *stated("7 a.m. on Monday")]),
        (r"7\text{ am}", every_way("7 a.m."), every_way("7 pm")),
    ],
    "lists in words": [
        (
            "3, 5, 7",
            [
                "The answers are 3, 5, and 7.",
                "Answers: 3, 5 and 7",
                "The numbers are 3, 5, and 7.",
                *every_way(r"3, 5, \text{ and } 7", "3, 5, and 7"),
            ],
            ["The answers are 3, 5, and 8.", "The answers are 5, and 7."],
        ),
        ("15", ["The answers are 15.", "Of 12, 15 and 18 it is 15."], ["The numbers are 12, 15."]),
        ("15", ["They are 12 and 3, in all 15."], ["They are 12 and 15", "They are 12, and 15."]),
    ],
    "percentages": [
        (
            r"4\frac12\%",
            every_way(r"4.5\%", r"4\frac{1}{2}\%", "4.5%", "4 1/2%", "4½%", r"\frac92\%"),
            every_way(r"4.25\%", r"\frac12\%", r"4\%", "2%"),
        ),
        (
            r"4.5\%",
            every_way(r"4\frac12\%", r"4\frac{1}{2}\%", "4 1/2%", "4½%", r"4\dfrac{1}{2}\%"),
            every_way(r"5\frac12\%", r"\frac12\%", r"4\frac13\%"),
        ),
    ],
    "bases": [
        (
            "52_8",
            every_way("52_8", "52_{8}", "52₈", r"52_{\text{eight}}"),
            every_way("52_9", "52_80", "53_8"),
        ),
        (
            "52_8",
            [
                *every_way("52 (base 8)", "52 in base eight"),
                r"$\boxed{52}_8$",
                "It is 52 in base 8.",
                r"$\boxed{52}$ in base $8$",
                r"The answer is $52$ in base $8$.",
            ],
            [
                *every_way(
                    "52₉", "52 (base 9)", "52 base 9", "52 in base nine", r"52_{\text{nine}}"
                ),
                r"\boxed{52}_9",
                r"$\boxed{52}_{9}$.",
                r"\boxed{52}₉",
                r"$\boxed{52}$ in base $9$",
                "The answer is $52$ in base $9$.",
                "So it is 52 in base 9.",
                "52 (base 10)",
            ],
        ),
        ("52₈", every_way("52_8", "52₈"), every_way("52_9", "52₉")),
        ("101_2", every_way("101₂"), every_way("101₁₀", "101_{10}", "101 in base ten")),
        ("52", [*every_way("52₈", "52 (base 8)", "52 in base 8"), r"\boxed{52}_8"], []),
        # A base that the problem asks for may be left out.
        ("52_8", [*every_way("52"), *stated("52 (base 8)")], every_way("42", "53")),
        ("5", every_way("5_{10}"), []),
        ("101_2, 110_2", boxed("110_2, 101_2"), boxed("101_3, 110_3", "101_2")),
    ],
    "roots": [
        (r"2\sqrt{3}", every_way("2√3", "2√(3)", "√12"), every_way("3√2", "√3", "2∛3")),
        (r"\sqrt{1/n}", boxed(r"\frac{1}{\sqrt{n}}", r"\frac{\sqrt{n}}{n}"), boxed(r"\sqrt{n}")),
        (
            r"\frac{1}{\sqrt{n}}",
            boxed(r"\sqrt{\frac{1}{n}}"),
            boxed(r"-\sqrt{1/n}", r"\frac{1}{n}"),
        ),
        (r"\sqrt{x^2}", boxed("|x|"), boxed("x", "-x")),
    ],
    "reasoning is no answer": [
        (
            "7",
            [
                r"<think>\boxed{3}</think> The answer is 7.",
                "It is 3.</think>\n7",
                r"\boxed{7}<think>\boxed{3}",
            ],
            [
                r"<think>\boxed{7}",
                r"<think>\boxed{7}</think>",
                "#### 7</think>",
                "<think>7</think> It is 3.",
            ],
        ),
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_answers(kind):
    for gold, right, wrong in KINDS[kind]:
        assert [each for each in right if not judge(gold, each)["correct"]] == []
        assert [each for each in wrong if judge(gold, each)["correct"]] == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "1,-2"),
        ("12", "12,15"),
        ("1.2", "1,2"),
        ("12345", "12, 345"),
        ("35", "3 5"),
        ("0.0000001", "0.0000002"),
        ("0.333333", r"\frac{1}{3}"),
        ("1234567.1", "1234567.2"),
        (r"6.63\times10^{-34}", r"9.11\times10^{-31}"),
        (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
        ("52_8", "52_9"),
        ("52_8", "52"),
        ("2 1/3", "21/3"),
        ("3", "- 3"),
    ],
)
def test_different_numbers_are_not_merged(one, other):
    merged = merge([(string_rule.normalise(one), 2), (string_rule.normalise(other), 1)])
    assert len(set(merged.values())) == 2


def test_the_precision_option_counts_decimal_places():
    assert judge("0.0000001", r"\boxed{0.0000002}", {"precision": 6})["correct"]
    assert not judge("0.0000001", r"\boxed{0.0000002}", {"precision": 7})["correct"]


FORMS = ["so \\boxed{{{}}}.", "The answer is {}.", "so\n#### {}", "The answer is ${}$.", "{}"]


def wrong_verdicts(golds, neighbours, forms):
    """References not right for themselves, and those right for one of the next ones."""
    own = [
        (gold, form)
        for gold in sorted(set(golds))
        for form in forms
        if not judge(gold, form.format(gold))["correct"]
    ]
    others = [
        (gold, other)
        for shift in range(1, neighbours + 1)
        for gold, other in zip(golds, golds[shift:], strict=False)
        if other != gold and judge(gold, forms[shift % len(forms)].format(other))["correct"]
    ]
    return own, others


@needs("MATH500.json")
@pytest.mark.parametrize(
    ("neighbours", "forms"), [(1, FORMS[:2]), pytest.param(4, FORMS, marks=pytest.mark.slow)]
)
def test_references_of_math500_are_right_for_themselves_and_wrong_for_others(neighbours, forms):
    own, others = wrong_verdicts(math_answers(), neighbours, forms)
    assert own == []
    assert set(others) <= {("5", "x=5"), ("x=5", "5")}  # which are equal


@needs("gsm8k_test.jsonl")
def test_references_of_gsm8k_are_right_for_themselves_and_wrong_for_others():
    golds = [each["answer"].rpartition("#### ")[2] for each in read_lines("gsm8k_test.jsonl")]
    assert wrong_verdicts(golds, 2, FORMS[:3]) == ([], [])


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
