"""When two numbers are equal: Math-Verify compares them by so many digits behind the point.

It would take all numbers below 1e-6 for equal, and 2^-99 for 2^-98. Here whole numbers and
fractions are equal if they are the same, and others if they differ by at most 1e-6 of their size.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

from math_verify import grader
from sympy import Add, Eq, Expr, Float, I, Integer, Mul, Number, Pow, Rational, Symbol

# What ``float_rounding`` of Math-Verify may also be: not digits, but a part of the size.
RELATIVE = "relative"
# Equal to the last digit, for those who must not take one number for another.
EXACT = "exact"

# 0.333333 is still 1/3.
_TOLERANCE = 1.000001e-6
# Roots and functions are computed to 40 digits, so what differs by more is not the same.
_DIGITS = 40
_ROUNDING = 1e-25
# Points at which expressions with variables are compared; numbers that no expression is made for.
_POINTS = ("0.7312903", "1.6180321", "2.9171717", "-0.5733919", "-1.8310913", "-3.2319191")

_by_digits: Callable[..., bool] = grader.sympy_numeric_eq


def install() -> None:
    """Has Math-Verify compare numbers as told here, also in lists, intervals and matrices."""
    grader.sympy_numeric_eq = _equal


def assigned(one: Any, other: Any) -> tuple[Any, Any]:
    """x = 1 and x = 2 as 1 and 2: a difference of two equations hides how large numbers are."""
    if not (isinstance(one, Eq) and isinstance(other, Eq) and isinstance(one.lhs, Symbol)):
        return one, other
    return (one.rhs, other.rhs) if one.lhs == other.lhs else (one, other)


def _equal(a: Any, b: Any, float_rounding: int | str, numeric_precision: int) -> bool:
    if not isinstance(float_rounding, str):
        return _by_digits(a, b, float_rounding, numeric_precision)
    if not (isinstance(a, Expr) and isinstance(b, Expr)):  # matrices come back by their elements
        return _by_digits(a, b, float_rounding, numeric_precision)
    whole = functools.partial(grader.is_atomic_or_pct_atomic, atomic_type=Integer)
    if whole(a) and whole(b):  # 9% is 9
        return _by_digits(a, b, 0, numeric_precision)
    if a.free_symbols or b.free_symbols:
        return _equal_at_points(a, b, _by_digits(a, b, 6, numeric_precision))
    return _close(a, b, exact=float_rounding == EXACT)


def _close(a: Expr, b: Expr, exact: bool) -> bool:
    a, b = (grader.safe_sympy_doit(_rational(each, exact)) for each in (a, b))
    if isinstance(a, Rational) and isinstance(b, Rational):
        return bool(a == b)
    decimal = a.atoms(Float) or b.atoms(Float)
    return _near(a.evalf(_DIGITS), b.evalf(_DIGITS), _TOLERANCE if decimal else _ROUNDING)


def _near(a: Expr, b: Expr, tolerance: float) -> bool:
    if not (a.is_finite and b.is_finite):  # such as infinity, or 1/0
        return bool(a == b)
    try:
        return bool(abs(a - b) <= tolerance * max(abs(a), abs(b)))
    except TypeError:  # it has no value
        return bool(a == b)


def _rational(number: Expr, exact: bool) -> Expr:
    """1000001.0 as 1000001, which is not only near to 1000000; if ``exact``, also 0.25 as 1/4."""
    floats = (each for each in number.atoms(Float) if exact or float(each).is_integer())
    return number.xreplace({each: Rational(str(each)) for each in floats})


def _equal_at_points(a: Expr, b: Expr, same: bool) -> bool:
    """Whether expressions with variables are equal; ``same`` is what Math-Verify says.

    It takes expressions for equal whose factors are small, and sqrt(1/n) for another than
    1/sqrt(n), because for negative n, where neither is real, they differ.
    """
    algebraic = _is_algebraic(a) and _is_algebraic(b)
    if not same and not algebraic:
        return False
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    compared = 0
    for point in range(len(_POINTS)):
        values = itertools.islice(itertools.cycle(_POINTS), point, point + len(symbols))
        at = {symbol: Float(value, _DIGITS) for symbol, value in zip(symbols, values, strict=True)}
        one, other = (each.subs(at).evalf(_DIGITS) for each in (a, b))
        if not (isinstance(one, Number) or isinstance(other, Number)):
            continue  # not real, or not a number at all
        if not _near(one, other, 1e-12):
            return False
        compared += 1
    return same or compared > 1


def _is_algebraic(expression: Expr) -> bool:
    """Real sums, products and powers with a root among them."""
    parts = [*expression.atoms(Add, Mul, Pow), expression]
    return (
        not expression.has(I)
        and all(isinstance(part, Add | Mul | Pow | Number | Symbol) for part in parts)
        and any(isinstance(part, Pow) and not part.exp.is_integer for part in parts)
    )
