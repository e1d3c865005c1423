"""Numbers of callers, who may hold them in NumPy or JAX, as Python's own.

Arithmetic on what a caller passed would keep its dtype: a product of int32 overflows without a
word, and one with a JAX number lives on the device.
"""

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def integer(name: str, value: Any, *, at_least: int, at_most: int | None = None) -> int:
    """The value as an int.

    Raises:
      ValueError: unless it is an integer scalar of Python, NumPy or JAX within the bounds.
    """
    whole = _index(value)
    if whole is None or whole < at_least:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {at_least}.")
    if at_most is not None and whole > at_most:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at most {at_most}.")
    return whole


def index(name: str, value: Any, size: int) -> int:
    """The value as an int that counts from 0.

    Raises:
      IndexError: unless it lies in [0, size).
      ValueError: unless it is an integer scalar of Python, NumPy or JAX.
    """
    whole = _index(value)
    if whole is None:
        raise ValueError(f"{name} is {value!r}; it must be an integer.")
    if not 0 <= whole < size:
        raise IndexError(f"{name} is {whole}; it must lie in [0, {size}).")
    return whole


def number(
    name: str,
    value: Any,
    allowed: str,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> float:
    """The value as a float.

    Raises:
      ValueError: unless it is a finite real scalar of Python, NumPy or JAX within the bounds; the
        last two are no allowed values themselves. ``allowed`` says in words what is.
    """
    real = _real(value)
    if not (math.isfinite(real) and real >= at_least and above < real < below):
        raise ValueError(f"{name} is {value!r}; it must be {allowed}.")
    return real


def _index(value: Any) -> int | None:
    try:
        # Of NumPy's and JAX's arrays only integers of shape [] are an index; a bool is one of
        # Python's integers, but nobody's number.
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _real(value: Any) -> float:
    """The value as a float; NaN for what is no real scalar."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        real = any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.integer, jnp.floating))
        known = real and value.shape == () and not isinstance(value, jax.core.Tracer)
    else:
        known = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return float(value) if known else math.nan
    except OverflowError:
        return math.nan
