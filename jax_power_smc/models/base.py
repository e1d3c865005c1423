"""What the decode engine asks of a language model.

A model is written for ONE prompt with N particles; the library vmaps it over prompts.
Letters: N particles, S prompt length, T generated tokens, V vocabulary.
"""

from typing import Any, Protocol

import jax


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
