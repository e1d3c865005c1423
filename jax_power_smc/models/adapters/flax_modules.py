"""Flax modules, NNX and Linen, as ``PlainLM`` or ``CachedLM``.

Letters: B rows, S prompt length, V vocabulary, L = ``max_positions``.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import nnx

from jax_power_smc.core.types import Cache, Params
from jax_power_smc.models.adapters.cached import CachedLM, Position
from jax_power_smc.models.adapters.plain import PlainLM

_NOT_EVALUATING = (
    "the module cannot be applied ({}); use it in evaluation mode, with deterministic=True for "
    "dropout and use_running_average=True for batch norms."
)


def from_nnx(
    module: nnx.Module,
    *,
    vocab_size: int,
    max_positions: int | None = None,
    init_cache: Callable[..., None] | None = None,
    position: Position = "cache_index",
    one_token: bool = True,
    call: Callable[..., Any] | None = None,
) -> tuple[PlainLM | CachedLM, nnx.State]:
    """A Flax NNX module as a model, and its parameters.

    Args:
      module: maps tokens [B, S] int32 to logits [B, S, V], in evaluation mode (``module.eval()``).
        It is not changed; state that it updates when called is discarded, except for its cache.
      vocab_size: V.
      max_positions: L; required with a cache.
      init_cache: (module, batch B, capacity), puts an empty cache of at most L entries into the
        module: variables of type ``nnx.Cache``, as ``nnx.MultiHeadAttention.init_cache`` does. None
        for no cache.
      position, one_token: of the cache, see ``CachedLM``.
      call: (module, tokens) -> logits; None for ``module(tokens)``.

    Raises:
      ValueError: see ``PlainLM`` and ``CachedLM``; for a module in training mode.
    """
    _check_call(module, call)
    for path, part in nnx.iter_modules(module):
        for name, training in (("deterministic", False), ("use_running_average", False)):
            drops = getattr(part, "rate", getattr(part, "dropout_rate", 1)) != 0
            if getattr(part, name, None) is training and drops:
                place = ".".join(map(str, path)) or "the module"
                raise ValueError(
                    f"the module is in training mode: {place} has {name}={training}; call "
                    "module.eval() first."
                )
    graph, params = nnx.split(module)
    if init_cache is None:
        return PlainLM(_NnxPlain(graph, call), vocab_size, max_positions), params
    model = CachedLM(
        _NnxCached(graph, call, init_cache, max_positions),
        _NnxEmpty(graph, init_cache),
        vocab_size=vocab_size,
        max_positions=max_positions,  # type: ignore[arg-type]  # None is refused
        position=position,
        one_token=one_token,
    )
    return model, params


def from_linen(
    module: Any,
    variables: Any,
    *,
    vocab_size: int,
    max_positions: int | None = None,
    position: Position = "cache_index",
    one_token: bool = True,
    call: Callable[..., Any] | None = None,
) -> tuple[PlainLM | CachedLM, dict[str, Any]]:
    """A Flax Linen module as a model, and its parameters.

    Args:
      module: maps tokens [B, S] int32 to logits [B, S, V], in evaluation mode.
      variables: its collections. If "cache" is among them, the module is used with a cache, and
        ``module.init`` with tokens [B, S] must create an empty one of S entries, for S up to L; the
        given cache is ignored.
      vocab_size: V.
      max_positions: L; required with a cache.
      position, one_token: of the cache, see ``CachedLM``.
      call: (module, tokens) -> logits; None for ``module(tokens)``.

    Raises:
      ValueError: see ``PlainLM`` and ``CachedLM``; for a module in training mode, when sampling
        begins.
    """
    _check_call(module, call)
    params = {name: part for name, part in variables.items() if name != "cache"}
    if "cache" not in variables:
        return PlainLM(_LinenPlain(module, call), vocab_size, max_positions), params
    model = CachedLM(
        _LinenCached(module, call),
        _LinenEmpty(module, call),
        vocab_size=vocab_size,
        max_positions=max_positions,  # type: ignore[arg-type]  # None is refused
        position=position,
        one_token=one_token,
    )
    return model, params


# Functions as dataclasses: two are equal if their fields are.


@dataclasses.dataclass(frozen=True)
class _NnxPlain:
    """``apply_fn`` of a module without a cache."""

    graph: Any
    call: Callable[..., Any] | None

    def __call__(self, params: Params, tokens: jax.Array) -> Any:
        return _call_nnx(nnx.merge(self.graph, params), self.call, tokens)


@dataclasses.dataclass(frozen=True)
class _NnxCached:
    """``apply_fn`` of a module with a cache."""

    graph: Any
    call: Callable[..., Any] | None
    init_cache: Callable[..., None]
    capacity: Any

    def __call__(self, params: Params, tokens: jax.Array, cache: Cache) -> Any:
        module = nnx.merge(self.graph, params)
        self.init_cache(module, tokens.shape[0], self.capacity)
        nnx.update(module, cache)
        logits = _call_nnx(module, self.call, tokens)
        return logits, nnx.state(module, nnx.Cache)


@dataclasses.dataclass(frozen=True)
class _NnxEmpty:
    """``empty_cache`` of such a module."""

    graph: Any
    init_cache: Callable[..., None]

    def __call__(self, params: Params, batch: int, capacity: int) -> Any:
        module = nnx.merge(self.graph, params)
        self.init_cache(module, batch, capacity)
        return nnx.state(module, nnx.Cache)


@dataclasses.dataclass(frozen=True)
class _LinenPlain:
    """``apply_fn`` of a module without a cache."""

    module: Any
    call: Callable[..., Any] | None

    def __call__(self, params: Params, tokens: jax.Array) -> Any:
        with _evaluating():
            return self.module.apply(params, tokens, method=self.call)


@dataclasses.dataclass(frozen=True)
class _LinenCached:
    """``apply_fn`` of a module with a cache."""

    module: Any
    call: Callable[..., Any] | None

    def __call__(self, params: Params, tokens: jax.Array, cache: Cache) -> Any:
        variables = {**params, "cache": cache}
        with _evaluating():
            logits, changed = self.module.apply(
                variables, tokens, method=self.call, mutable=["cache"]
            )
        return logits, changed["cache"]


@dataclasses.dataclass(frozen=True)
class _LinenEmpty:
    """``empty_cache`` of such a module."""

    module: Any
    call: Callable[..., Any] | None

    def __call__(self, params: Params, batch: int, capacity: int) -> Any:
        # The parameters created here are unused, and compiled programs drop them.
        tokens = jnp.zeros((batch, capacity), jnp.int32)
        with _evaluating():
            return self.module.init(jax.random.key(0), tokens, method=self.call)["cache"]


def _call_nnx(module: nnx.Module, call: Callable[..., Any] | None, tokens: jax.Array) -> Any:
    """The module's logits; ValueError if it draws, or normalizes by the batch, to get them."""

    def drawn_or_averaged() -> list[Any]:
        return jax.tree.leaves(nnx.state(module, nnx.Any(nnx.RngState, nnx.BatchStat)))

    before = drawn_or_averaged()
    with _evaluating():
        logits = module(tokens) if call is None else call(module, tokens)
    if any(x is not y for x, y in zip(before, drawn_or_averaged(), strict=True)):
        raise ValueError(_NOT_EVALUATING.format("it draws random numbers or updates averages"))
    return logits


def _check_call(module: Any, call: Callable[..., Any] | None) -> None:
    """Raises ValueError unless the module, or ``call``, needs no arguments but tokens."""
    try:
        inspect.signature(module if call is None else call).bind(*[None] * (1 + (call is not None)))
    except TypeError as error:
        called = "the module" if call is None else "call"
        given = "tokens" if call is None else "the module and tokens"
        raise ValueError(
            f"{called} cannot be called with {given} alone ({error}); pass a function "
            "call=(module, tokens) that supplies the rest, with dropout off."
        ) from error


@contextlib.contextmanager
def _evaluating() -> Iterator[None]:
    """Turns Flax's errors about a module that draws or updates something into one sentence."""
    try:
        yield
    except flax.errors.FlaxError as error:
        raise ValueError(_NOT_EVALUATING.format(type(error).__name__)) from error
