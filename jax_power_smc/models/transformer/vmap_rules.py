"""What the ``custom_vmap`` rules of the kernels share."""

from typing import Any

import jax
import jax.numpy as jnp


def broadcast_unbatched(size: int, batched: Any, args: Any) -> Any:
    """Gives every array of ``args`` the leading batch axis that some of them have already.

    Args:
      size: of the batch axis.
      batched: a pytree with the structure of ``args``: whether each array has that axis.
      args: a pytree of arrays.
    """

    def broadcast(x: jax.Array, has_axis: bool) -> jax.Array:
        return x if has_axis else jnp.broadcast_to(x[None], (size, *x.shape))

    return jax.tree.map(broadcast, args, batched)
