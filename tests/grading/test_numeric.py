"""When numbers are equal, and that Math-Verify itself is left as it is."""

import math_verify
import pytest
from math_verify import parse
from sympy import Matrix, Rational

from jax_power_smc.grading import numeric


def parsed(text):
    return parse(f"${text}$", parsing_timeout=None)


def math_verify_alone(one, other):
    return math_verify.verify(parsed(one), parsed(other), timeout_seconds=None)


@pytest.mark.parametrize(
    ("one", "other", "relative", "exact"),
    [
        ("0.0000001", "0.0000002", False, False),
        (r"\frac{1}{3}", "0.333333", True, False),
        (r"\frac{1}{4}", "0.25", True, True),
        ("1000000", "1000001.0", False, False),
        (r"\sqrt{12}", r"2\sqrt{3}", True, True),
        (r"x = 0.0000001", r"x = 0.0000002", False, False),
    ],
)
def test_numbers_are_compared_by_their_size(one, other, relative, exact):
    assert numeric.verify(parsed(one)[0], parsed(other)[0], numeric.RELATIVE) is relative
    assert numeric.verify(parsed(one)[0], parsed(other)[0], numeric.EXACT) is exact


def test_numbers_inside_matrices_too():
    one, other = Matrix([Rational(1, 10**7)]), Matrix([Rational(2, 10**7)])
    assert numeric.verify(one, one, numeric.RELATIVE)
    assert not numeric.verify(one, other, numeric.RELATIVE)


def test_math_verify_itself_is_not_changed():
    assert math_verify_alone("0.0000001", "0.0000002")
    assert math_verify.grader.sympy_numeric_eq.__module__ == "math_verify.grader"
    assert math_verify.grader is not numeric._grader
