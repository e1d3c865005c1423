"""Checks for language models that others write."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc.core import checks
from jax_power_smc.core.types import Cache, Params
from jax_power_smc.models import cache_moves
from jax_power_smc.models.base import LanguageModel

# How far log p may be off, by the dtype of the logits; others are narrower than float32.
_TOLERANCES = {"float64": 1e-8, "float32": 1e-3}
_NARROW_TOLERANCE = 0.1

_INDEPENDENT = "rows of different lengths must not depend on each other"
_CAPACITY = "the capacity of a cache must have no influence"


def check_language_model(
    model: LanguageModel,
    params: Params,
    *,
    forward: Callable[[Params, jax.Array], Any] | None = None,
    capacity: int = 16,
    tolerance: float | None = None,
    seed: int = 0,
) -> None:
    """Checks that a model obeys the protocol of ``LanguageModel``.

    Random sequences are read in every way that the engine reads them, and log p of every token is
    compared with that of the same sequence alone in a new cache, token by token. That takes less
    than a minute for a small model; a large one should be checked in a small configuration. What
    only a mesh needs (``on``, ``param_specs``) is not checked.

    Args:
      model, params: the model and its parameters. Its logits should depend on all earlier tokens:
        what has no influence cannot be checked.
      forward: (params, tokens [1, S] int32) -> logits [1, S, V] of whole sequences, if there is
        such a function: without it, a model that is wrong in the same way everywhere is not found.
      capacity: the longest sequence, at least 8; more than the window if the model has one.
      tolerance: how far log p may be off, in nats, and relative to log p where that is below -1.
        By default it depends on the dtype of the logits.
      seed: of the sequences.

    Raises:
      AssertionError: one sentence that says what is violated.
      ValueError: for an invalid argument, or a model with fewer than 8 positions.
    """
    limit = getattr(model, "max_positions", None)
    capacity = checks.integer("capacity", capacity, at_least=8)
    if limit is not None:
        capacity = min(capacity, checks.integer("max_positions", limit, at_least=8))
    if tolerance is not None:
        tolerance = checks.number("tolerance", tolerance, above=0)
    rng = np.random.default_rng(checks.integer("seed", seed, at_least=0))
    checker = _Checker(model, params, capacity, tolerance, rng)
    checker.check_interface()
    if forward is not None:
        checker.check_forward(forward)
    for check in (
        _check_blocks,
        _check_padding,
        _check_rows,
        _check_idle_rows,
        _check_end,
        _check_insert,
        _check_moves,
        _check_resize,
        _check_rewind,
        _check_vmap,
    ):
        check(checker)


class _Checker:
    """A model with its compiled functions, and log p of sequences read token by token."""

    def __init__(
        self,
        model: LanguageModel,
        params: Params,
        capacity: int,
        tolerance: float | None,
        rng: np.random.Generator,
    ) -> None:
        self.model, self.params, self.capacity, self.rng = model, params, capacity, rng
        # One size of blocks besides 1, and few sizes of tables, to compile little.
        self.block = capacity // 2
        self.sizes = {"full": (4, capacity), "small": (3, self.block), "single": (1, capacity)}
        self._tolerance = tolerance
        self._known: dict[tuple[int, ...], np.ndarray] = {}
        self.extend = jax.jit(model.extend)
        self.init = jax.jit(model.init_cache, static_argnums=(1, 2))
        self.move = jax.jit(functools.partial(cache_moves.move_rows, model))
        self.insert = jax.jit(functools.partial(cache_moves.insert_rows, model))
        self.release = jax.jit(functools.partial(cache_moves.release_rows, model))
        resize = functools.partial(cache_moves.resize_cache, model)
        self.resize = jax.jit(resize, static_argnums=(2, 3))

        def read(params: Params, tokens: jax.Array) -> jax.Array:
            """tokens [S] -> logits [S, V], one by one."""

            def step(cache: Cache, token_and_position: Any) -> tuple[Cache, jax.Array]:
                token, position = token_and_position
                one = jnp.ones((1,), jnp.int32)
                logits, cache = model.extend(params, cache, token[None, None], position[None], one)
                return cache, logits[0, 0]

            positions = jnp.arange(capacity, dtype=jnp.int32)
            cache = model.init_cache(params, 1, capacity)
            return jax.lax.scan(step, cache, (tokens, positions))[1]

        self._read = jax.jit(read)

    def tokens(self, *lengths: int) -> list[list[int]]:
        """Random sequences."""
        return [self.rng.integers(self.model.vocab_size, size=n).tolist() for n in lengths]

    def reference(self, sequence: Sequence[int]) -> np.ndarray:
        """log p [S, V] after every token of a sequence that is alone in a new cache."""
        if tuple(sequence) not in self._known:
            padded = np.zeros(self.capacity, np.int32)
            padded[: len(sequence)] = sequence
            logits = np.asarray(self._read(self.params, jnp.asarray(padded)))
            self._known[tuple(sequence)] = _log_softmax(logits[: len(sequence)])
        return self._known[tuple(sequence)]

    def compare(self, claim: str, row: int, first: int, logits: Any, sequence: list[int]) -> None:
        """Raises AssertionError unless logits [n, V] at ``first`` and after are the reference."""
        want, got = self.reference(sequence)[first:], _log_softmax(logits)
        default = _TOLERANCES.get(str(logits.dtype), _NARROW_TOLERANCE)
        allowed = default if self._tolerance is None else self._tolerance
        with np.errstate(invalid="ignore"):
            near = np.abs(got - want) <= allowed * np.maximum(1, np.abs(want))
        wrong = np.argwhere(~(near & np.isfinite(want)) & (got != want))
        if len(wrong):
            at, token = wrong[0].tolist()
            raise AssertionError(
                f"{claim}: at position {first + at} of row {row}, log p of token {token} is "
                f"{got[at, token]:.6g} instead of {want[at, token]:.6g}, its value in a new cache "
                "read token by token."
            )

    def check_interface(self) -> None:
        """Hashes, shapes and dtypes."""
        model = self.model
        try:
            hash(model)
        except TypeError as error:
            raise AssertionError(
                f"the model must be hashable, as a static argument of jitted functions ({error})."
            ) from error
        size = checks.as_integer(model.vocab_size)
        if size is None or size < 1:
            raise AssertionError(
                f"vocab_size is {model.vocab_size!r}; it must be an integer of at least 1."
            )
        before = self.init(self.params, 3, self.capacity)
        for path, leaf in jax.tree_util.tree_leaves_with_path(before):
            if leaf.shape[:1] != (3,):
                raise AssertionError(
                    f"every leaf of a cache must lead with its 3 rows, but "
                    f"{jax.tree_util.keystr(path)} is {list(leaf.shape)}."
                )
        _assert_finite("init_cache must give finite values", before)
        vector = jnp.zeros((3,), jnp.int32)
        for block in (1, 2):
            tokens = jnp.zeros((3, block), jnp.int32)
            result = jax.eval_shape(model.extend, self.params, before, tokens, vector, vector)
            if not isinstance(result, tuple) or len(result) != 2:
                raise AssertionError("extend must return a tuple (logits, cache).")
            logits, after = result
            shape = (3, block, size)
            if logits.shape != shape or not jnp.issubdtype(logits.dtype, jnp.floating):
                raise AssertionError(
                    f"extend must return floating-point logits {list(shape)} for tokens "
                    f"{list(tokens.shape)}, but they are {logits.dtype}{list(logits.shape)}."
                )
            old, new = (
                [
                    f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}"
                    for path, leaf in jax.tree_util.tree_leaves_with_path(cache)
                ]
                for cache in (before, after)
            )
            if old != new:
                raise AssertionError(
                    "extend must return a cache of the same structure, shapes and dtypes, but "
                    f"{old} came back as {new}."
                )

    def check_forward(self, forward: Callable[[Params, jax.Array], Any]) -> None:
        """Token by token, logits are those of whole sequences."""
        (sequence,) = self.tokens(self.capacity)
        logits = forward(self.params, jnp.asarray([sequence], jnp.int32))
        claim = "forward and extend must give the same"
        self.compare(claim, 0, 0, logits[0], sequence)


class _Table:
    """A cache of R rows, and what each of them holds."""

    def __init__(self, checker: _Checker, size: str = "full") -> None:
        self.checker = checker
        self.cache = checker.init(checker.params, *checker.sizes[size])
        self.held: list[list[int]] = [[] for _ in range(checker.sizes[size][0])]

    def read(
        self,
        claim: str,
        tokens: Mapping[int, Sequence[int]],
        block: int,
        idle_position: int | None = None,
    ) -> None:
        """Extends the rows named by their next tokens, in one block; the others have count 0.

        Their position is that of the row, or ``idle_position``.
        """
        checker, num = self.checker, len(self.held)
        padded = checker.rng.integers(checker.model.vocab_size, size=(num, block))
        position, count = [len(held) for held in self.held], [0] * num
        for row in range(num):
            if row in tokens:
                count[row] = len(tokens[row])
                padded[row, : count[row]] = tokens[row]
            elif idle_position is not None:
                position[row] = idle_position
        args = (jnp.asarray(x, jnp.int32) for x in (padded, position, count))
        logits, self.cache = checker.extend(checker.params, self.cache, *args)
        logits = np.asarray(logits)
        for row, new in tokens.items():
            self.held[row] = [*self.held[row], *new]
            checker.compare(claim, row, position[row], logits[row, : len(new)], self.held[row])
        _assert_finite("entries of a cache must be finite, stale ones too", self.cache)

    def go_on(self, claim: str, *rows: int) -> None:
        """Reads one more token in these rows, in all if none are named, with blocks of one."""
        rows = rows or tuple(range(len(self.held)))
        tokens = self.checker.tokens(*[1] * len(rows))
        self.read(claim, dict(zip(rows, tokens, strict=True)), 1)

    def start(self, prompts: Sequence[Sequence[int]], claim: str = _INDEPENDENT) -> None:
        """Reads prompts into the first rows, in blocks."""
        block = self.checker.block
        for first in range(0, max(map(len, prompts)), block):
            parts = {row: prompt[first : first + block] for row, prompt in enumerate(prompts)}
            self.read(claim, {row: part for row, part in parts.items() if part}, block)

    def insert(self, rows: Sequence[int], group: "_Table") -> None:
        """Releases these rows and inserts those of the group; an index may be padding."""
        num = len(self.held)
        free = np.isin(np.arange(num), rows)
        cache = self.checker.release(self.cache, jnp.asarray(free))
        self.cache = self.checker.insert(cache, jnp.asarray(rows, jnp.int32), group.cache)
        for row, held in zip(rows, group.held, strict=True):
            if row < num:
                self.held[row] = [*held]

    def move(self, pairs: Sequence[tuple[int, int]], count: int) -> None:
        """Makes the first ``count`` of the moves (source, destination)."""
        index = [[source for source, _ in pairs], [destination for _, destination in pairs]]
        length = [len(self.held[source]) for source in index[0]]
        args = (jnp.asarray(x, jnp.int32) for x in (*index, length, count))
        self.cache = self.checker.move(self.cache, *args)
        for source, destination in pairs[:count]:
            self.held[destination] = [*self.held[source]]

    def resize(self, size: str) -> None:
        """Changes the size; new rows hold nothing."""
        checker, (num_rows, capacity) = self.checker, self.checker.sizes[size]
        self.cache = checker.resize(checker.params, self.cache, num_rows, capacity)
        self.held = [*self.held, *[[] for _ in range(num_rows)]][:num_rows]


def _check_blocks(checker: _Checker) -> None:
    table, (tokens,) = _Table(checker, "single"), checker.tokens(checker.block)
    claim = "a block of several tokens must give what single tokens give"
    table.read(claim, {0: tokens}, checker.block)
    table.go_on("a token after a block must see the whole block, and need no other")
    table = _Table(checker, "single")
    table.go_on("the first token must be read alone in a new cache")
    table.go_on("a token must see the one before it")
    claim = "a block at a position above 0 must see what is before it"
    table.read(claim, {0: tokens}, checker.block)


def _check_padding(checker: _Checker) -> None:
    table = _Table(checker, "single")
    claim = "tokens at or beyond count must have no influence"
    for num in (2, 1):
        (tokens,) = checker.tokens(num)
        table.read(claim, {0: tokens}, checker.block)
        table.go_on(claim)


def _check_rows(checker: _Checker) -> None:
    table = _Table(checker)
    table.start(checker.tokens(checker.block - 1, 1, 3, 2))
    table.go_on(_INDEPENDENT)
    tokens = checker.tokens(1, 2, 1, 3)
    table.read(
        _INDEPENDENT, {2: tokens[0], 3: tokens[1], 0: tokens[2], 1: tokens[3]}, checker.block
    )
    table.go_on(_INDEPENDENT)


def _check_idle_rows(checker: _Checker) -> None:
    claim = "a row of count 0 must be left as it was"
    for position in (None, 0, checker.capacity):
        for block in (1, checker.block):
            table = _Table(checker)
            table.start(checker.tokens(4, 1, 3, 2))
            (tokens,) = checker.tokens(block)
            table.read(claim, {0: tokens[:1], 2: tokens}, block, idle_position=position)
            table.go_on(claim)


def _check_end(checker: _Checker) -> None:
    claim = "a block whose padding goes over the capacity must be read at its own position"
    table = _Table(checker)
    table.start(checker.tokens(checker.capacity - 2, 2))
    tokens = checker.tokens(2, 1)
    table.read(claim, dict(enumerate(tokens)), checker.block)
    table.go_on("full rows must not disturb others", 1)


def _check_insert(checker: _Checker) -> None:
    table, group = _Table(checker), _Table(checker, "small")
    table.start(checker.tokens(checker.capacity - 3, 2, checker.capacity - 3, 4))
    # Other tokens than those of the rows that they replace.
    group.start(
        [
            [(token + 1) % checker.model.vocab_size for token in table.held[row][:3]]
            for row in (0, 1)
        ],
        _CAPACITY,
    )
    table.insert([0, len(table.held), 2], group)
    table.go_on("padding of an inserted group must be dropped", 1, 3)
    table.go_on("an inserted row must hold its own sequence, whatever the row held before", 0)
    table.go_on("an inserted row that has read nothing must be like new", 2)
    (tokens,) = checker.tokens(2)
    table.read("a block must not see stale entries of its row", {2: tokens}, checker.block)


def _check_moves(checker: _Checker) -> None:
    table = _Table(checker)
    table.start(checker.tokens(3, 5, 2, checker.capacity - 3))
    claim = "moves at or beyond count must not be made"
    table.move([(0, 3), (1, 2)], 0)
    table.go_on(claim)
    table.move([(0, 3), (1, 2)], 1)
    table.go_on("a moved row must continue the sequence of its source", 3)
    table.go_on(claim, 2)
    table.go_on("the source of a move must be left as it was", 0, 1)
    table.move([(1, 3), (0, 2)], 2)
    table.go_on("all moves below count must be made", 2, 3)


def _check_resize(checker: _Checker) -> None:
    claim = "a cache of another size must hold the same rows"
    table = _Table(checker, "small")
    table.start(checker.tokens(2, 1), _CAPACITY)
    table.resize("full")
    table.go_on(claim, 0, 1)
    table.resize("small")
    table.go_on(claim, 0, 1)


def _check_rewind(checker: _Checker) -> None:
    if not getattr(checker.model, "can_rewind", True):
        return
    claim = "a row must not see what it read before a rewind (or can_rewind must be False)"
    table = _Table(checker)
    table.start(checker.tokens(checker.block, 4))
    table.held = [table.held[0][:3], table.held[1][:1], [], []]
    table.go_on(claim, 0, 1)
    table.held[0] = []
    (tokens,) = checker.tokens(2)
    table.read(claim, {0: tokens}, checker.block)


def _check_vmap(checker: _Checker) -> None:
    model, params = checker.model, checker.params
    prompts = checker.tokens(4, 2, 3, 1)
    padded = np.zeros((4, checker.block), np.int32)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = prompt
    counts = np.array([len(prompt) for prompt in prompts], np.int32)
    extend = jax.jit(jax.vmap(model.extend, in_axes=(None, 0, 0, 0, 0)))
    one = checker.init(params, 2, checker.capacity)
    cache = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), one)
    try:
        for tokens, position, count in (
            (padded, np.zeros_like(counts), counts),
            (padded[:, :1], counts, np.array([1, 0, 1, 1], np.int32)),
        ):
            args = [jnp.asarray(x.reshape(2, 2, *x.shape[1:])) for x in (tokens, position, count)]
            logits, cache = extend(params, cache, *args)
            logits = np.asarray(logits)
            for row, end in enumerate(count.tolist()):
                first = int(position[row])
                sequence = [*prompts[row][:first], *tokens[row, :end].tolist()]
                seen = logits[row // 2, row % 2, :end]
                claim = "extend must give the same under jax.vmap over prompts"
                checker.compare(claim, row, first, seen, sequence)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(
            "extend must work under jax.vmap over prompts, with the parameters shared, but it "
            f"raised {type(error).__name__}."
        ) from error


def _assert_finite(claim: str, cache: Cache) -> None:
    """Raises AssertionError unless all values of a cache are finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(cache):
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        if is_float and not np.isfinite(np.asarray(leaf, np.float64)).all():
            raise AssertionError(f"{claim}, but the leaf {jax.tree_util.keystr(path)} has others.")


def _log_softmax(logits: Any) -> np.ndarray:
    values = np.asarray(logits, np.float64)
    return values - np.logaddexp.reduce(values, axis=-1, keepdims=True)
