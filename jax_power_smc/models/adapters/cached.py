"""``CachedLM``: a model given as a function with a cache of its own.

The ``LanguageModel`` protocol separates the prompt, which particles share, from the cache of
generated tokens, which they do not. A foreign cache holds both, and is used like this:

    prefill          the prompt is read into a cache of one row, which becomes the context
    decode, step 0   every particle's cache becomes a copy of that row, whatever was there before
    every decode     the position is set to prompt length + step, then a token is appended

    prompt of 3 tokens, padded to 5    entries   a b c . .     what padding wrote lies at or beyond
    particle 0 at step 1                         a b c x y     the position, and is overwritten
    particle 1 at step 1                         a b c z w     before it is attended to

Letters: P prompts, B rows, N particles, S prompt length, V vocabulary, L = ``max_positions``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_power_smc.core.types import Cache, Params
from jax_power_smc.models.adapters import validation
from jax_power_smc.models.vmap_rules import broadcast_unbatched


class CachedPrompt(NamedTuple):
    """What the particles of one prompt share.

    Attributes:
      cache: of one row, leaves [1, ...].
      length: [] int32, number of prompt tokens that are not padding.
    """

    cache: Cache
    length: jax.Array


# The name of a leaf, several names, a function (cache, position) -> cache, or None.
Position = str | tuple[str, ...] | Callable[..., Any] | None


@dataclasses.dataclass(frozen=True)
class CachedLM:
    """A model given as a function with a cache of its own, which grows by one entry per token.

    Its costs beyond those of a model whose particles share their prompt (``TransformerLM``): memory
    for N + 1 rows of L entries per prompt from the start; attention to each particle's own copy of
    the prompt; copies of whole rows when a particle replaces another; and, because the prompts of a
    batch are at different positions, cache writes that XLA turns into scatters.

    Attributes:
      apply_fn: (params, tokens [B, S] int32, cache) -> (logits [B, S, V], cache). It appends S
        entries at the cache's position, and no token attends to entries after its own. An entry
        stays where it is: no sliding window, unless ``position`` is None.
      empty_cache: (params, batch B, capacity L) -> an empty cache, a pytree whose arrays lead with
        B, except for positions and scalars.
      vocab_size: V.
      max_positions: L, the longest prompt plus generated tokens.
      position: where the cache keeps the number of its entries: the name of a leaf, or the names of
        all such leaves (keys or attributes anywhere on their paths); or a function (cache,
        position [] int32) -> the cache set to that position. None for a cache that cannot be
        rewound, such as a recurrent state: it requires ``one_token``, and ``MetropolisHastings`` is
        refused.
      one_token: whether ``apply_fn`` takes one token per call, like Flax's attention with a cache.
        Prompts are then read token by token, and their padding is not read.

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
    def can_go_back(self) -> bool:
        """Whether an earlier step can be decoded again."""
        return self.position is not None

    def prefill(
        self, params: Params, prompt: jax.Array, length: jax.Array
    ) -> tuple[jax.Array, CachedPrompt]:
        """prompt [S] int32, of which ``length`` tokens count -> (logits [V], context)."""
        rowless, dtype = self._rowless(params), self._check(params)
        cache = self._empty(params, 1)
        zero = jnp.zeros((), jnp.int32)
        if self.one_token:

            def read(index: jax.Array, carry: tuple[jax.Array, Cache]) -> tuple[jax.Array, Cache]:
                token = jax.lax.dynamic_slice_in_dim(prompt, index, 1)
                logits, cache = self._apply(params, token[None], carry[1], index)
                return logits[0, 0], cache

            start = jnp.zeros((self.vocab_size,), dtype), cache
            logits, cache = jax.lax.fori_loop(zero, length, read, start)
        else:
            logits, cache = self._apply(params, prompt[None], cache, zero)
            logits = jax.lax.dynamic_index_in_dim(logits[0], length - 1, axis=0, keepdims=False)
        return logits, CachedPrompt(_with_rows(cache, rowless, 1), length)

    def init_cache(self, params: Params, num_particles: int, capacity: int) -> Cache:
        """Room for L entries of each of N particles; ``decode`` fills it at step 0."""
        cache = self._empty(params, num_particles)
        return _with_rows(cache, self._rowless(params), num_particles)

    def decode(
        self,
        params: Params,
        context: CachedPrompt,
        cache: Cache,
        token: jax.Array,
        step: jax.Array,
        clock: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        """token [N] int32 at generated index ``step`` [] -> (logits [N, V], cache)."""
        del clock  # entries lie at positions
        rowless = self._rowless(params)
        cache = _without_rows(begin(cache, context.cache, step == 0), rowless)
        # A finished prompt may be decoded beyond the end; its results are ignored.
        position = jnp.minimum(context.length + step, jnp.int32(self.max_positions - 1))
        logits, cache = self._apply(params, token[:, None], cache, position)
        return logits[:, 0], _with_rows(cache, rowless, token.shape[0])

    def temporaries(self, num_particles: int, prompt_tokens: int, capacity: int) -> tuple[int, int]:
        """Bytes of a prompt's prefill and step: the logits of a prompt; the rest is unknown."""
        at_once = 1 if self.one_token else prompt_tokens
        return 4 * self.vocab_size * at_once, 0

    def _empty(self, params: Params, batch: int) -> Cache:
        return _strong(self.empty_cache(params, batch, self.max_positions))

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

    def _rowless(self, params: Params) -> list[bool]:
        """Which leaves of a cache have no axis of rows, such as a position [].

        Raises:
          ValueError: for a leaf that does not lead with the rows and is no position or scalar.
        """
        two, three = (
            jax.tree_util.tree_leaves_with_path(
                jax.eval_shape(lambda params, b=batch: self._empty(params, b), params)
            )
            for batch in (2, 3)
        )
        rowless = []
        for (path, x), (_, y) in zip(two, three, strict=True):
            leads = x.shape[:1] == (2,) and y.shape[:1] == (3,) and x.shape[1:] == y.shape[1:]
            is_same = x.shape == y.shape and (self._names(path) or x.shape == ())
            if not leads and not is_same:
                raise ValueError(
                    f"the cache's leaf {jax.tree_util.keystr(path)} is {list(x.shape)} for 2 rows "
                    f"and {list(y.shape)} for 3; all but positions and scalars must lead with the "
                    "rows."
                )
            rowless.append(not leads)
        return rowless

    def _check(self, params: Params) -> Any:
        """The dtype of the logits; ValueError for an unusable cache or logits."""
        cache = jax.eval_shape(lambda params: self._empty(params, 2), params)
        if isinstance(self.position, str | tuple):
            self._check_names(jax.tree_util.tree_leaves_with_path(cache))
        tokens = jax.ShapeDtypeStruct((2, 1), jnp.int32)
        position = jax.ShapeDtypeStruct((), jnp.int32)
        return jax.eval_shape(self._apply, params, tokens, cache, position)[0].dtype

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


@jax.custom_batching.custom_vmap
def begin(cache: Cache, prompt: Cache, begins: jax.Array) -> Cache:
    """The particles' cache, leaves [N, ...]; if ``begins`` [], copies of the prompt's, [1, ...].

    Under vmap only the prompts that begin are written, in the cache's own memory. A conditional
    would become a select, which writes the whole cache in every step.
    """

    def copies() -> Any:
        return jax.tree.map(lambda x, y: jnp.broadcast_to(y, x.shape), cache, prompt)

    return jax.lax.cond(begins, copies, lambda: cache)


@begin.def_vmap
def _begin_of_prompts(
    size: int, batched: Any, cache: Cache, prompt: Cache, begins: jax.Array
) -> tuple[Any, Any]:
    """Leaves [P, N, ...] and [P, 1, ...], begins [P]."""
    cache, prompt, begins = broadcast_unbatched(size, tuple(batched), (cache, prompt, begins))
    which = jnp.nonzero(begins, size=size, fill_value=0)[0].astype(jnp.int32)

    def fill(index: jax.Array, cache: Cache) -> Any:
        def fill_leaf(leaf: jax.Array, prompt: jax.Array) -> jax.Array:
            row = jax.lax.dynamic_slice_in_dim(prompt, which[index], 1, axis=0)
            rows = jnp.broadcast_to(row, (1, *leaf.shape[1:]))
            return jax.lax.dynamic_update_slice_in_dim(leaf, rows, which[index], axis=0)

        return jax.tree.map(fill_leaf, cache, prompt)

    filled = jax.lax.fori_loop(0, jnp.sum(begins, dtype=jnp.int32), fill, cache)
    return filled, jax.tree.map(lambda _: True, filled)


def _strong(tree: Any) -> Any:
    """The tree as arrays without weak types, which a loop carry could not keep."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)


def _with_rows(cache: Cache, rowless: list[bool], num: int) -> Cache:
    """The cache with an axis of N rows added to the leaves that have none."""
    leaves, structure = jax.tree.flatten(cache)
    led = [
        jnp.broadcast_to(x[None], (num, *x.shape)) if none else x
        for x, none in zip(leaves, rowless, strict=True)
    ]
    return jax.tree.unflatten(structure, led)


def _without_rows(cache: Cache, rowless: list[bool]) -> Cache:
    """The inverse of ``_with_rows``: all rows of such a leaf are equal."""
    leaves, structure = jax.tree.flatten(cache)
    own = [x[0] if none else x for x, none in zip(leaves, rowless, strict=True)]
    return jax.tree.unflatten(structure, own)
