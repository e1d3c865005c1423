"""Checks of arguments: integers, numbers, names, keys, prompts and their ids.

Each returns a copy of the value as plain Python or host data, whatever kind of number or array was
passed; each failure is a ValueError, one sentence with the value and what is allowed.
"""

import math
import operator
from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc.core.prng import KEY_IMPL, LARGEST_PROMPT_ID

# Counts are int32 on the device.
LARGEST_INTEGER = 2**31 - 1


def shown(value: Any, most: int = 80) -> str:
    """``repr`` for an error message, cut if the value is a long one."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def as_integer(value: Any) -> int | None:
    """The value as an int if it is an integer of Python, NumPy or JAX and not a bool; else None."""
    if isinstance(value, bool) or getattr(value, "shape", ()) != ():
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def as_number(value: Any) -> int | float | None:
    """The value as an int or a float if it is a finite real number; else None."""
    whole = as_integer(value)
    if whole is not None:
        return whole
    kind: Any = getattr(value, "dtype", None)
    is_real = isinstance(value, float) or (
        isinstance(value, np.generic | np.ndarray | jax.Array)
        and not isinstance(value, jax.core.Tracer)
        and value.shape == ()
        and jnp.issubdtype(kind, jnp.floating)
    )
    if not is_real:
        return None
    real = float(value)
    return real if math.isfinite(real) else None


def integer(name: str, value: Any, *, at_least: int, at_most: int | None = LARGEST_INTEGER) -> int:
    """The value if it is an integer in [at_least, at_most]; None is no upper bound."""
    whole = as_integer(value)
    if whole is None or whole < at_least:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {at_least}.")
    if at_most is not None and whole > at_most:
        most = "2^31 - 1" if at_most == LARGEST_INTEGER else at_most
        raise ValueError(f"{name} is {value!r}; it must be an integer of at most {most}.")
    return whole


def index(name: str, value: Any, size: int) -> int:
    """The value as an int; IndexError unless it lies in [0, size)."""
    whole = as_integer(value)
    if whole is None:
        raise ValueError(f"{name} is {value!r}; it must be an integer.")
    if not 0 <= whole < size:
        raise IndexError(f"{name} is {whole}; it must lie in [0, {size}).")
    return whole


def number(
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> int | float:
    """The value if it is a finite number within the given bounds."""
    bounds: list[tuple[str, float, Callable[[float, float], bool]]] = [
        (words, bound, holds)
        for words, bound, holds in (
            ("at least", at_least, operator.ge),
            ("greater than", above, operator.gt),
            ("at most", at_most, operator.le),
            ("less than", below, operator.lt),
        )
        if bound is not None
    ]
    real = as_number(value)
    if real is None or not all(holds(real, bound) for _, bound, holds in bounds):
        allowed = " and ".join(f"{words} {bound}" for words, bound, _ in bounds)
        of = "of " if allowed.startswith("at ") else ""
        wanted = f"a finite number {of}{allowed}".rstrip()
        raise ValueError(f"{name} is {value!r}; it must be {wanted}.")
    return real


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raises ValueError unless the value is one of the allowed names."""
    names = list(allowed)
    if value not in names:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(names)}.")


def listed(name: str, value: Any) -> Sequence[Any]:
    """The value if it is a tuple or a list."""
    if not isinstance(value, tuple | list):
        raise ValueError(f"{name} is {value!r}; it must be a tuple.")
    return value


def seeds(name: str, values: Any) -> None:
    """Raises ValueError unless the values are distinct seeds of at most 31 bits, at least one."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name} is {values!r}; it must be a tuple of integers.")
    if not values:
        raise ValueError(f"{name} is {values!r}; at least one seed is needed.")
    for index, seed in enumerate(values):
        # JAX silently drops the upper bits of a larger one.
        integer(f"{name}[{index}]", seed, at_least=0)
    if len(set(values)) < len(values):
        raise ValueError(
            f"{name} is {tuple(values)}; they must differ, because equal seeds give equal results."
        )


def key(value: Any) -> jax.Array:
    """The value if it is a single key of implementation ``KEY_IMPL``."""
    is_array = isinstance(value, jax.Array)
    if not is_array or not jnp.issubdtype(value.dtype, jax.dtypes.prng_key) or value.shape != ():
        got = f"an array {value.dtype}{list(value.shape)}" if is_array else repr(value)
        raise ValueError(f"key is {got}; it must be a single key made by jax.random.key(seed).")
    implementation = str(jax.random.key_impl(value))
    if implementation != KEY_IMPL:
        raise ValueError(
            f"key has the implementation {implementation}, with which prompts are not "
            f'independent; make it with jax.random.key(seed, impl="{KEY_IMPL}").'
        )
    if value.is_deleted():
        raise ValueError("key has been deleted or donated; pass one that has not.")
    if not value.committed:
        return value
    # A key committed to a device could not be combined with others.
    data: Any = np.asarray(jax.random.key_data(value))
    return jax.random.wrap_key_data(data, impl=KEY_IMPL)


def prompt(index: int, value: Any, vocab_size: int) -> np.ndarray:
    """A copy of the prompt as int32 [S] if it is a non-empty list of token ids."""
    if isinstance(value, str):
        raise ValueError(f"prompt {index} is a string; prompts are lists of token ids.")
    ids = as_array(value)
    if ids is not None and ids.shape == (0,):
        raise ValueError(f"prompt {index} is empty; at least one token is needed.")
    if ids is None or ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"prompt {index} is {value!r}; a prompt is a list of integers.")
    if ids.min() < 0 or ids.max() >= vocab_size:
        bad = int(ids[(ids < 0) | (ids >= vocab_size)][0])
        raise ValueError(f"prompt {index} has token id {bad}; ids must lie in [0, {vocab_size}).")
    return np.array(ids, np.int32)


def length(prompt: Any) -> int:
    """S of a prompt that has not been checked; 0 if it has no length."""
    ids = None if isinstance(prompt, str) else as_array(prompt)
    return 0 if ids is None or ids.ndim == 0 else len(ids)


def as_array(value: Any) -> np.ndarray | None:
    """The value as a NumPy array; None if it cannot be one."""
    if not isinstance(value, Sized):
        return None
    try:
        return np.asarray(value)
    except Exception:  # ragged lists, deleted arrays, and whatever else it may hold
        return None


def prompt_ids(values: Any, num_prompts: int) -> list[int]:
    """One id per prompt: those given, or the list indices for None."""
    if values is None:
        return list(range(num_prompts))
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"prompt_ids is {values!r}; it must be a list of integers.")
    given = list(values)
    if len(given) != num_prompts:
        raise ValueError(
            f"prompt_ids has {len(given)} entries for {num_prompts} prompts; give one for each."
        )
    ids = []
    for value in given:
        whole = as_integer(value)
        if whole is None or not 0 <= whole <= LARGEST_PROMPT_ID:
            raise ValueError(f"prompt_ids has {value!r}; ids are integers in [0, 2^63).")
        ids.append(whole)
    return ids


def settle(instance: Any, **values: Any) -> None:
    """Sets fields of a frozen dataclass to their checked values."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)
