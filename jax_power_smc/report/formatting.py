"""Formats of figures, for the terminal and the page."""

import math
from collections.abc import Callable, Sequence

NONE = "–"  # noqa: RUF001, an en dash


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent, without the sign."""
    if value is None:
        return NONE
    return f"{round(100 * value, digits) + 0.0:.{digits}f}"  # never -0.0


def share(value: float) -> str:
    """A share of the total weight in percent, which is 0 or 100 only if it is exactly that."""
    text = percent(value)
    if text == percent(0.0) and value > 0:
        return "< 0.1"
    return "> 99.9" if text == percent(1.0) and value < 1 - 1e-6 else text


def points(value: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def interval(ends: Sequence[float], form: Callable[[float], str]) -> str:
    """The ends of an interval: [-5.0, +7.5]."""
    return f"[{', '.join(map(form, ends))}]"


def count(value: float) -> str:
    """A mean of counts: 9.4, 138, 12,345."""
    return f"{value:.1f}" if 0 < value < 10 else f"{value:,.0f}"


def fixed(value: float | None, digits: int) -> str:
    """A number with this many digits after the point."""
    return NONE if value is None else f"{value:.{digits}f}"


def three_digits(value: float | None) -> str:
    """A positive number to three digits, never with an exponent: 0.0311, 3.21, 1,240."""
    if value is None:
        return NONE
    if value <= 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:,.{min(digits, 6)}f}"


def seconds(value: float) -> str:
    """A duration: 0.42 s, 31 s, 12 min, 3 h 20 min."""
    if value < 10:
        return f"{value:.2g} s" if value else "0 s"
    if value < 100:
        return f"{value:.0f} s"
    minutes = round(value / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60:,} h {minutes % 60} min"
