"""The layers of the transformer: norms, attention with its projections, the gated MLP.

They serve all families of ``families``: what a family lacks is ``None``.

All weights are matrices with flat head axes: XLA lays weights [D, K, G, H] out anew, for TPUs once
per program (1.65 GB of temporaries for Qwen2.5-7B) and for GPUs in every step.

Letters: M tokens, D hidden size, K key/value heads, G query heads per key/value head, H head
dimension, F MLP width.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jax_power_smc.models.transformer.attention import Scoring
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.precision import wide
from jax_power_smc.models.transformer.rope import Rope
from jax_power_smc.models.transformer.tensor_parallel import UNSHARDED_MODEL, TensorParallel

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def _dot(x: jax.Array, weight: nnx.Param, parallel: TensorParallel = UNSHARDED_MODEL) -> jax.Array:
    """x [M, A] times a weight [A, B], accumulated in ``wide`` and returned in the dtype of ``x``.

    If the contracted axis is sharded over the devices of ``parallel``, the partial sums are added
    before they are rounded.
    """
    out = jnp.dot(x, weight[...], preferred_element_type=wide(x.dtype))
    return parallel.sum(out).astype(x.dtype)


def times(x: jax.Array, factor: float) -> jax.Array:
    """``factor * x``, with the factor first rounded to the dtype of ``x``, as in the references."""
    return x if factor == 1.0 else x * jnp.asarray(factor, x.dtype)


def _add(x: jax.Array, bias: nnx.Param | None) -> jax.Array:
    return x if bias is None else x + bias[...][None]


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, with a learned scale, computed in ``wide``.

    Args:
      config: gives epsilon, and whether 1 is added to the scale and the product is wide too.
      size: of the axis.
      dtype: of the scale.
      parallel: the devices over which the axis is sharded.
    """

    def __init__(
        self,
        config: TransformerConfig,
        size: int,
        dtype: Any,
        parallel: TensorParallel = UNSHARDED_MODEL,
    ) -> None:
        self.eps, self.offset = config.norm_eps, config.of_family.norm_offset
        self.scale = nnx.Param((jnp.zeros if self.offset else jnp.ones)((size,), dtype))
        self.parallel = parallel

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., size] -> the same shape."""
        full, scale = x.astype(wide(x.dtype)), self.scale[...]
        square = jnp.mean(full * full, axis=-1, keepdims=True)
        square = self.parallel.sum(square) / self.parallel.size  # equal parts
        normal = full * jax.lax.rsqrt(square + self.eps)
        scale = scale.reshape((1,) * (x.ndim - 1) + scale.shape)
        if self.offset:
            return (normal * (1.0 + scale.astype(full.dtype))).astype(x.dtype)
        return normal.astype(x.dtype) * scale


def _normalised(norm: RMSNorm | None, x: jax.Array) -> jax.Array:
    return x if norm is None else norm(x)


def _headwise(norm: RMSNorm | None, x: jax.Array) -> jax.Array:
    """x [M, A], normalised in pieces of the norm's size: each head by itself, or all together."""
    if norm is None:
        return x
    return norm(x.reshape(x.shape[0], -1, norm.scale.shape[0])).reshape(x.shape)


class Attention(nnx.Module):
    """Grouped-query attention of one layer: its projections, rotary embedding, scale and window."""

    def __init__(
        self,
        config: TransformerConfig,
        layer: int,
        rngs: nnx.Rngs,
        dtype: Any,
        parallel: TensorParallel = UNSHARDED_MODEL,
    ) -> None:
        d, k, g, h = (
            config.hidden_size,
            config.num_kv_heads,
            config.group_size,
            config.head_dim,
        )
        family = config.of_family
        self.query = random_weight(rngs, (d, k * g * h), d, dtype)
        self.key = random_weight(rngs, (d, k * h), d, dtype)
        self.value = random_weight(rngs, (d, k * h), d, dtype)
        self.out = random_weight(rngs, (k * g * h, d), k * g * h, dtype)
        bias = family.qkv_bias
        self.query_bias = nnx.Param(jnp.zeros((k * g * h,), dtype)) if bias else None
        self.key_bias = nnx.Param(jnp.zeros((k * h,), dtype)) if bias else None
        self.value_bias = nnx.Param(jnp.zeros((k * h,), dtype)) if bias else None
        sizes = {"none": None, "head": (h, h), "all": (k * g * h, k * h)}[family.qk_norm]
        over = parallel if family.qk_norm == "all" else UNSHARDED_MODEL
        self.query_norm = None if sizes is None else RMSNorm(config, sizes[0], dtype, over)
        self.key_norm = None if sizes is None else RMSNorm(config, sizes[1], dtype, over)
        self.group, self.head_dim = g, h
        window = config.window(layer)
        self.scoring = Scoring(config.query_scale, config.attention_softcap, window)
        theta, scaling = config.rope_theta, config.rope_scaling
        if window is not None and config.local_rope_theta is not None:
            theta, scaling = config.local_rope_theta, None
        self.rope = Rope(theta, scaling, config.max_positions)

    def project(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [M, D] at positions [M] -> q [M, K, G, H], k [M, K, H], v [M, K, H]."""
        q = _headwise(self.query_norm, _add(_dot(x, self.query), self.query_bias))
        k = _headwise(self.key_norm, _add(_dot(x, self.key), self.key_bias))
        v = _add(_dot(x, self.value), self.value_bias)
        q = q.reshape(x.shape[0], -1, self.group, self.head_dim)
        k, v = (y.reshape(x.shape[0], -1, self.head_dim) for y in (k, v))
        return self.rope.rotate(q, positions), self.rope.rotate(k, positions), v


class Block(nnx.Module):
    """One layer: attention and a gated MLP, each with its norms, added to the residual stream."""

    def __init__(
        self,
        config: TransformerConfig,
        layer: int,
        rngs: nnx.Rngs,
        dtype: Any,
        parallel: TensorParallel = UNSHARDED_MODEL,
    ) -> None:
        d, f = config.hidden_size, config.mlp_size
        names = config.of_family.norms

        def norm_if(name: str | None) -> RMSNorm | None:
            return None if name is None else RMSNorm(config, d, dtype)

        self.attention_norm = norm_if(names.attention)
        self.after_attention_norm = norm_if(names.after_attention)
        self.attention = Attention(config, layer, rngs, dtype, parallel)
        self.mlp_norm = norm_if(names.mlp)
        self.after_mlp_norm = norm_if(names.after_mlp)
        self.gate = random_weight(rngs, (d, f), d, dtype)
        self.up = random_weight(rngs, (d, f), d, dtype)
        self.down = random_weight(rngs, (f, d), f, dtype)
        self.activation = config.of_family.activation
        self.residual_multiplier = config.residual_multiplier
        self.parallel = parallel

    def project(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The stream x [M, D] at positions [M] -> q, k, v of ``Attention.project``."""
        return self.attention.project(_normalised(self.attention_norm, x), positions)

    def finish(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """The stream x [M, D] after attention output [M, K, G, H] and MLP."""
        y = _dot(attended.reshape(x.shape[0], -1), self.attention.out, self.parallel)
        x = self._add(x, _normalised(self.after_attention_norm, y))
        y = _normalised(self.mlp_norm, x)
        gate = _ACTIVATIONS[self.activation](_dot(y, self.gate))
        # XLA for a TPU would fuse this with the next product: 18.7 in place of 16.8 million cycles
        # a step by its own estimate (Qwen2.5-7B, v6e, 16 rows; compiled, not run).
        inner = jax.lax.optimization_barrier(gate * _dot(y, self.up))
        y = _dot(inner, self.down, self.parallel)
        return self._add(x, _normalised(self.after_mlp_norm, y))

    def _add(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return x + times(y, self.residual_multiplier)


def random_weight(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, dtype: Any) -> nnx.Param:
    """A random weight of this shape, whose products with unit-variance inputs have variance 1."""
    noise = jax.random.normal(rngs.params(), shape, jnp.float32) * (fan_in**-0.5)
    return nnx.Param(noise.astype(dtype))
