"""Checks of the fields of adapted models, and of what their functions return when traced."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_power_smc.core import checks


def check_sizes(vocab_size: Any, max_positions: Any) -> None:
    """Raises ValueError unless both are positive integers; ``max_positions`` may be None."""
    checks.integer("vocab_size", vocab_size, at_least=1)
    if max_positions is not None:
        checks.integer("max_positions", max_positions, at_least=1)


def check_position(position: Any, one_token: bool) -> None:
    """Raises ValueError unless ``position`` is as documented by ``CachedLM``."""
    names = (position,) if isinstance(position, str) else position
    if isinstance(names, tuple):
        is_known = bool(names) and all(isinstance(name, str) for name in names)
    else:
        is_known = names is None or callable(names)
    if not is_known:
        raise ValueError(
            f"position is {position!r}; allowed are a name, a tuple of names, a function and None."
        )
    if position is None and not one_token:
        raise ValueError(
            "position is None and one_token is False; prompts are padded, so a cache that cannot "
            "be rewound must read them token by token."
        )


def check_logits(logits: Any, tokens: jax.Array, vocab_size: int) -> None:
    """Raises ValueError unless logits are floating-point numbers [B, S, V], for tokens [B, S]."""
    shape = (*tokens.shape, vocab_size)
    dtype = getattr(logits, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jnp.floating) and logits.shape == shape:
        return
    got = type(logits).__name__ if dtype is None else f"{dtype}{list(logits.shape)}"
    raise ValueError(
        f"apply_fn returned {got} as the logits of tokens {list(tokens.shape)}; they must be "
        f"floating-point numbers {list(shape)}, where {vocab_size} is vocab_size."
    )


def check_same(before: Any, after: Any) -> None:
    """Raises ValueError unless a cache keeps its structure, shapes and dtypes."""
    old, new = str(jax.tree.structure(before)), str(jax.tree.structure(after))
    if old != new:
        raise ValueError(f"the cache was {old} and came back as {new}; it must keep its structure.")
    leaves = jax.tree_util.tree_leaves_with_path(before)
    for (path, x), y in zip(leaves, jax.tree.leaves(after), strict=True):
        one, other = (f"{v.dtype}{list(v.shape)}" for v in (jnp.asarray(x), jnp.asarray(y)))
        if one != other:
            raise ValueError(
                f"the cache's leaf {jax.tree_util.keystr(path)} was {one} and came back as "
                f"{other}; it must keep its shape and dtype."
            )
