"""What the engine needs from a language model.

A model is written for ONE prompt with N particles; the library vmaps it over prompts.
Letters: N particles, S prompt length, T generated tokens, V vocabulary.
"""

from typing import Any, Protocol

import jax

from jax_power_smc.core.types import Cache, Context, Params
from jax_power_smc.core.vocab_sharding import VocabSharding


class LanguageModel(Protocol):
    """A causal language model whose particles share a prompt and have a cache each.

    Models are static arguments of jitted functions: a model must be hashable, and two equal models
    must compute the same function. ``OptionalMembers`` lists what a model may have besides.

    The generated tokens of a prompt are stored in the cache as in a ring buffer. All prompts of a
    batch share one clock but begin at different times, and a slot is reused by another prompt
    without being cleared. So the entries of a sequence may begin anywhere and wrap around the end:

        capacity 8, clock 1, step 3      entry  0 1 2 3 4 5 6 7
                                         step   2 3 - - - - 0 1

    The token of step ``step - a`` is in entry ``(clock - a) mod capacity``, for 0 <= a <= step. All
    other entries hold leftovers of other prompts and must not be read. With keys and values
    [N, capacity, ...], ``decode`` would contain

        keys = keys.at[:, clock].set(key_of_this_token)
        age = (clock - jnp.arange(capacity, dtype=jnp.int32)) % capacity
        mine = age <= step                      # attend to the prompt and to these entries
        position = length + step - age          # of the token in each entry
    """

    @property
    def vocab_size(self) -> int:
        """V."""

    def prefill(
        self, params: Params, prompt: jax.Array, length: jax.Array
    ) -> tuple[jax.Array, Context]:
        """Reads the prompt.

        Args:
          params: the model's parameters.
          prompt: [S] int32, padded at the end.
          length: [] int32, the number of tokens that are not padding, at least 1.

        Returns:
          The logits [V] of the first generated token, and the context: what the particles share.
          More padding may lengthen an axis of the context's leaves, but only at its end and only by
          values that are never read: the engine itself pads contexts there with zeros.
        """

    def init_cache(self, params: Params, num_particles: int, capacity: int) -> Cache:
        """An empty cache for ``capacity`` tokens: a pytree whose leaves lead with N.

        It is made once per slot. Every prompt but the first of a slot finds what its predecessor
        left, so state that is not written entry by entry must be reset at step 0. With one particle
        nothing is ever moved, and leaves may have any shape.
        """

    def decode(
        self,
        params: Params,
        context: Context,
        cache: Cache,
        token: jax.Array,
        step: jax.Array,
        clock: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        """Appends one token to every particle.

        Metropolis-Hastings returns to an earlier step: what was written at later steps must then
        not be read. A finished prompt is decoded along with the others, beyond its cap and beyond
        the capacity; its results are ignored.

        Args:
          params: the model's parameters.
          context: from ``prefill``.
          cache: from ``init_cache``, and then from the last ``decode``.
          token: [N] int32.
          step: [] int32, the index of the token in its generated sequence, from 0. Its position is
            the length of the prompt plus ``step``.
          clock: [] int32 in [0, capacity), the entry of the cache to write, the same for all
            prompts of a batch. It advances by one per step and wraps to 0. The class docstring says
            where the earlier tokens of the sequence are.

        Returns:
          The logits [N, V] of the next token, and the cache with this token.
        """


class OptionalMembers(Protocol):
    """Further members of a ``LanguageModel``: any subset, each used if present."""

    @property
    def max_positions(self) -> int | None:
        """The longest prompt plus generated tokens; None, or without it, no limit."""

    @property
    def can_go_back(self) -> bool:
        """Whether an earlier step can be decoded again; if not, Metropolis-Hastings is refused.

        Without it, the model is taken to be able to.
        """

    def move(
        self,
        cache: Cache,
        source: jax.Array,
        destination: jax.Array,
        step: jax.Array,
        clock: jax.Array,
    ) -> Cache:
        """Copies row ``source[i]`` of the cache to row ``destination[i]``, both [N] int32.

        No row that is overwritten is the source of another. ``step`` and ``clock`` [] are those of
        the last ``decode`` and tell which entries are in use. Without it, whole rows are copied.
        """

    def grow(self, cache: Cache, capacity: int, clock: jax.Array) -> Cache:
        """A cache of another capacity, larger or smaller, that keeps all entries in use.

        ``clock`` [] is that of the last ``decode``. What was in entry ``(clock - a) mod old`` must
        be in entry ``(clock - a) mod capacity``, for every a below both capacities
        (``transformer.kv_cache.resize`` does this for one axis). Without it, the cache has room for
        all tokens from the start.
        """

    def temporaries(self, num_particles: int, prompt_tokens: int, capacity: int) -> tuple[int, int]:
        """Bytes that ``prefill`` and ``decode`` need for one prompt besides their results.

        Used by the memory plan; as far as known.
        """

    def on(self, size: int) -> "LanguageModel":
        """The model that each of ``size`` devices of the mesh axis "model" runs in ``shard_map``.

        Without it, a mesh must have one device on that axis.

        Raises:
          ValueError: if the model cannot be split into that many parts.
        """

    def param_specs(self, params: Params) -> Any:
        """A pytree of ``PartitionSpec``: how each parameter is sharded. Without it: replicated."""

    @property
    def vocabulary(self) -> VocabSharding:
        """How the vocabulary axis of the logits is sharded. Without it: not at all."""
