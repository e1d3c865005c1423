"""The dtype of sums."""

from typing import Any

import jax.numpy as jnp


def wide(dtype: Any) -> Any:
    """The dtype in which sums over numbers of ``dtype`` are accumulated.

    float32; float64 for itself.
    """
    return dtype if dtype == jnp.float64 else jnp.dtype(jnp.float32)
