"""From one prompt to a batch of them: the vmap over prompts, and the shapes of empty slots."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_power_smc.engine import decode


def over_prompts(function: Callable[..., Any], in_axes: tuple[Any, ...]) -> Callable[..., Any]:
    """``function(any_prompt, *args)`` of one prompt, for a batch of prompts.

    A batch of one bypasses vmap: size-1 batch dimensions cost XLA its in-place updates.
    """

    def batched(*args: Any) -> Any:
        sizes: list[int] = []
        _per_prompt(lambda x: sizes.append(x.shape[0]), args, in_axes)
        if sizes[0] > 1:
            mapped = functools.partial(function, decode.any_in_batch)
            return jax.vmap(mapped, in_axes=in_axes, axis_name="prompts")(*args)
        alone = _per_prompt(lambda x: x[0], args, in_axes)
        return jax.tree.map(lambda x: x[None], function(decode.this_prompt, *alone))

    return batched


def _per_prompt(function: Callable[[jax.Array], Any], args: Any, axes: Any) -> Any:
    """The function applied to the arrays that have an axis of prompts."""

    def below(axis: int | None, tree: Any) -> Any:
        return tree if axis is None else jax.tree.map(function, tree)

    return jax.tree.map(below, axes, args, is_leaf=lambda x: x is None)


def idle(entered: Any, slots: int) -> jax.Array:
    """Empty slots [P, ...]: all zero, so that no token is drawn (cap 0)."""
    if jnp.issubdtype(entered.dtype, jax.dtypes.prng_key):
        data = idle(jax.eval_shape(jax.random.key_data, entered), slots)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(entered))
    return jnp.zeros((slots, *entered.shape[1:]), entered.dtype)


def fit(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x [P, ...] padded with zeros to [P, *shape]."""
    if x.shape[1:] == shape:
        return x
    missing = [(0, 0), *((0, want - have) for want, have in zip(shape, x.shape[1:], strict=True))]
    return jnp.pad(x, missing)
