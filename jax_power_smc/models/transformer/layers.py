"""The layers of the transformer: norms, attention with its projections, the gated MLP.

They serve all families of ``families``: what a family lacks is ``None``.

Letters: M rows (particles, or positions of prompts), D hidden size, K key/value heads, G query
heads per key/value head, H head dimension, F MLP width, S prompt length.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jax_power_smc.models.transformer import attention
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.rope import Rope
from jax_power_smc.models.transformer.tensor_parallel import UNSHARDED_MODEL, TensorParallel

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def _dot(
    contraction: str, x: jax.Array, weight: jax.Array, parallel: TensorParallel = UNSHARDED_MODEL
) -> jax.Array:
    """A matrix product accumulated in float32 and returned in the dtype of ``x``.

    If the contracted axes are sharded over the devices of ``parallel``, the partial sums are added
    in float32.
    """
    out = jnp.einsum(contraction, x, weight, preferred_element_type=jnp.float32)
    return parallel.sum(out).astype(x.dtype)


def times(x: jax.Array, factor: float) -> jax.Array:
    """``factor * x``, with the factor first rounded to the dtype of ``x``, as in the references."""
    return x if factor == 1.0 else x * jnp.asarray(factor, x.dtype)


def _add(x: jax.Array, bias: nnx.Param | None) -> jax.Array:
    return x if bias is None else x + bias[...][None]


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axes, with a learned scale, computed in float32.

    Args:
      shape: of the scale; these axes are normalised together.
      eps: added to the mean square.
      dtype: of the scale.
      offset: whether 1 is added to the scale and the product is computed in float32 too.
      parallel: the devices over which the normalised axes are sharded.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        eps: float,
        dtype: Any,
        offset: bool,
        parallel: TensorParallel = UNSHARDED_MODEL,
    ) -> None:
        self.scale = nnx.Param((jnp.zeros if offset else jnp.ones)(shape, dtype))
        self.eps, self.offset, self.parallel = eps, offset, parallel

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., *shape] -> the same shape."""
        wide, scale = x.astype(jnp.float32), self.scale[...]
        axes = tuple(range(-scale.ndim, 0))
        square = jnp.mean(wide * wide, axis=axes, keepdims=True)
        square = self.parallel.sum(square) / self.parallel.size  # equal parts
        inverse = jax.lax.rsqrt(square + self.eps)
        scale = scale.reshape((1,) * (x.ndim - scale.ndim) + scale.shape)
        if self.offset:
            return (wide * inverse * (1.0 + scale.astype(jnp.float32))).astype(x.dtype)
        return (wide * inverse).astype(x.dtype) * scale


def make_norm(
    config: TransformerConfig,
    shape: tuple[int, ...],
    dtype: Any,
    parallel: TensorParallel = UNSHARDED_MODEL,
) -> RMSNorm:
    """The config's norm over axes of this shape."""
    return RMSNorm(shape, config.norm_eps, dtype, config.of_family.norm_offset, parallel)


def _normalised(norm: RMSNorm | None, x: jax.Array) -> jax.Array:
    return x if norm is None else norm(x)


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
        self.query = random_weight(rngs, (d, k, g, h), d, dtype)
        self.key = random_weight(rngs, (d, k, h), d, dtype)
        self.value = random_weight(rngs, (d, k, h), d, dtype)
        self.out = random_weight(rngs, (k, g, h, d), k * g * h, dtype)
        bias = family.qkv_bias
        self.query_bias = nnx.Param(jnp.zeros((k, g, h), dtype)) if bias else None
        self.key_bias = nnx.Param(jnp.zeros((k, h), dtype)) if bias else None
        self.value_bias = nnx.Param(jnp.zeros((k, h), dtype)) if bias else None
        shapes = {"none": None, "head": ((h,), (h,)), "all": ((k, g, h), (k, h))}[family.qk_norm]
        over = parallel if family.qk_norm == "all" else UNSHARDED_MODEL
        self.query_norm = None if shapes is None else make_norm(config, shapes[0], dtype, over)
        self.key_norm = None if shapes is None else make_norm(config, shapes[1], dtype, over)
        self.window = config.window(layer)
        self.scale, self.softcap = config.query_scale, config.attention_softcap
        theta, scaling = config.rope_theta, config.rope_scaling
        if self.window is not None and config.local_rope_theta is not None:
            theta, scaling = config.local_rope_theta, None
        self.rope = Rope(theta, scaling, config.max_positions)

    def project(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [M, D] at positions [M] -> q [M, K, G, H], k [M, K, H], v [M, K, H]."""
        q = _add(_dot("md,dkgh->mkgh", x, self.query[...]), self.query_bias)
        k = _add(_dot("md,dkh->mkh", x, self.key[...]), self.key_bias)
        v = _add(_dot("md,dkh->mkh", x, self.value[...]), self.value_bias)
        q = self.rope.rotate(_normalised(self.query_norm, q), positions)
        return q, self.rope.rotate(_normalised(self.key_norm, k), positions), v

    def prefill(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Attention within one sequence: q [S, K, G, H]; k, v [S, K, H] -> [S, K, G, H]."""
        return attention.causal_attention(q, k, v, self.scale, self.softcap, self.window)

    def in_window(self, age: jax.Array) -> jax.Array:
        """[...] bool: whether a token of this age (0 for the newest) is attended to."""
        return jnp.ones(age.shape, bool) if self.window is None else age < self.window


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
            return None if name is None else make_norm(config, (d,), dtype)

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
        y = _dot("mkgh,kghd->md", attended, self.attention.out[...], self.parallel)
        x = self._add(x, _normalised(self.after_attention_norm, y))
        y = _normalised(self.mlp_norm, x)
        gate = _ACTIVATIONS[self.activation](_dot("md,df->mf", y, self.gate[...]))
        wide = gate * _dot("md,df->mf", y, self.up[...])
        y = _dot("mf,fd->md", wide, self.down[...], self.parallel)
        return self._add(x, _normalised(self.after_mlp_norm, y))

    def _add(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return x + times(y, self.residual_multiplier)


def random_weight(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, dtype: Any) -> nnx.Param:
    """A random weight of this shape, whose products with unit-variance inputs have variance 1."""
    noise = jax.random.normal(rngs.params(), shape, jnp.float32) * (fan_in**-0.5)
    return nnx.Param(noise.astype(dtype))
