"""Arrays without a batch axis get one; the others are left alone."""

import jax.numpy as jnp
import numpy as np

from jax_power_smc.models.transformer.vmap_rules import broadcast_unbatched


def test_only_arrays_without_the_batch_axis_are_broadcast():
    x, y = jnp.arange(6.0).reshape(3, 2), jnp.array([4, 5], jnp.int32)
    got = broadcast_unbatched(3, ([True, False], False), ([x, y], jnp.float32(7)))
    assert got[0][0] is x
    np.testing.assert_array_equal(got[0][1], [[4, 5]] * 3)
    np.testing.assert_array_equal(got[1], [7] * 3)
