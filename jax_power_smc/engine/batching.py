"""From one prompt to a batch of them: the vmap over prompts, and predicates that stay scalars."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Whether a predicate [] holds for any prompt of the batch. Under vmap it must return an unbatched
# value, or the conditional on it would turn into a select that runs both branches.
AnyPrompt = Callable[[jax.Array], jax.Array]


def any_in_batch(predicate: jax.Array) -> jax.Array:
    """``AnyPrompt`` inside ``vmap(..., axis_name="prompts")``."""
    return jax.lax.pmax(predicate.astype(jnp.int32), "prompts") > 0


def this_prompt(predicate: jax.Array) -> jax.Array:
    """``AnyPrompt`` for a single prompt that is not vmapped."""
    return predicate


def over_prompts(function: Callable[..., Any], in_axes: tuple[Any, ...]) -> Callable[..., Any]:
    """``function(any_prompt, *args)`` of one prompt, for a batch of prompts.

    A batch of one bypasses vmap: size-1 batch dimensions cost XLA its in-place updates.
    """

    def batched(*args: Any) -> Any:
        sizes: list[int] = []
        _per_prompt(lambda x: sizes.append(x.shape[0]), args, in_axes)
        if sizes[0] > 1:
            mapped = functools.partial(function, any_in_batch)
            return jax.vmap(mapped, in_axes=in_axes, axis_name="prompts")(*args)
        alone = _per_prompt(lambda x: x[0], args, in_axes)
        return jax.tree.map(lambda x: x[None], function(this_prompt, *alone))

    return batched


def _per_prompt(function: Callable[[jax.Array], Any], args: Any, axes: Any) -> Any:
    """The function applied to the arrays that have an axis of prompts."""

    def below(axis: int | None, tree: Any) -> Any:
        return tree if axis is None else jax.tree.map(function, tree)

    return jax.tree.map(below, axes, args, is_leaf=lambda x: x is None)
