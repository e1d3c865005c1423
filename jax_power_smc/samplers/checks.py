"""Checks of declared values; each failure is one sentence with the value and what is allowed."""

from collections.abc import Iterable
from typing import Any

import numpy as np

# Counts are int32 on the device.
LARGEST_INTEGER = 2**31 - 1


def integer(name: str, value: Any, *, at_least: int) -> None:
    """Raises ValueError unless value is an integer from ``at_least`` to ``LARGEST_INTEGER``."""
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or value < at_least:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {at_least}.")
    if value > LARGEST_INTEGER:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at most 2^31 - 1.")


def number(
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
) -> None:
    """Raises ValueError unless value is a finite number within the bounds given."""
    bounds = []
    if at_least is not None:
        bounds.append(f"at least {at_least}")
    if above is not None:
        bounds.append(f"greater than {above}")
    if at_most is not None:
        bounds.append(f"at most {at_most}")
    is_number = isinstance(value, int | float | np.integer | np.floating)
    if (
        not is_number
        or isinstance(value, bool)
        or not np.isfinite(value)
        or (at_least is not None and value < at_least)
        or (above is not None and value <= above)
        or (at_most is not None and value > at_most)
    ):
        allowed = " ".join(["a finite number", " and ".join(bounds)]).strip()
        raise ValueError(f"{name} is {value!r}; it must be {allowed}.")


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raises ValueError unless value is one of the allowed names."""
    names = list(allowed)
    if value not in names:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(names)}.")


def seeds(name: str, values: Any) -> None:
    """Raises ValueError unless there are seeds, all different and within 31 bits."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name} is {values!r}; it must be a tuple of integers.")
    if not values:
        raise ValueError(f"{name} is {values!r}; at least one seed is needed.")
    for index, seed in enumerate(values):
        # JAX drops the upper bits of a larger one without a word.
        integer(f"{name}[{index}]", seed, at_least=0)
    if len(set(values)) < len(values):
        raise ValueError(
            f"{name} is {tuple(values)}; they must differ, because equal seeds give equal results."
        )
