"""The largest values of an array and the first indices of a mask, in forms that XLA runs well."""

import jax
import jax.numpy as jnp


def top_k(x: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The ``count`` largest values along the last axis and their indices (int32), largest first.

    The same as ``jax.lax.top_k``. XLA has a kernel for it on a CPU, which it uses only if nothing
    but slices that begin at the first result is read. A reader of the last result, for example, is
    merged with it and makes it sort everything instead, 18 times slower for 16 of 564 values (96
    rows, two CPU cores).
    """
    values, indices = jax.lax.top_k(x, count)
    if count < x.shape[-1]:
        # One for each: XLA aborts where a sort's two results go to one barrier together.
        values, indices = (jax.lax.optimization_barrier(y) for y in (values, indices))
    return values, indices.astype(jnp.int32)


def true_indices(mask: jax.Array, count: int, fill_value: int) -> jax.Array:
    """[count] int32, the indices of the first True values of mask [M], then ``fill_value``.

    ``jnp.nonzero`` scatters. On a CPU that takes up to twice as long as ``top_k`` of float32
    indices, which are exact up to 2^24, and three times as long to compile.
    """
    size = mask.shape[0]

    def scattered(mask: jax.Array) -> jax.Array:
        found = jnp.nonzero(mask, size=count, fill_value=fill_value)[0]
        return found.astype(jnp.int32)

    def sorted_out(mask: jax.Array) -> jax.Array:
        index = jnp.arange(size, dtype=jnp.float32)
        nearest = top_k(jnp.where(mask, -index, -jnp.inf), min(count, size))[0]
        found = jnp.where(nearest > -jnp.inf, -nearest, fill_value).astype(jnp.int32)
        return jnp.pad(found, (0, max(count - size, 0)), constant_values=fill_value)

    if size > 2**24:
        return scattered(mask)
    found: jax.Array = jax.lax.platform_dependent(mask, cpu=sorted_out, default=scattered)
    return found
