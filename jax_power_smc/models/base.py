"""What the decode engine asks of a language model.

A model is written for ONE prompt with N particles; the library vmaps it over prompts.
Letters: N particles, S prompt length, T generated tokens, V vocabulary.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp


class LanguageModel(Protocol):
    """A causal language model with a prompt that particles share and a cache that they do not.

    A model is a static argument of jitted functions: it must be hashable, and two equal models
    must compute the same function.

    Optional members, used where present:

    * ``max_positions: int``, the longest prompt plus generated tokens;
    * ``can_go_back: bool``, whether an earlier step can be decoded again; if not,
      Metropolis-Hastings is refused;
    * ``temporaries(num_particles, prompt_tokens, capacity) -> (prefill, step)``, bytes that the two
      need for a prompt beside their results, as far as known; for the memory plan;
    * ``move(cache, source, destination, step, clock) -> cache``, in place of the default move:
      row ``destination[i]`` receives row ``source[i]``, both [N] int32. No row that is written is
      a source of another one. ``step`` and ``clock`` are those of the last ``decode``, which say
      what of the cache is in use.
    * ``grow(cache, capacity, clock) -> cache``, a cache of another capacity, larger or smaller,
      that still holds all in use; ``clock`` is that of the last ``decode``. What lay in entry
      ``(clock - a) mod old`` then lies in ``(clock - a) mod capacity``, for every a that fits both
      (``models.ring.resize``). Without it the cache has room for all tokens from the beginning.

    The generated tokens of a prompt lie in the cache as in a ring. Prompts share the clock but
    begin at different times, and a slot is used again by another prompt without being cleared. So
    the entries of a sequence begin anywhere and may run around the end:

        capacity 8, clock 1, step 3      entry  0 1 2 3 4 5 6 7
                                         step   2 3 - - - - 0 1

    The token at step ``step - a`` lies in entry ``(clock - a) mod capacity``, for 0 <= a <= step.
    The other entries hold what other prompts have left and must not be read. With keys and values
    [N, capacity, ...] that is

        keys = keys.at[:, clock].set(key_of_this_token)
        age = (clock - jnp.arange(capacity, dtype=jnp.int32)) % capacity
        mine = age <= step                      # attend to the prompt and to these
        position = length + step - age          # of the token in each entry
    """

    @property
    def vocab_size(self) -> int:
        """V."""

    def prefill(self, params: Any, prompt: jax.Array, length: jax.Array) -> tuple[jax.Array, Any]:
        """prompt [S] int32 of which ``length`` [] tokens count -> (logits [V], context).

        The logits are those of the first generated token; the context is what particles share. A
        longer padded prompt may only append to its leaves, and what it appends is never looked at:
        the engine does the same with zeros.
        """

    def init_cache(self, params: Any, num_particles: int, capacity: int) -> Any:
        """An empty cache for ``capacity`` tokens: a pytree whose leaves lead with N.

        Every prompt but the first of its slot finds there what the one before has left. A state
        that is not written entry by entry has to begin anew at step 0. With one particle nothing is
        ever moved, and leaves may have any shape.
        """

    def decode(
        self,
        params: Any,
        context: Any,
        cache: Any,
        token: jax.Array,
        step: jax.Array,
        clock: jax.Array,
    ) -> tuple[jax.Array, Any]:
        """token [N] int32 at generated index ``step`` -> (logits [N, V] of the next, cache).

        ``step`` [] is the sequence's own index and gives positions: that of the token is the length
        of the prompt plus ``step``. ``clock`` [], in [0, capacity), is the entry of the cache that
        is written, the same for all prompts of a batch; the next step has the next one, and after
        the last entry comes 0. See above for where the earlier tokens of the sequence lie.

        Metropolis-Hastings goes back to an earlier step: what was written at later ones must then
        not be read. A prompt that is done is stepped on with the others, beyond its cap and beyond
        the capacity; nobody looks at what comes of it.
        """


def take_ancestors(cache: Any, ancestors: jax.Array) -> Any:
    """The reference cache move: slot i receives the rows of slot ``ancestors[i]``, [N] int32."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, ancestors, axis=0, mode="clip"), cache)


def move_cache(
    model: LanguageModel, cache: Any, ancestors: jax.Array, step: jax.Array, clock: jax.Array
) -> Any:
    """The cache follows the ancestors [N], which are in place (``resampling.in_place``).

    ``step`` and ``clock`` [] are those of the last ``decode``.
    """
    num = ancestors.shape[0]
    if cache is None or num == 1:
        return cache  # nothing is there yet, or a single particle descends from itself
    move = getattr(model, "move", None)
    if move is None:
        return copy_dead_rows(cache, ancestors)
    return move(cache, ancestors, jnp.arange(num, dtype=jnp.int32), step, clock)


@jax.custom_batching.custom_vmap
def copy_dead_rows(cache: Any, ancestors: jax.Array) -> Any:
    """``take_ancestors`` for ancestors in place, copying only the rows that change.

    Ancestors are in place if every row that is a source keeps its own slot
    (``resampling.in_place``): copies then happen in any order, in the cache's own memory. Under
    vmap the moves of all prompts are one list, since a loop per prompt would run as often as the
    prompt with the most moves needs, for all of them.

    Args:
      cache: a pytree whose leaves lead with N.
      ancestors: [N] int32, in place.
    """
    own = jnp.arange(ancestors.shape[0], dtype=jnp.int32)
    return _copy_rows(cache, ancestors, own)


@copy_dead_rows.def_vmap
def _copy_dead_rows_of_prompts(
    size: int, batched: Any, cache: Any, ancestors: jax.Array
) -> tuple[Any, Any]:
    """Leaves [P, N, ...], ancestors [P, N]: one list of moves among P N rows."""
    cache_batched, ancestors_batched = batched
    if not ancestors_batched:
        ancestors = jnp.broadcast_to(ancestors[None], (size, *ancestors.shape))
    cache = jax.tree.map(
        lambda x, there: x if there else jnp.broadcast_to(x[None], (size, *x.shape)),
        cache,
        cache_batched,
    )
    num = ancestors.shape[1]
    own = jnp.arange(size * num, dtype=jnp.int32)
    first = num * jnp.arange(size, dtype=jnp.int32)
    flat = jax.tree.map(lambda x: x.reshape(size * num, *x.shape[2:]), cache)
    flat = _copy_rows(flat, (ancestors + first[:, None]).reshape(-1), own)
    moved = jax.tree.map(lambda x, y: x.reshape(y.shape), flat, cache)
    return moved, jax.tree.map(lambda _: True, cache)


def _copy_rows(cache: Any, ancestors: jax.Array, own: jax.Array) -> Any:
    moves = ancestors != own
    destinations = jnp.nonzero(moves, size=own.shape[0], fill_value=0)[0].astype(jnp.int32)

    def copy(index: jax.Array, cache: Any) -> Any:
        to = destinations[index]
        source = ancestors[to]

        def one(leaf: jax.Array) -> jax.Array:
            row = jax.lax.dynamic_slice_in_dim(leaf, source, 1, axis=0)
            return jax.lax.dynamic_update_slice_in_dim(leaf, row, to, axis=0)

        return jax.tree.map(one, cache)

    return jax.lax.fori_loop(0, jnp.sum(moves, dtype=jnp.int32), copy, cache)
