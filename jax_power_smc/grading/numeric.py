"""When two numbers are equal.

Math-Verify rounds both to a number of decimal places, so to it all numbers below 1e-6 are equal,
and 2^-99 is 2^-98. Here integers and fractions are equal only if they are the same, and other
numbers if they differ by at most 1e-6 of their size.

Math-Verify has no option for that, and it compares numbers deep inside lists, intervals and
matrices. So its module ``grader`` is loaded a second time, and one function is replaced in that
private copy; ``math_verify`` itself stays as it is.
"""

import functools
import importlib.util
import itertools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from sympy import Add, Eq, Expr, Float, I, Integer, Mul, Number, Pow, Rational, Symbol

# Other values of Math-Verify's ``float_rounding``, instead of a number of decimal places:
# relative to the size of the numbers, or exact, to keep different numbers apart.
RELATIVE = "relative"
EXACT = "exact"

# 0.333333 is still 1/3.
_TOLERANCE = 1.000001e-6
# Roots and functions are evaluated to 40 digits, and rounding errors are far smaller than this.
_DIGITS = 40
_ROUNDING = 1e-25
# Where expressions with variables are compared; unlikely to be special for any of them.
_POINTS = ("0.7312903", "1.6180321", "2.9171717", "-0.5733919", "-1.8310913", "-3.2319191")


def _private_copy(name: str) -> ModuleType:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_grader: Any = _private_copy("math_verify.grader")
_equal_in_decimals: Callable[..., bool] = _grader.sympy_numeric_eq


def verify(reference: Any, answer: Any, rounding: int | str, **options: Any) -> bool:
    """Math-Verify's ``verify`` without a time limit, and with numbers compared as above.

    Args:
      reference, answer: expressions of Math-Verify's ``parse``.
      rounding: ``RELATIVE``, ``EXACT``, or Math-Verify's number of decimal places.
      options: Math-Verify's "strict" and "allow_set_relation_comp".
    """
    pair = reference, answer
    # x = 1 and x = 2 as 1 and 2: the difference of two equations hides the numbers' size.
    if all(isinstance(each, Eq) and isinstance(each.lhs, Symbol) for each in pair):
        pair = (reference.rhs, answer.rhs) if reference.lhs == answer.lhs else pair
    equal = _grader.verify(*pair, float_rounding=rounding, timeout_seconds=None, **options)
    return bool(equal)


def _equal(a: Any, b: Any, float_rounding: int | str, numeric_precision: int) -> bool:
    """Takes the place of ``sympy_numeric_eq``."""
    are_expressions = isinstance(a, Expr) and isinstance(b, Expr)
    if not (isinstance(float_rounding, str) and are_expressions):  # it calls this for each element
        return _equal_in_decimals(a, b, float_rounding, numeric_precision)
    whole = functools.partial(_grader.is_atomic_or_pct_atomic, atomic_type=Integer)
    if whole(a) and whole(b):  # 9% is 9
        return _equal_in_decimals(a, b, 0, numeric_precision)
    if a.free_symbols or b.free_symbols:
        return _equal_at_points(a, b, _equal_in_decimals(a, b, 6, numeric_precision))
    return _close(a, b, exact=float_rounding == EXACT)


_grader.sympy_numeric_eq = _equal


def _close(a: Expr, b: Expr, exact: bool) -> bool:
    a, b = (_grader.safe_sympy_doit(_rational(each, exact)) for each in (a, b))
    if isinstance(a, Rational) and isinstance(b, Rational):
        return bool(a == b)
    decimal = a.atoms(Float) or b.atoms(Float)
    return _near(a.evalf(_DIGITS), b.evalf(_DIGITS), _TOLERANCE if decimal else _ROUNDING)


def _near(a: Expr, b: Expr, tolerance: float) -> bool:
    if not (a.is_finite and b.is_finite):  # such as infinity, or 1/0
        return bool(a == b)
    try:
        return bool(abs(a - b) <= tolerance * max(abs(a), abs(b)))
    except TypeError:  # one of them has no numeric value
        return bool(a == b)


def _rational(number: Expr, exact: bool) -> Expr:
    """1000001.0 as 1000001, which differs from 1000000; if ``exact``, also 0.25 as 1/4."""
    floats = (each for each in number.atoms(Float) if exact or float(each).is_integer())
    return number.xreplace({each: Rational(str(each)) for each in floats})


def _equal_at_points(a: Expr, b: Expr, same: bool) -> bool:
    """Whether two expressions with variables are equal; ``same`` is Math-Verify's opinion.

    Math-Verify calls expressions equal whose coefficients are small, and sqrt(1/n) different from
    1/sqrt(n), because they differ for negative n, where neither is real.
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
            continue  # neither is a real number here
        if not _near(one, other, 1e-12):
            return False
        compared += 1
    return same or compared > 1


def _is_algebraic(expression: Expr) -> bool:
    """Whether it consists of real sums, products and powers, with a root among them."""
    parts = [*expression.atoms(Add, Mul, Pow), expression]
    return (
        not expression.has(I)
        and all(isinstance(part, Add | Mul | Pow | Number | Symbol) for part in parts)
        and any(isinstance(part, Pow) and not part.exp.is_integer for part in parts)
    )
