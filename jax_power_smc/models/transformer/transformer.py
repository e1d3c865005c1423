"""A decoder-only transformer for particles: RMS norm, rotary positions, grouped queries, gated MLP.

``Transformer`` is the Flax NNX module, built from ``layers``. ``TransformerLM`` wraps it in the
``LanguageModel`` protocol for the engine, for one prompt.

Letters: P prompts, N particles, S prompt length, T capacity of the generated half, V vocabulary,
D hidden size, K key/value heads, G query heads per key/value head, H head dimension, F MLP width.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jax_power_smc.core.vocab_sharding import VocabSharding
from jax_power_smc.models.transformer import attention, kv_cache
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.layers import Block, make_norm, random_weight, times
from jax_power_smc.models.transformer.tensor_parallel import (
    UNSHARDED_MODEL,
    TensorParallel,
    spec,
)

# Not float64: products and norms are computed in float32.
DTYPES = ("float32", "bfloat16", "float16")


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

    Axes N and K are omitted if they have size 1: under vmap, XLA would copy such a cache several
    times per step instead of writing to it in place (tiny-reasoner, 96 prompts with N = 1, T = 384,
    CPU: 26 ms per step against 13). A cache without N is never moved.

    Attributes:
      keys: one [N, K, H, T] array per layer.
      values: one [N, K, T, H] array per layer.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


class Transformer(nnx.Module):
    """The whole model.

    Args:
      config: the architecture and its sizes.
      rngs: source of the initial parameters.
      dtype: of the parameters and the residual stream; all products accumulate in float32.
      parallel: the devices over which the parameters are sharded. If there are several, the module
        runs inside ``shard_map``, where its parameters are the shards of one device.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        parallel: TensorParallel = UNSHARDED_MODEL,
    ) -> None:
        v, d = config.vocab_size, config.hidden_size
        self.embedding = random_weight(rngs, (v, d), d, dtype)
        self.layers = nnx.List(
            [Block(config, i, rngs, dtype, parallel) for i in range(config.num_layers)]
        )
        self.vocabulary = parallel.vocabulary
        self.norm = make_norm(config, (d,), dtype)
        self.head = None if config.tied_embeddings else random_weight(rngs, (v, d), d, dtype)
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
        """Sequences [B, S] -> residual stream [B * S, D] and per-layer keys, values [B, S, K, H].

        Everything but attention runs on the flat stream: the gradient of a weight is then one
        matrix product instead of B.
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
        """One new token per particle: token [N] -> logits [N, V] and the updated cache."""
        capacity = cache.keys[0].shape[-1]
        position = context.length + step
        prompt_at = jnp.arange(context.keys[0].shape[-1], dtype=jnp.int32)
        ages = kv_cache.ages(clock, capacity)
        entry = kv_cache.entry(clock, capacity)
        positions = jnp.full(token.shape, position, jnp.int32)

        x = self.embed(token)
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            q, k, v = layer.project(x, positions)
            k_cache = _write(cache.keys[i], k[:, :, :, None], entry, axis=-1)
            v_cache = _write(cache.values[i], v[:, :, None, :], entry, axis=-2)
            attended = attention.shared_prompt_attention(
                q,
                context.keys[i],
                context.values[i],
                (prompt_at < context.length) & layer.attention.in_window(position - prompt_at),
                k_cache.reshape(*k.shape, capacity),
                v_cache.reshape(*v.shape[:2], capacity, v.shape[2]),
                # An entry belongs to this sequence if it is no older than the sequence.
                (ages <= step) & layer.attention.in_window(ages),
                layer.attention.scale,
                layer.attention.softcap,
            )
            x = layer.finish(x, attended)
            keys.append(k_cache)
            values.append(v_cache)
        return self.logits(x), ParticleCache(tuple(keys), tuple(values))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Token ids [M] -> stream [M, D]."""
        embedding = self.embedding[...]
        index, is_local = self.vocabulary.to_local(tokens, embedding.shape[0])
        x = self.vocabulary.from_owner(embedding[index], is_local)
        return times(x, self.embedding_multiplier)

    def logits(self, x: jax.Array) -> jax.Array:
        """Stream [M, D] -> logits [M, V] float32."""
        head = self.embedding[...] if self.head is None else self.head[...]
        logits = jnp.einsum("md,vd->mv", self.norm(x), head, preferred_element_type=jnp.float32)
        if self.logits_divisor != 1.0:
            logits = logits / self.logits_divisor
        if self.final_softcap is not None:
            logits = self.final_softcap * jnp.tanh(logits / self.final_softcap)
        return logits


class TransformerLM:
    """A ``Transformer`` behind the ``LanguageModel`` protocol.

    Instances with equal fields are equal, so a jitted function that takes the model as a static
    argument is compiled once for all of them.

    Attributes:
      config: the architecture and its sizes.
      dtype: of parameters and cache.
      vocab_size: V.
      max_positions: longest prompt plus generated tokens.
      parallel: the devices over which it is sharded, see ``on``.

    Raises:
      ValueError: for a dtype that is not one of ``DTYPES``.
    """

    def __init__(
        self,
        config: TransformerConfig,
        dtype: Any = jnp.float32,
        parallel: TensorParallel = UNSHARDED_MODEL,
    ) -> None:
        self.config, self.parallel = config, parallel
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
            and self.parallel == other.parallel
        )

    def __hash__(self) -> int:
        return hash((self.config, self.dtype, self.parallel))

    def on(self, size: int) -> "TransformerLM":
        """The model that each of ``size`` devices runs inside ``shard_map``.

        Raises:
          ValueError: if the model cannot be split into that many equal parts.
        """
        return TransformerLM(self.config, self.dtype, TensorParallel.for_config(self.config, size))

    @property
    def vocabulary(self) -> VocabSharding:
        """How the vocabulary axis of the logits [N, V] is sharded."""
        return self.parallel.vocabulary

    def param_specs(self, params: nnx.State) -> nnx.State:
        """How every parameter is sharded over a mesh: a pytree of ``PartitionSpec``."""
        return nnx.from_flat_state(
            [
                (path, leaf.replace(spec(path, self.config, self.parallel)))
                for path, leaf in nnx.to_flat_state(params)
            ]
        )

    def abstract_module(self) -> Transformer:
        """The module, with shapes in place of arrays."""
        return nnx.eval_shape(
            lambda: Transformer(
                self.config, rngs=nnx.Rngs(0), dtype=self.dtype, parallel=self.parallel
            )
        )

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
        """An empty cache with room for ``capacity`` generated tokens of each particle."""
        layers = range(self.config.num_layers)
        heads = self.config.num_kv_heads // self.parallel.size
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
        """Copies row ``source[i]`` to row ``destination[i]`` [N], see ``kv_cache.move_rows``."""
        leaves, structure = jax.tree.flatten(cache)
        moved = kv_cache.move_rows(leaves, time_axes(cache), source, destination, step, clock)
        return jax.tree.unflatten(structure, moved)

    def grow(self, cache: ParticleCache, capacity: int, clock: jax.Array) -> ParticleCache:
        """The cache with room for ``capacity`` tokens."""
        leaves, structure = jax.tree.flatten(cache)
        resized = [
            kv_cache.resize(leaf, leaf.ndim + axis, capacity, clock)
            for leaf, axis in zip(leaves, time_axes(cache), strict=True)
        ]
        return jax.tree.unflatten(structure, resized)

    @functools.cached_property
    def _graph(self) -> Any:
        return nnx.split(self.abstract_module())[0]

    def _module(self, params: nnx.State) -> Transformer:
        return nnx.merge(self._graph, params)


def _write(leaf: jax.Array, column: jax.Array, entry: jax.Array, axis: int) -> jax.Array:
    """The leaf with a column [N, K, ., .] written at an entry of the time axis, -1 or -2."""
    column = column.reshape(*leaf.shape[:-2], *column.shape[-2:])
    return kv_cache.write(leaf, column, entry, axis)


def time_axes(cache: ParticleCache) -> list[int]:
    """The time axis of every leaf, in the order of ``jax.tree.leaves``."""
    return [-1] * len(cache.keys) + [-2] * len(cache.values)
