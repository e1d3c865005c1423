"""A layer's step on its cache: new tokens are written into their rows in place, and attend.

``decode``, of one token per row, has an implementation for each kind of device; the leaves and the
layer's scoring decide which of them serve. All of them take the same arguments:

    q                      [R, K, G, H], or [R, B, K, G, H] for ``extend``
    new_keys, new_values   [R, K, H], or [R, B, K, H]
    keys, values           the layer's leaves, in a layout of ``kv_cache``
    position               [R] int32, or [R, B]
    count                  [R] int32, how many of each row's tokens are written

and return the attention, of the shape of q, and the leaves. Attention of tokens that do not count
may be anything.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jax_power_smc.models.transformer import attention, kernels, kv_cache
from jax_power_smc.models.transformer.attention import Scoring
from jax_power_smc.models.transformer.kv_cache import Layout

Result: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]


def extend(layout: Layout, scoring: Scoring, *arrays: jax.Array) -> Result:
    """Several tokens per row."""
    return _by_products(attention.extend, layout, scoring, *arrays)


def decode(layout: Layout, scoring: Scoring, *arrays: jax.Array) -> Result:
    """One token per row, by the best implementation for the platform."""
    q, _, _, keys, *_ = arrays
    by_platform: dict[str, Callable[..., Any]] = {
        "default": functools.partial(_by_products, attention.decode, layout, scoring)
    }
    if layout == "flat" and kernels.block_size(keys, q.shape[-1]) is not None:
        by_platform["tpu"] = functools.partial(_by_kernel, scoring)
    if layout == "flat" and _cudnn_serves(q, scoring):
        by_platform["cuda"] = functools.partial(by_library, "cudnn", scoring)
    if len(by_platform) == 1:
        return by_platform["default"](*arrays)
    return jax.lax.platform_dependent(*arrays, **by_platform)


def _by_products(
    attend: Callable[..., jax.Array],
    layout: Layout,
    scoring: Scoring,
    q: jax.Array,
    new_keys: jax.Array,
    new_values: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    position: jax.Array,
    count: jax.Array,
) -> Result:
    entry = kv_cache.entries(position, count, values.shape[-2])
    leaves = kv_cache.write(layout, keys, values, new_keys, new_values, entry)
    viewed = kv_cache.by_head(layout, *leaves, q.shape[-1])
    return attend(q, *viewed, position, scoring), *leaves


def _by_kernel(scoring: Scoring, q: jax.Array, *arrays: jax.Array) -> Result:
    return kernels.decode(
        scoring.scaled(q), *arrays, softcap=scoring.softcap, window=scoring.window
    )


def by_library(
    implementation: Any,
    scoring: Scoring,
    q: jax.Array,
    new_keys: jax.Array,
    new_values: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    position: jax.Array,
    count: jax.Array,
) -> Result:
    """By this implementation of ``jax.nn.dot_product_attention``, for flat leaves."""
    rows, heads, _, dim = q.shape
    entry = kv_cache.entries(position, count, values.shape[-2])
    leaves = kv_cache.write("flat", keys, values, new_keys, new_values, entry)
    out = jax.nn.dot_product_attention(
        q.reshape(rows, 1, -1, dim),
        *(leaf.reshape(rows, -1, heads, dim) for leaf in leaves),
        scale=scoring.scale,
        # A free row may have any position, also one beyond the end.
        key_value_seq_lengths=jnp.minimum(position + 1, jnp.int32(values.shape[-2])),
        implementation=implementation,
    )
    return out.reshape(q.shape), *leaves


def _cudnn_serves(q: jax.Array, scoring: Scoring) -> bool:
    """Whether cuDNN is there and has what the layer needs."""
    return (
        q.dtype.name in ("bfloat16", "float16")
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= 128
        and scoring.softcap is None
        and scoring.window is None
        and _has_cudnn()
    )


@functools.cache
def _has_cudnn() -> bool:
    """Whether JAX finds cuDNN, which it demands while it traces.

    The default backend does not say: programs are also compiled for GPUs that are not there.
    """
    like = jax.ShapeDtypeStruct((1, 1, 1, 64), jnp.bfloat16)
    attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    try:
        jax.eval_shape(attend, like, like, like)
    except (RuntimeError, NotImplementedError):
        return False
    return True
