"""A decoder-only transformer for particles: RMS norm, rotary positions, grouped queries, gated MLP.

One module for all families of ``families``: what a family lacks is ``None``. ``Transformer`` is the
Flax NNX module; ``TransformerLM`` is its face towards the decode engine, the ``LanguageModel``
protocol, written for one prompt.

Letters: P prompts, N particles, S prompt length, T capacity of the generated half, V vocabulary,
D hidden size, K key/value heads, G query heads per key/value head, H head dimension, F MLP width.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jax_power_smc.models import attention, ring
from jax_power_smc.models.config import TransformerConfig
from jax_power_smc.models.rope import Rope

# Not float64: products and norms are computed in float32.
DTYPES = ("float32", "bfloat16", "float16")


_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class PromptContext(NamedTuple):
    """What the particles of one prompt share.

    Attributes:
      keys: one [K, H, S] array per layer.
      values: one [K, S, H] array per layer.
      length: [] int32, number of prompt tokens that are not padding.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array


class ParticleCache(NamedTuple):
    """Keys and values of the generated tokens, one row per particle.

    Axes N and K are left out where they have size 1: under vmap XLA would copy such a cache
    several times a step instead of writing to it in place (tiny-reasoner, 96 prompts with N = 1,
    T = 384, CPU: 26 ms a step against 13). A cache without N is never moved.

    Attributes:
      keys: one [N, K, H, T] array per layer.
      values: one [N, K, T, H] array per layer.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


def _dot(contraction: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A matrix product accumulated in float32 and returned in the dtype of ``x``."""
    out = jnp.einsum(contraction, x, kernel, preferred_element_type=jnp.float32)
    return out.astype(x.dtype)


def _times(x: jax.Array, factor: float) -> jax.Array:
    """The factor is rounded to the dtype of ``x`` first, as the reference implementations do."""
    return x if factor == 1.0 else x * jnp.asarray(factor, x.dtype)


def _add(x: jax.Array, bias: nnx.Param | None) -> jax.Array:
    return x if bias is None else x + bias[...][None]


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axes, with a learned scale, computed in float32.

    Args:
      shape: of the scale, the axes that are normalised together.
      eps: added to the mean square.
      dtype: of the scale.
      offset: whether 1 is added to the scale, and the product is taken in float32 too.
    """

    def __init__(self, shape: tuple[int, ...], eps: float, dtype: Any, offset: bool) -> None:
        self.scale = nnx.Param((jnp.zeros if offset else jnp.ones)(shape, dtype))
        self.eps, self.offset = eps, offset

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., *shape] -> the same shape."""
        wide, scale = x.astype(jnp.float32), self.scale[...]
        axes = tuple(range(-scale.ndim, 0))
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=axes, keepdims=True) + self.eps)
        scale = scale.reshape((1,) * (x.ndim - scale.ndim) + scale.shape)
        if self.offset:
            return (wide * inverse * (1.0 + scale.astype(jnp.float32))).astype(x.dtype)
        return (wide * inverse).astype(x.dtype) * scale


def _norm(config: TransformerConfig, shape: tuple[int, ...], dtype: Any) -> RMSNorm:
    return RMSNorm(shape, config.norm_eps, dtype, config.of_family.norm_offset)


def _normalised(norm: RMSNorm | None, x: jax.Array) -> jax.Array:
    return x if norm is None else norm(x)


class Attention(nnx.Module):
    """Grouped-query attention of one layer: its projections, and what its scores are like."""

    def __init__(self, config: TransformerConfig, layer: int, rngs: nnx.Rngs, dtype: Any) -> None:
        d, k, g, h = (
            config.hidden_size,
            config.num_kv_heads,
            config.group_size,
            config.head_dim,
        )
        family = config.of_family
        self.query = _kernel(rngs, (d, k, g, h), d, dtype)
        self.key = _kernel(rngs, (d, k, h), d, dtype)
        self.value = _kernel(rngs, (d, k, h), d, dtype)
        self.out = _kernel(rngs, (k, g, h, d), k * g * h, dtype)
        bias = family.qkv_bias
        self.query_bias = nnx.Param(jnp.zeros((k, g, h), dtype)) if bias else None
        self.key_bias = nnx.Param(jnp.zeros((k, h), dtype)) if bias else None
        self.value_bias = nnx.Param(jnp.zeros((k, h), dtype)) if bias else None
        shapes = {"none": None, "head": ((h,), (h,)), "all": ((k, g, h), (k, h))}[family.qk_norm]
        self.query_norm = None if shapes is None else _norm(config, shapes[0], dtype)
        self.key_norm = None if shapes is None else _norm(config, shapes[1], dtype)
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
        """Of one sequence: q [S, K, G, H]; k, v [S, K, H] -> [S, K, G, H]."""
        return attention.causal_attention(q, k, v, self.scale, self.softcap, self.window)

    def seen(self, age: jax.Array) -> jax.Array:
        """[...] bool: whether a token of this age (0 for the newest) is within the window."""
        return jnp.ones(age.shape, bool) if self.window is None else age < self.window


class Block(nnx.Module):
    """One layer: attention and a gated MLP, each with its norms, added to the stream."""

    def __init__(self, config: TransformerConfig, layer: int, rngs: nnx.Rngs, dtype: Any) -> None:
        d, f = config.hidden_size, config.mlp_size
        names = config.of_family.norms

        def norm(name: str | None) -> RMSNorm | None:
            return None if name is None else _norm(config, (d,), dtype)

        self.attention_norm = norm(names.attention)
        self.after_attention_norm = norm(names.after_attention)
        self.attention = Attention(config, layer, rngs, dtype)
        self.mlp_norm = norm(names.mlp)
        self.after_mlp_norm = norm(names.after_mlp)
        self.gate = _kernel(rngs, (d, f), d, dtype)
        self.up = _kernel(rngs, (d, f), d, dtype)
        self.down = _kernel(rngs, (f, d), f, dtype)
        self.activation = config.of_family.activation
        self.residual_multiplier = config.residual_multiplier

    def project(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The stream x [M, D] at positions [M] -> q, k, v of ``Attention.project``."""
        return self.attention.project(_normalised(self.attention_norm, x), positions)

    def finish(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """The stream x [M, D] after attention output [M, K, G, H] and MLP."""
        y = _dot("mkgh,kghd->md", attended, self.attention.out[...])
        x = self._add(x, _normalised(self.after_attention_norm, y))
        y = _normalised(self.mlp_norm, x)
        gate = _ACTIVATIONS[self.activation](_dot("md,df->mf", y, self.gate[...]))
        y = _dot("mf,fd->md", gate * _dot("md,df->mf", y, self.up[...]), self.down[...])
        return self._add(x, _normalised(self.after_mlp_norm, y))

    def _add(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return x + _times(y, self.residual_multiplier)


class Transformer(nnx.Module):
    """The whole model.

    Args:
      config: sizes.
      rngs: source of the initial parameters.
      dtype: of the parameters and of the residual stream; all products accumulate in float32.
    """

    def __init__(
        self, config: TransformerConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ) -> None:
        v, d = config.vocab_size, config.hidden_size
        self.embedding = _kernel(rngs, (v, d), d, dtype)
        self.layers = nnx.List([Block(config, i, rngs, dtype) for i in range(config.num_layers)])
        self.norm = _norm(config, (d,), dtype)
        self.head = None if config.tied_embeddings else _kernel(rngs, (v, d), d, dtype)
        self.embedding_multiplier = config.embedding_multiplier
        if config.of_family.scaled_embedding:
            self.embedding_multiplier *= d**0.5
        self.final_softcap, self.logits_divisor = config.final_softcap, config.logits_divisor

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Teacher-forced logits: tokens [B, S] int32 -> [B, S, V] float32."""
        x, _, _ = self.encode(tokens)
        return self.logits(x).reshape(*tokens.shape, -1)

    def encode(
        self, tokens: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        """Sequences [B, S] -> stream [B * S, D] and, per layer, keys and values [B, S, K, H].

        Everything but attention runs on the flat stream: a weight's gradient is then one matrix
        product and not B of them.
        """
        batch, length = tokens.shape
        positions = jnp.tile(jnp.arange(length, dtype=jnp.int32), batch)
        x = self.embed(tokens.reshape(-1))
        keys, values = [], []
        for layer in self.layers:
            projected = layer.project(x, positions)
            q, k, v = (y.reshape(batch, length, *y.shape[1:]) for y in projected)
            attended = jax.vmap(layer.attention.prefill)(q, k, v)
            x = layer.finish(x, attended.reshape(batch * length, *attended.shape[2:]))
            keys.append(k)
            values.append(v)
        return x, tuple(keys), tuple(values)

    def decode(
        self,
        context: PromptContext,
        cache: ParticleCache,
        token: jax.Array,
        step: jax.Array,
        clock: jax.Array,
    ) -> tuple[jax.Array, ParticleCache]:
        """One new token per particle: token [N] -> logits [N, V] and the cache with it added."""
        capacity = cache.keys[0].shape[-1]
        position = context.length + step
        prompt_at = jnp.arange(context.keys[0].shape[-1], dtype=jnp.int32)
        ages = ring.ages(clock, capacity)
        slot = ring.entry(clock, capacity)
        positions = jnp.full(token.shape, position, jnp.int32)

        x = self.embed(token)
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            q, k, v = layer.project(x, positions)
            k_cache = _write(cache.keys[i], k[:, :, :, None], slot, axis=-1)
            v_cache = _write(cache.values[i], v[:, :, None, :], slot, axis=-2)
            attended = attention.shared_prompt_attention(
                q,
                context.keys[i],
                context.values[i],
                (prompt_at < context.length) & layer.attention.seen(position - prompt_at),
                k_cache.reshape(*k.shape, capacity),
                v_cache.reshape(*v.shape[:2], capacity, v.shape[2]),
                # An entry is this sequence's own if it is not older than the sequence.
                (ages <= step) & layer.attention.seen(ages),
                layer.attention.scale,
                layer.attention.softcap,
            )
            x = layer.finish(x, attended)
            keys.append(k_cache)
            values.append(v_cache)
        return self.logits(x), ParticleCache(tuple(keys), tuple(values))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Token ids [M] -> stream [M, D]."""
        return _times(self.embedding[...][tokens], self.embedding_multiplier)

    def logits(self, x: jax.Array) -> jax.Array:
        """The head: stream [M, D] -> logits [M, V] float32."""
        head = self.embedding[...] if self.head is None else self.head[...]
        logits = jnp.einsum("md,vd->mv", self.norm(x), head, preferred_element_type=jnp.float32)
        if self.logits_divisor != 1.0:
            logits = logits / self.logits_divisor
        if self.final_softcap is not None:
            logits = self.final_softcap * jnp.tanh(logits / self.final_softcap)
        return logits


class TransformerLM:
    """A ``Transformer`` behind the ``LanguageModel`` protocol.

    Two instances of equal config and dtype are equal, so a jitted function that takes the model
    as a static argument is compiled once for both.

    Attributes:
      config: the sizes.
      dtype: of parameters and cache.
      vocab_size: V.
      max_positions: longest prompt plus generated tokens.

    Raises:
      ValueError: for a dtype that is not one of ``DTYPES``.
    """

    def __init__(self, config: TransformerConfig, dtype: Any = jnp.float32) -> None:
        self.config = config
        self.dtype = jnp.dtype(dtype)
        if self.dtype.name not in DTYPES:
            raise ValueError(f"dtype is {self.dtype.name}; allowed are {', '.join(DTYPES)}.")
        self.vocab_size = config.vocab_size
        self.max_positions = config.max_positions

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TransformerLM)
            and self.config == other.config
            and self.dtype == other.dtype
        )

    def __hash__(self) -> int:
        return hash((self.config, self.dtype))

    def abstract_module(self) -> Transformer:
        """The module with shapes in place of arrays."""
        return nnx.eval_shape(lambda: Transformer(self.config, rngs=nnx.Rngs(0), dtype=self.dtype))

    def init(self, key: jax.Array) -> nnx.State:
        """Random parameters."""
        module = Transformer(self.config, rngs=nnx.Rngs(key), dtype=self.dtype)
        return nnx.state(module)

    def prefill(
        self, params: nnx.State, prompt: jax.Array, length: jax.Array
    ) -> tuple[jax.Array, PromptContext]:
        """prompt [S] int32, of which ``length`` tokens count -> (logits [V], context)."""
        module = self._module(params)
        x, keys, values = module.encode(prompt[None])
        last = jax.lax.dynamic_slice_in_dim(x, length - 1, 1, axis=0)
        context = PromptContext(
            tuple(k[0].transpose(1, 2, 0) for k in keys),
            tuple(v[0].transpose(1, 0, 2) for v in values),
            length,
        )
        return module.logits(last)[0], context

    def init_cache(self, params: nnx.State, num_particles: int, capacity: int) -> ParticleCache:
        """An empty cache of ``capacity`` generated tokens for each of N particles."""
        layers, heads = range(self.config.num_layers), self.config.num_kv_heads
        dim = self.config.head_dim
        lead = [size for size in (num_particles, heads) if size > 1]
        return ParticleCache(
            tuple(jnp.zeros((*lead, dim, capacity), self.dtype) for _ in layers),
            tuple(jnp.zeros((*lead, capacity, dim), self.dtype) for _ in layers),
        )

    def decode(
        self,
        params: nnx.State,
        context: PromptContext,
        cache: ParticleCache,
        token: jax.Array,
        step: jax.Array,
        clock: jax.Array,
    ) -> tuple[jax.Array, ParticleCache]:
        """token [N] int32 at generated index ``step`` [] -> (logits [N, V], cache)."""
        return self._module(params).decode(context, cache, token, step, clock)

    def move(
        self,
        cache: ParticleCache,
        source: jax.Array,
        destination: jax.Array,
        step: jax.Array,
        clock: jax.Array,
    ) -> ParticleCache:
        """Row ``destination[i]`` receives row ``source[i]`` [N], see ``ring.move_rows``."""
        leaves, structure = jax.tree.flatten(cache)
        moved = ring.move_rows(leaves, _time_axes(cache), source, destination, step, clock)
        return jax.tree.unflatten(structure, moved)

    def grow(self, cache: ParticleCache, capacity: int, clock: jax.Array) -> ParticleCache:
        """The cache with room for ``capacity`` tokens."""
        leaves, structure = jax.tree.flatten(cache)
        resized = [
            ring.resize(leaf, leaf.ndim + axis, capacity, clock)
            for leaf, axis in zip(leaves, _time_axes(cache), strict=True)
        ]
        return jax.tree.unflatten(structure, resized)

    def _module(self, params: nnx.State) -> Transformer:
        return nnx.merge(_graph(self), params)


def _write(leaf: jax.Array, entry: jax.Array, slot: jax.Array, axis: int) -> jax.Array:
    """The leaf with an entry [N, K, ., .] at a place of the time axis, -1 or -2."""
    entry = entry.reshape(*leaf.shape[:-2], *entry.shape[-2:])
    return ring.write(leaf, entry, slot, axis)


def _time_axes(cache: ParticleCache) -> list[int]:
    """The time axis of every leaf, in the order of ``jax.tree.leaves``."""
    return [-1] * len(cache.keys) + [-2] * len(cache.values)


@functools.lru_cache(maxsize=64)
def _graph(model: TransformerLM) -> Any:
    return nnx.split(model.abstract_module())[0]


def _kernel(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, dtype: Any) -> nnx.Param:
    noise = jax.random.normal(rngs.params(), shape, jnp.float32) * (fan_in**-0.5)
    return nnx.Param(noise.astype(dtype))
