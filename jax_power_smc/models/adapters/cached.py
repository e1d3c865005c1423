"""``CachedLM``: a model given as a function with a cache of its own.

Such a function appends the same number of tokens to all its sequences, at one position. The rows of
a ``LanguageModel`` are at different positions and are given different numbers of tokens, so the
function is mapped over rows, each a batch of one, and what it should not have written is undone:

    row of 8 entries, position 5        entries   a b c d e - - -
    block of 2, count 1                 written             x ?       "?" is put back as it was
    block of 4, count 3                 read              e x y z     from 4, or it would not fit:
                                                                      e is known, and read again

Letters: R rows, B tokens of a block, V vocabulary, L = ``max_positions``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_power_smc.core.types import Cache, Params
from jax_power_smc.models.adapters import validation
from jax_power_smc.models.cache_moves import write_entries


class CachedRows(NamedTuple):
    """The cache of ``CachedLM``.

    Attributes:
      tokens: [R, capacity] int32, those that each row holds; None if ``one_token``.
      inner: the function's own cache, every leaf with an axis of R rows in front; what has no such
        axis, like a position [], is there for every row.
    """

    tokens: jax.Array | None
    inner: Cache


class _Leaf(NamedTuple):
    """What is known of a leaf of the function's cache, from shapes alone.

    Attributes:
      has_rows: whether it leads with an axis of rows.
      entries: its axis of positions, entry = position; None if there is none.
    """

    has_rows: bool
    entries: int | None


# The name of a leaf, several names, a function (cache, position) -> cache, or None.
Position = str | tuple[str, ...] | Callable[..., Any] | None


@dataclasses.dataclass(frozen=True)
class CachedLM:
    """A model given as a function with a cache of its own, which grows by one entry per token.

    Its costs beyond those of ``TransformerLM``: attention to the whole capacity, copies of whole
    rows, and cache writes that XLA turns into scatters.

    Attributes:
      apply_fn: (params, tokens [B, S] int32, cache) -> (logits [B, S, V], cache). It appends S
        entries at the cache's position, and no token attends to entries after its own. An entry
        stays where it is: no sliding window, unless ``position`` is None.
      empty_cache: (params, batch B, capacity) -> an empty cache, a pytree whose arrays lead with B,
        except for positions and scalars. The capacity is at most L; a function that needs all L
        entries may always make as many.
      vocab_size: V.
      max_positions: L, the longest prompt plus generated tokens.
      position: where the cache keeps the number of its entries: the name of a leaf, or the names of
        all such leaves (keys or attributes anywhere on their paths); or a function (cache,
        position [] int32) -> the cache set to that position. None for a cache that cannot be
        rewound, such as a recurrent state: it requires ``one_token``, and ``MetropolisHastings`` is
        refused.
      one_token: whether ``apply_fn`` takes one token per call, like Flax's attention with a cache.
        Prompts are then read token by token.

    Raises:
      ValueError: for an invalid value; when sampling begins, for logits of the wrong shape or
        dtype, or an unusable cache.
    """

    apply_fn: Callable[..., Any]
    empty_cache: Callable[..., Any]
    _: dataclasses.KW_ONLY
    vocab_size: int
    max_positions: int
    position: Position
    one_token: bool = False

    def __post_init__(self) -> None:
        validation.check_sizes(self.vocab_size, self.max_positions)
        if self.max_positions is None:
            raise ValueError("max_positions is None; a cache needs it as its number of entries.")
        validation.check_position(self.position, self.one_token)

    @property
    def can_rewind(self) -> bool:
        """Whether a row may be extended from an earlier position."""
        return self.position is not None

    def init_cache(self, params: Params, num_rows: int, capacity: int) -> CachedRows:
        """Rows with ``capacity`` entries, or L if that is less."""
        inner = _map(
            self._inspect(params)[0],
            lambda leaf, x: x if leaf.has_rows else jnp.broadcast_to(x[None], (num_rows, *x.shape)),
            self._empty(params, num_rows, capacity),
        )
        tokens = None if self.one_token else jnp.zeros((num_rows, capacity), jnp.int32)
        return CachedRows(tokens, inner)

    def extend(
        self,
        params: Params,
        cache: CachedRows,
        tokens: jax.Array,
        position: jax.Array,
        count: jax.Array,
    ) -> tuple[jax.Array, CachedRows]:
        """tokens [R, B], ``count`` [R] of them at ``position`` [R] -> (logits [R, B, V], cache)."""
        kinds, dtype = self._inspect(params)
        if cache.tokens is None:
            last = jnp.int32(self.max_positions - 1)

            def read(index: Any, carry: tuple[jax.Array, Cache]) -> tuple[jax.Array, Cache]:
                column = jax.lax.dynamic_slice_in_dim(tokens, index, 1, axis=1)
                first = jnp.clip(position + index, 0, last)
                live = (index < count).astype(jnp.int32)
                logits, inner = self._append(params, kinds, carry[1], column, first, first, live)
                return jax.lax.dynamic_update_slice_in_dim(carry[0], logits, index, axis=1), inner

            start = jnp.zeros((*tokens.shape, self.vocab_size), dtype), cache.inner
            if tokens.shape[1] == 1:
                logits, inner = read(jnp.int32(0), start)
            else:
                logits, inner = jax.lax.fori_loop(0, jnp.max(count), read, start)
            return logits, CachedRows(None, inner)

        known = write_entries(cache.tokens, tokens, position, count)
        # A block that would go over the end begins earlier, with tokens that are there already.
        room = min(known.shape[1], self.max_positions)
        size = min(tokens.shape[1], room)
        first = jnp.clip(position, 0, room - size)
        at = first[:, None] + jnp.arange(size, dtype=jnp.int32)[None, :]
        block = jnp.take_along_axis(known, at, axis=1)
        logits, inner = self._append(params, kinds, cache.inner, block, first, position, count)
        if tokens.shape[1] > 1:
            at = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :] + (position - first)[:, None]
            logits = jnp.take_along_axis(logits, at[:, :, None], axis=1, mode="clip")
        return logits, CachedRows(known, inner)

    def _append(
        self,
        params: Params,
        kinds: Any,
        cache: Cache,
        tokens: jax.Array,
        first: jax.Array,
        position: jax.Array,
        count: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        """Reads tokens [R, S] at ``first`` [R] on, and keeps entries position to position + count.

        A leaf without an axis of positions is kept as a whole, if ``count`` is not 0.
        """
        size = tokens.shape[1]

        def one_row(
            rows: Cache, tokens: jax.Array, first: jax.Array, position: jax.Array, count: jax.Array
        ) -> tuple[jax.Array, Cache]:
            before = _map(kinds, lambda leaf, x: x[None] if leaf.has_rows else x, rows)
            at = first + jnp.arange(size, dtype=jnp.int32)
            keep = (at >= position) & (at < position + count)

            def entries(leaf: _Leaf, x: jax.Array) -> jax.Array:
                """What the block may overwrite."""
                if leaf.entries is None:
                    return x
                return jax.lax.dynamic_slice_in_dim(x, first, size, axis=leaf.entries)

            def restore(leaf: _Leaf, new: jax.Array, old: jax.Array) -> jax.Array:
                if leaf.entries is None:
                    return jnp.where(count > 0, new, old)
                shape = [1] * new.ndim
                shape[leaf.entries] = size
                kept = jnp.where(keep.reshape(shape), entries(leaf, new), old)
                return jax.lax.dynamic_update_slice_in_dim(new, kept, first, axis=leaf.entries)

            # Read before anything is overwritten, or XLA would copy the cache to keep it.
            old, before = jax.lax.optimization_barrier((_map(kinds, entries, before), before))
            logits, after = self._apply(params, tokens[None], before, first)
            after = _map(kinds, restore, after, old)
            return logits[0], _map(kinds, lambda leaf, x: x[0] if leaf.has_rows else x, after)

        return jax.vmap(one_row)(cache, tokens, first, position, count)

    def _empty(self, params: Params, batch: int, capacity: int) -> Cache:
        return _strong(self.empty_cache(params, batch, min(capacity, self.max_positions)))

    def _apply(
        self, params: Params, tokens: jax.Array, cache: Cache, position: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """tokens [B, S], the first at ``position`` [] -> (logits [B, S, V], cache)."""
        result = self.apply_fn(params, tokens, self._set(cache, position))
        if not isinstance(result, tuple) or len(result) != 2:
            raise ValueError(
                f"apply_fn returned a {type(result).__name__}; it must return a tuple "
                "(logits, cache)."
            )
        validation.check_logits(result[0], tokens, self.vocab_size)
        validation.check_same(cache, result[1])
        return result[0], _strong(result[1])

    def _set(self, cache: Cache, position: jax.Array) -> Cache:
        """The cache with its position set to ``position`` []."""
        if self.position is None:
            return cache
        if callable(self.position):
            after = self.position(cache, position)
            validation.check_same(cache, after)
            return _strong(after)
        return jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.full_like(x, position) if self._names(path) else x, cache
        )

    def _names(self, path: tuple[Any, ...]) -> bool:
        """Whether ``position`` names the leaf with this path."""
        if self.position is None or callable(self.position):
            return False
        names = (self.position,) if isinstance(self.position, str) else self.position
        return any(jax.tree_util.keystr((key,), simple=True) in names for key in path)

    # --- Found from shapes alone ---

    def _inspect(self, params: Params) -> tuple[Any, Any]:
        """A ``_Leaf`` for every leaf of the function's cache, and the dtype of the logits.

        Raises:
          ValueError: for an unusable cache or logits, such as a leaf that does not lead with the
            rows and is no position or scalar.
        """
        long, short = self.max_positions, max(1, self.max_positions // 2)
        two, three, half = (
            jax.eval_shape(lambda params, n=num, t=capacity: self._empty(params, n, t), params)
            for num, capacity in ((2, long), (3, long), (2, short))
        )
        if isinstance(self.position, str | tuple):
            self._check_names(jax.tree_util.tree_leaves_with_path(two))

        def inspect(path: tuple[Any, ...], x: Any, y: Any, z: Any) -> _Leaf:
            leads = x.shape[:1] == (2,) and y.shape[:1] == (3,) and x.shape[1:] == y.shape[1:]
            is_same = x.shape == y.shape and (self._names(path) or x.shape == ())
            if not leads and not is_same:
                raise ValueError(
                    f"the cache's leaf {jax.tree_util.keystr(path)} is {list(x.shape)} for 2 rows "
                    f"and {list(y.shape)} for 3; all but positions and scalars must lead with the "
                    "rows."
                )
            differ = [axis for axis in range(x.ndim) if x.shape[axis] != z.shape[axis]]
            is_entries = (
                len(differ) == 1 and x.shape[differ[0]] == long and z.shape[differ[0]] == short
            )
            return _Leaf(leads, differ[0] if is_entries else None)

        kinds = jax.tree_util.tree_map_with_path(inspect, two, three, half)
        tokens = jax.ShapeDtypeStruct((2, 1), jnp.int32)
        position = jax.ShapeDtypeStruct((), jnp.int32)
        return kinds, jax.eval_shape(self._apply, params, tokens, two, position)[0].dtype

    def _check_names(self, leaves: list[Any]) -> None:
        """Raises ValueError if ``position`` names no leaf, or misses one that may be a position."""
        known = [jax.tree_util.keystr(path) for path, _ in leaves]
        if not any(self._names(path) for path, _ in leaves):
            raise ValueError(
                f"position is {self.position!r}, but the cache's leaves are {', '.join(known)}; "
                "name those that count its entries."
            )
        for (path, leaf), name in zip(leaves, known, strict=True):
            is_counter = leaf.ndim < 2 and jnp.issubdtype(leaf.dtype, jnp.integer)
            if is_counter and not self._names(path):
                raise ValueError(
                    f"position is {self.position!r}, but the cache's leaf {name} "
                    f"({leaf.dtype}{list(leaf.shape)} for 2 rows) may be a position too; name all "
                    "of them, or make position a function."
                )


def _strong(tree: Any) -> Any:
    """The tree as arrays without weak types, which a loop carry could not keep."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)


def _map(kinds: Any, function: Callable[..., Any], *trees: Any) -> Any:
    """``function`` of every leaf's ``_Leaf`` and of the leaves themselves."""
    return jax.tree.map(function, kinds, *trees, is_leaf=lambda x: isinstance(x, _Leaf))
