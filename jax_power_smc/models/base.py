"""What the engine needs from a language model: two functions, and whatever it can do better itself.

Letters: R rows, B tokens of a block, V vocabulary, G rows of a group, M moves.
"""

from typing import Any, Protocol

import jax

from jax_power_smc.core.types import Cache, Params
from jax_power_smc.core.vocab_sharding import VocabSharding


class LanguageModel(Protocol):
    """A causal language model over a table of rows.

    A row is one sequence, prompt and generated tokens alike. Its cache has an entry per position:
    the token at position i, counted from 0, belongs in entry i. There is nothing else to know: no
    shared clock, no mark where a prompt ends, no owner of a row. The engine decides which sequence
    a row holds, copies rows where sequences fork, and uses a row again for another prompt.

        capacity 6             entries  0 1 2 3 4 5
        row 0, 4 tokens                 a b c d - -      "-" is stale: left by an earlier sequence
        row 1, 2 tokens                 e f - - - -      of this row, to be overwritten, never read

    A model is a static argument of jitted functions. So it must be hashable, two equal models must
    compute the same function, and its methods must be pure. They run under ``jax.jit`` and under
    ``jax.vmap`` with shared parameters; an operation without a batching rule needs a
    ``custom_vmap`` that flattens the mapped axis into the rows.

    **The logits at a position are a function of tokens 0 to that position, and of nothing else**:
    not of how these tokens were divided into blocks, of the other rows, of the row's index, of R,
    B, or the capacity (up to rounding). In particular a model cannot know where its prompt ended,
    because a sequence that lost its row returns as a single block.

    ``psmc.testing.check_language_model`` checks all this. ``OptionalMembers`` lists what a model
    may have besides.
    """

    @property
    def vocab_size(self) -> int:
        """V."""

    def init_cache(self, params: Params, num_rows: int, capacity: int) -> Cache:
        """An empty cache: R rows with entries for positions 0 to capacity - 1.

        A pytree of arrays that lead with R. An array without an axis of positions, such as a
        recurrent state, is fine: it is copied as a whole wherever a row is. All values must be
        finite.
        """

    def extend(
        self,
        params: Params,
        cache: Cache,
        tokens: jax.Array,
        position: jax.Array,
        count: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        """Reads the next tokens of every row, any number from 0 to B.

        The first ``count[r]`` tokens of row r stand at positions ``position[r]``,
        ``position[r] + 1``, ... Each sees the row's entries before its own, and itself. Entries at
        and beyond ``position[r]`` are stale when this is called: whatever another sequence, or the
        same one before a rewind, left there. They must not influence any logits, but they are
        always finite, so multiplying them by zero is enough. To keep it so, write nothing that is
        not finite: the engine clears a row whose logits are not.

        This one function reads prompts (B a bucket, count the lengths), generates (B = 1; count is
        1 for rows that are running and 0 for the others), scores, and resumes sequences at
        positions above 0. It is called exactly once for each position of a row, except after a
        rewind (see ``OptionalMembers.can_rewind``). Remove the axis of B where it is 1: XLA makes
        copies of caches for axes of size 1.

        Args:
          params: the model's parameters.
          cache: from ``init_cache``, ``extend``, or the functions in ``models.cache_moves``.
          tokens: [R, B] int32. Those at or beyond ``count`` are padding.
          position: [R] int32, the number of tokens that the row holds. Where count is 0 it may be
            anything in [0, capacity].
          count: [R] int32, 0 <= count <= B and position + count <= capacity; but
            position + B may exceed the capacity.

        Returns:
          The logits [R, B, V], floating-point, of the token after each one that was read; at or
          beyond ``count`` they may be anything, even NaN. And the cache, of the same structure,
          shapes and dtypes, in which entries position to position + count - 1 of each row were
          written and no others; a row of count 0 is left exactly as it was, whatever state it has.
        """


class OptionalMembers(Protocol):
    """Further members of a ``LanguageModel``: any subset, each used if present.

    ``move``, ``insert``, ``resize`` and ``release`` have defaults in ``models.cache_moves``, which
    suit every cache whose arrays lead with R and hold an entry at its position. A model whose rows
    share storage (pages, one copy of a prompt's keys for several rows) or whose entries lie
    elsewhere (a ring) needs its own four.
    """

    @property
    def max_positions(self) -> int | None:
        """The longest prompt plus generated tokens; None, or without it, no limit.

        The capacity of a cache may be larger, but positions beyond the limit are never used.
        """

    @property
    def can_rewind(self) -> bool:
        """Whether a row may be extended from an earlier position than it has reached.

        What was written from there on is then stale. Without it, the model is taken to be able to;
        a recurrent state or a ring is not, and Metropolis-Hastings is refused.
        """

    def move(
        self,
        cache: Cache,
        source: jax.Array,
        destination: jax.Array,
        length: jax.Array,
        count: jax.Array,
    ) -> Cache:
        """Makes row ``destination[i]`` a copy of row ``source[i]``, for every i below ``count``.

        It runs in every step, mostly with a count of 0, and must then cost nothing: no conditional
        may carry the cache (XLA copies it on a GPU). Destinations are distinct, and none of them
        is a source, so the order does not matter.

        Args:
          cache: as in ``extend``.
          source, destination: [M] int32, with M <= R; what is at or beyond ``count`` may be
            anything.
          length: [M] int32, the number of tokens that each source holds: what lies beyond need not
            be copied.
          count: [] int32, the number of moves.
        """

    def insert(self, cache: Cache, rows: jax.Array, prefilled: Cache) -> Cache:
        """Makes row ``rows[g]`` of the cache a copy of row g of ``prefilled``.

        Every sequence begins like this, even one that has read nothing yet, so that nothing is left
        of the row's last state.

        Args:
          cache: as in ``extend``.
          rows: [G] int32, distinct. An index of R or more means that row g is padding of the group
            and must be dropped.
          prefilled: a cache of G rows, of this capacity or less.
        """

    def resize(self, params: Params, cache: Cache, num_rows: int, capacity: int) -> Cache:
        """The cache with another number of rows or another capacity, larger or smaller.

        Rows and entries that both have are kept. When the cache shrinks, the rows that go are free
        and the entries that go are stale.
        """

    def release(self, cache: Cache, free: jax.Array) -> Cache:
        """Gives back storage of rows that hold no sequence any more: ``free`` [R] bool.

        Called before the next ``insert`` or ``move`` onto them.
        """

    def temporaries(self, num_rows: int, block: int, capacity: int) -> int:
        """Bytes that ``extend`` needs besides its arguments and results, as far as known.

        For the memory plan; ``block`` is B. Without it: 0.
        """

    def on(self, size: int) -> "LanguageModel":
        """The model that each of ``size`` devices of the mesh axis "model" runs in ``shard_map``.

        Its logits are [R, B, V/size]. Without it, a mesh must have one device on that axis.

        Raises:
          ValueError: if the model cannot be split into that many parts.
        """

    def param_specs(self, params: Params) -> Any:
        """A pytree of ``PartitionSpec``: how each parameter is sharded. Without it: replicated."""

    @property
    def vocabulary(self) -> VocabSharding:
        """How the vocabulary axis of the logits is sharded. Without it: not at all."""
