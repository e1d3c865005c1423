"""A decoder-only transformer: RMS norm, rotary positions, grouped queries, gated MLP.

``Transformer`` is the Flax NNX module, built from ``layers``. ``TransformerLM`` wraps it in the
``LanguageModel`` protocol for the engine.

Letters: R rows, B tokens of a row, T capacity, V vocabulary, D hidden size, K key/value heads,
G query heads per key/value head, H head dimension, F MLP width.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jax_power_smc.core.vocab_sharding import VocabSharding
from jax_power_smc.models.transformer import attention, cached_attention, kv_cache
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.kv_cache import KVCache
from jax_power_smc.models.transformer.layers import Block, RMSNorm, random_weight, times
from jax_power_smc.models.transformer.precision import wide
from jax_power_smc.models.transformer.tensor_parallel import (
    UNSHARDED_MODEL,
    TensorParallel,
    spec,
)

# And float64 where JAX has it enabled, which is for tests.
DTYPES = ("float32", "bfloat16", "float16")

# Of a layer, whatever its shapes: XLA TPU planned 1.1 to 1.4 MB each for 2 to 28 layers.
_PROGRAM_BYTES = 3 << 19


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
        self.norm = RMSNorm(config, d, dtype)
        self.head = None if config.tied_embeddings else random_weight(rngs, (v, d), d, dtype)
        self.embedding_multiplier = config.embedding_multiplier
        if config.of_family.scaled_embedding:
            self.embedding_multiplier *= d**0.5
        self.final_softcap, self.logits_divisor = config.final_softcap, config.logits_divisor

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Teacher-forced logits: tokens [R, B] int32 -> [R, B, V].

        Everything but attention runs on the flat stream: the gradient of a weight is then one
        matrix product instead of R.
        """
        rows, block = tokens.shape
        position = jnp.arange(block, dtype=jnp.int32)[None]
        x = self.embed(tokens.reshape(-1))
        for layer in self.layers:
            projected = layer.project(x, jnp.tile(position[0], rows))
            q, k, v = (y.reshape(rows, block, *y.shape[1:]) for y in projected)
            k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
            # All at once: a loop over parts would be slow to differentiate.
            out = attention.extend(q, k, v, position, layer.attention.scoring, in_parts=False)
            x = layer.finish(x, out)
        return self.logits(x).reshape(rows, block, -1)

    def extend(
        self, cache: KVCache, tokens: jax.Array, position: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, KVCache]:
        """See ``TransformerLM.extend``."""
        rows, block = tokens.shape
        # Decoding has no axis B at all: XLA copies caches because of axes of size 1.
        lead = (rows,) if block == 1 else (rows, block)
        if block > 1:
            position = position[:, None] + jnp.arange(block, dtype=jnp.int32)[None]
        attend = cached_attention.decode if block == 1 else cached_attention.extend
        x = self.embed(tokens.reshape(-1))
        keys, values = [], []
        for layer, *leaves in zip(self.layers, cache.keys, cache.values, strict=True):
            projected = layer.project(x, position.reshape(-1))
            q, *new = (y.reshape(*lead, *y.shape[1:]) for y in projected)
            scoring = layer.attention.scoring
            out, *leaves = attend(cache.layout, scoring, q, *new, *leaves, position, count)
            x = layer.finish(x, out)
            keys.append(leaves[0])
            values.append(leaves[1])
        cache = KVCache(tuple(keys), tuple(values), cache.layout)
        return self.logits(x).reshape(rows, block, -1), cache

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Token ids [M] -> stream [M, D]."""
        embedding = self.embedding[...]
        index, is_local = self.vocabulary.to_local(tokens, embedding.shape[0])
        x = self.vocabulary.from_owner(embedding[index], is_local)
        return times(x, self.embedding_multiplier)

    def logits(self, x: jax.Array) -> jax.Array:
        """Stream [M, D] -> logits [M, V], float32 or float64."""
        head = self.embedding[...] if self.head is None else self.head[...]
        logits = jnp.einsum("md,vd->mv", self.norm(x), head, preferred_element_type=wide(x.dtype))
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
      max_positions: longest sequence.
      can_rewind: whether a row may be extended again from an earlier position: always.
      parallel: the devices over which it is sharded, see ``on``.
      layout: of its caches; None for the one that is best where they are made.

    Raises:
      ValueError: for a dtype that is not one of ``DTYPES``.
    """

    can_rewind = True

    def __init__(
        self,
        config: TransformerConfig,
        dtype: Any = jnp.float32,
        parallel: TensorParallel = UNSHARDED_MODEL,
        layout: kv_cache.Layout | None = None,
    ) -> None:
        self.config, self.parallel, self.layout = config, parallel, layout
        self.dtype = jnp.dtype(dtype)
        allowed = (*DTYPES, "float64") if jax.config.read("jax_enable_x64") else DTYPES
        if self.dtype.name not in allowed:
            raise ValueError(f"dtype is {self.dtype.name}; allowed are {', '.join(allowed)}.")
        self.vocab_size = config.vocab_size
        self.max_positions = config.max_positions

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TransformerLM)
            and self.config == other.config
            and self.dtype == other.dtype
            and self.parallel == other.parallel
            and self.layout == other.layout
        )

    def __hash__(self) -> int:
        return hash((self.config, self.dtype, self.parallel, self.layout))

    def on(self, size: int) -> "TransformerLM":
        """The model that each of ``size`` devices runs inside ``shard_map``.

        Raises:
          ValueError: if the model cannot be split into that many equal parts.
        """
        parallel = TensorParallel.for_config(self.config, size)
        return TransformerLM(self.config, self.dtype, parallel, self.layout)

    @property
    def vocabulary(self) -> VocabSharding:
        """How the vocabulary axis of the logits is sharded."""
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

    def init_cache(self, params: nnx.State, num_rows: int, capacity: int) -> KVCache:
        """A cache for R rows of up to T tokens; inside ``shard_map``, of this device's heads."""
        del params
        layout = self.layout or kv_cache.default_layout()
        heads, dim = self.config.num_kv_heads // self.parallel.size, self.config.head_dim
        return kv_cache.empty(
            layout, self.config.num_layers, num_rows, capacity, heads, dim, self.dtype
        )

    def extend(
        self,
        params: nnx.State,
        cache: KVCache,
        tokens: jax.Array,
        position: jax.Array,
        count: jax.Array,
    ) -> tuple[jax.Array, KVCache]:
        """Appends ``count[r]`` tokens to row r, from position ``position[r]`` on.

        Args:
          params: the parameters.
          cache: of R rows.
          tokens: [R, B] int32, of which the first ``count`` of each row count.
          position, count: [R] int32.

        Returns:
          The logits [R, B, V] after each token, and the cache with the tokens.
        """
        return self._module(params).extend(cache, tokens, position, count)

    def move(
        self,
        cache: KVCache,
        source: jax.Array,
        destination: jax.Array,
        length: jax.Array,
        count: jax.Array,
    ) -> KVCache:
        """Copies rows, as far as they are filled, see ``kv_cache.move_rows``."""
        return kv_cache.move_rows(cache, source, destination, length, count)

    def temporaries(self, num_rows: int, block: int, capacity: int) -> int:
        """Bytes that ``extend`` needs besides its results, on one device.

        Never fewer than XLA planned for the shapes tried, on CPU, TPU and GPU, and at most 64 MB or
        twice as many more on a CPU: some programs hold the scores once, some twice. It leaves out
        that XLA CPU carries a 16-bit cache through a loop of steps in float32.
        """
        config, parts = self.config, self.parallel.size
        heads = config.num_heads // parts
        scores = attention.scores_at_a_time(num_rows, block, heads, capacity)
        # Numbers of a token in the residual stream and among the heads, and in the MLP.
        stream = config.hidden_size + heads * config.head_dim
        mlp = 5 * config.mlp_size // (2 * parts)
        wide_size, size, program = wide(self.dtype).itemsize, self.dtype.itemsize, 0
        if (self.layout or kv_cache.default_layout()) == "by_head":
            size = wide_size  # XLA CPU computes everything in it
        elif block > 1:
            program = _PROGRAM_BYTES * config.num_layers
        token = wide_size * stream + size * (3 * stream + mlp)
        copies = 4 if block == 1 else 2
        return wide_size * copies * scores + num_rows * block * token + program

    @functools.cached_property
    def _graph(self) -> Any:
        return nnx.split(self.abstract_module())[0]

    def _module(self, params: nnx.State) -> Transformer:
        return nnx.merge(self._graph, params)
