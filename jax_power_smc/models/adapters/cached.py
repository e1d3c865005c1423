"""``CachedLM``: a model given as a function with a cache of its own.

Such a function appends the same number of tokens to all its sequences, at one position. The rows of
a ``LanguageModel`` are at different positions and are given different numbers of tokens, so the
function is mapped over rows, each a batch of one. What must not be written is written where nothing
reads it. (To undo it copied the cache: a step of attention alone took 2.5 to 5 times as long.)

    capacity 7, position 5          entries   a b c d e - - s
    one token, count 0                                      ?     the spare entry beyond the last
    block of 2, count 1                                 x ?       stale entries may be overwritten
    block of 4, count 2                           d e x y         begins earlier, or it would not
                                                                  fit: d and e are read again

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
      tokens: [R, capacity] int32, those that each row holds.
      inner: the function's own cache with a spare entry, if L allows. Every leaf leads with R; what
        has no axis of rows of its own, like a position [], is there for every row.
    """

    tokens: jax.Array
    inner: Cache


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
        leads, _ = self._inspect(params)

        def with_rows(leads: bool, x: jax.Array) -> jax.Array:
            return x if leads else jnp.broadcast_to(x[None], (num_rows, *x.shape))

        inner = jax.tree.map(with_rows, leads, self._empty(params, num_rows, capacity + 1))
        return CachedRows(jnp.zeros((num_rows, capacity), jnp.int32), inner)

    def extend(
        self,
        params: Params,
        cache: CachedRows,
        tokens: jax.Array,
        position: jax.Array,
        count: jax.Array,
    ) -> tuple[jax.Array, CachedRows]:
        """tokens [R, B], ``count`` [R] of them at ``position`` [R] -> (logits [R, B, V], cache)."""
        leads, dtype = self._inspect(params)
        known = write_entries(cache.tokens, tokens, position, count)
        capacity, block = known.shape[1], tokens.shape[1]
        if self.one_token or block == 1:
            # Nothing reads the last of L entries but the token that is in it.
            spare = jnp.int32(min(capacity, self.max_positions - 1))

            def read(index: Any, carry: tuple[jax.Array, Cache]) -> tuple[jax.Array, Cache]:
                live = index < count
                first = jnp.where(live, position + index, spare)
                column = jax.lax.dynamic_slice_in_dim(tokens, index, 1, axis=1)
                logits, inner = self._append(params, leads, carry[1], column, first, live)
                return jax.lax.dynamic_update_slice_in_dim(carry[0], logits, index, axis=1), inner

            start = jnp.zeros((*tokens.shape, self.vocab_size), dtype), cache.inner
            if block == 1:
                logits, inner = read(jnp.int32(0), start)
            else:
                logits, inner = jax.lax.fori_loop(0, jnp.max(count), read, start)
            return logits, CachedRows(known, inner)

        room = min(capacity, self.max_positions)
        size = min(block, room)
        first = jnp.clip(position, 0, room - size)
        at = first[:, None] + jnp.arange(size, dtype=jnp.int32)[None, :]
        window = jnp.take_along_axis(known, at, axis=1)
        logits, inner = self._append(params, leads, cache.inner, window, first, count > 0)
        at = (position - first)[:, None] + jnp.arange(block, dtype=jnp.int32)[None, :]
        logits = jnp.take_along_axis(logits, at[:, :, None], axis=1, mode="clip")
        return logits, CachedRows(known, inner)

    def _append(
        self,
        params: Params,
        leads: Any,
        cache: Cache,
        tokens: jax.Array,
        first: jax.Array,
        live: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        """Reads tokens [R, S] at ``first`` [R] on; rows that are not ``live`` [R] keep their state.

        Single tokens of a cache with positions must be harmless wherever ``first`` points.
        """
        keeps_state = self.position is None or tokens.shape[1] > 1

        def one_row(
            row: Cache, tokens: jax.Array, first: jax.Array, live: jax.Array
        ) -> tuple[jax.Array, Cache]:
            before = jax.tree.map(lambda leads, x: x[None] if leads else x, leads, row)
            logits, after = self._apply(params, tokens[None], before, first)
            if keeps_state:
                after = jax.tree.map(lambda new, old: jnp.where(live, new, old), after, before)
            return logits[0], jax.tree.map(lambda leads, x: x[0] if leads else x, leads, after)

        return jax.vmap(one_row)(cache, tokens, first, live)

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
        """Whether each leaf of the function's cache leads with rows, and the dtype of the logits.

        Raises:
          ValueError: for an unusable cache or logits, such as a leaf that does not lead with the
            rows and is no position or scalar.
        """
        two, three = (
            jax.eval_shape(lambda params, n=num: self._empty(params, n, self.max_positions), params)
            for num in (2, 3)
        )
        if isinstance(self.position, str | tuple):
            self._check_names(jax.tree_util.tree_leaves_with_path(two))

        def leads_with_rows(path: tuple[Any, ...], x: Any, y: Any) -> bool:
            leads = x.shape[:1] == (2,) and y.shape[:1] == (3,) and x.shape[1:] == y.shape[1:]
            is_same = x.shape == y.shape and (self._names(path) or x.shape == ())
            if not leads and not is_same:
                raise ValueError(
                    f"the cache's leaf {jax.tree_util.keystr(path)} is {list(x.shape)} for 2 rows "
                    f"and {list(y.shape)} for 3; all but positions and scalars must lead with the "
                    "rows."
                )
            return leads

        leads = jax.tree_util.tree_map_with_path(leads_with_rows, two, three)
        tokens = jax.ShapeDtypeStruct((2, 1), jnp.int32)
        position = jax.ShapeDtypeStruct((), jnp.int32)
        return leads, jax.eval_shape(self._apply, params, tokens, two, position)[0].dtype

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
