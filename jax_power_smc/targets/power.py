"""The target distribution, declared as an object (docs/math.md, eqs. 1 to 3).

``pi_alpha(y|x) ∝ p(y|x)^alpha`` over sequences that stop at the first end token or at the cap.
Every restriction of the sequences is part of the target and applies to all samplers alike:

* ``length="stopped"``: a sequence that reaches the cap unfinished keeps its prefix weight;
  ``"forced_eos"``: at the last step only ending tokens have support.
* ``min_new_tokens``: ending tokens have no support before that step.
* ``top_k``, ``top_p``: at every step the support is that set of the *base* distribution. The
  target is ``p^alpha`` on it; p is not renormalised.
* ``stop``: a stop rule ends a sequence as an end token does (``stop_rules``).

Beware that p^alpha charges ``alpha * log p`` for every token, so it rewards short outputs and
loops. ``min_new_tokens`` and ``"forced_eos"`` are the honest remedies; results flag such outputs.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc.core import checks
from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.targets.stop_rules import STOP_RULES, StopRule

LENGTHS = ("stopped", "forced_eos")
# Above this the target is the single most probable sequence, and float32 overflows.
LARGEST_ALPHA = 1_000_000


@dataclasses.dataclass(frozen=True)
class PowerTarget:
    """A power distribution over stopped sequences.

    Attributes:
      alpha: exponent, at least 1.
      eos_ids: ids that end a sequence; only generated tokens count. May be empty with "stopped":
        then every sequence runs to the cap.
      length: "stopped" or "forced_eos".
      min_new_tokens: number of steps at which ending tokens have no support.
      top_k: keep the k most probable tokens of p (ties by id), or None.
      top_p: keep the smallest set of most probable tokens that reaches this mass, or None. If both
        are given, the intersection.
      stop: a ``StopString``, ``StopRegex`` or ``StopBoxed``, or None. The token that completes its
        match ends the sequence; sampling then needs the tokenizer.

    Raises:
      ValueError: for a value outside its range.
    """

    alpha: float
    eos_ids: tuple[int, ...] = ()
    length: Literal["stopped", "forced_eos"] = "stopped"
    min_new_tokens: int = 0
    top_k: int | None = None
    top_p: float | None = None
    stop: StopRule | None = None

    def __post_init__(self) -> None:
        alpha = checks.number("alpha", self.alpha, at_least=1, at_most=LARGEST_ALPHA)
        is_one = isinstance(self.eos_ids, str | bytes) or getattr(self.eos_ids, "shape", None) == ()
        if is_one or not isinstance(self.eos_ids, Iterable):
            raise ValueError(f"eos_ids is {self.eos_ids!r}; it must be a sequence of token ids.")
        given = tuple(self.eos_ids)
        ids = [checks.as_integer(i) for i in given]
        if None in ids:
            raise ValueError(f"eos_ids is {given!r}; every id must be an integer.")
        eos_ids = tuple(sorted({i for i in ids if i is not None}))
        checks.one_of("length", self.length, LENGTHS)
        if self.stop is not None and not isinstance(self.stop, StopRule):
            raise ValueError(
                f"stop is {self.stop!r}; allowed are {', '.join(STOP_RULES)} and None."
            )
        if self.length == "forced_eos" and not eos_ids and self.stop is None:
            raise ValueError(
                'eos_ids is empty; length="forced_eos" needs at least one id, or a stop rule.'
            )
        # Plain Python numbers, so that a target can be saved and compared.
        shortest = checks.integer("min_new_tokens", self.min_new_tokens, at_least=0)
        top_k, top_p = self.top_k, self.top_p
        if top_k is not None:
            top_k = checks.integer("top_k", top_k, at_least=1, at_most=None)
        if top_p is not None:
            top_p = float(checks.number("top_p", top_p, above=0, at_most=1))
        checks.settle(self, alpha=float(alpha), eos_ids=eos_ids, top_k=top_k, top_p=top_p)
        checks.settle(self, min_new_tokens=shortest)

    def check(self, vocab_size: int, max_new_tokens: int) -> None:
        """Raises ValueError if the target does not fit a vocabulary or a cap."""
        outside = [i for i in self.eos_ids if not 0 <= i < vocab_size]
        if outside:
            raise ValueError(f"eos_ids has {outside}; ids must lie in [0, {vocab_size}).")
        if self.min_new_tokens > max_new_tokens:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}; it must not exceed max_new_tokens, "
                f"which is {max_new_tokens}."
            )
        if self.length == "forced_eos" and self.min_new_tokens == max_new_tokens:
            raise ValueError(
                f'min_new_tokens equals max_new_tokens ({max_new_tokens}), so with "forced_eos" no '
                "sequence has support; lower it by at least 1."
            )

    def arrays(self, vocab_size: int, max_new_tokens: int) -> "TargetArrays":
        """The target in the form that the decode step reads, on the device."""
        return jax.tree.map(jnp.asarray, self.host_arrays(vocab_size, max_new_tokens))

    def host_arrays(self, vocab_size: int, max_new_tokens: int) -> "TargetArrays":
        """As ``arrays``, in host memory."""
        real: Any = jnp.result_type(float)
        ends = np.zeros((vocab_size,), bool)
        ends[list(self.eos_ids)] = True
        top_k, top_p = self.top_k, self.top_p
        arrays: dict[str, Any] = {
            "alpha": np.asarray(self.alpha, real),
            "ends": ends,
            "forced": np.asarray(self.length == "forced_eos"),
            "min_new_tokens": np.asarray(self.min_new_tokens, np.int32),
            "cap": np.asarray(max_new_tokens, np.int32),
            "top_k": None if top_k is None else np.asarray(min(top_k, vocab_size), np.int32),
            "top_p": None if top_p is None else np.asarray(top_p, real),
        }
        return TargetArrays(**arrays)


class TargetArrays(NamedTuple):
    """A target with every number traced, so that changing one triggers no compilation.

    Attributes:
      alpha: [].
      ends: [V] bool, tokens that end every sequence; a stop rule adds its own. None where it is
        stored elsewhere.
      forced: [] bool, whether the last step allows only ending tokens; None if it never does.
      min_new_tokens: [] int32; None for 0.
      cap: [] int32, T; no token is drawn at or after this step.
      top_k: [] int32, or None for no restriction.
      top_p: [], or None for no restriction.
    """

    alpha: jax.Array
    ends: jax.Array
    forced: jax.Array | None
    min_new_tokens: jax.Array | None
    cap: jax.Array
    top_k: jax.Array | None
    top_p: jax.Array | None


def support(logits: Logits, target: TargetArrays, ends: jax.Array, step: jax.Array) -> jax.Array:
    """The tokens that the target allows at one step.

    Args:
      logits: [R, V] of the base model, or log p, unmasked. For top-k and top-p a sharded
        vocabulary is gathered, because they depend on all tokens.
      target: of one prompt; or leaves [R], of each prefix's own prompt.
      ends: [R, V] bool, tokens that would end each sequence; or [1, V] if they are the same for
        all.
      step: [] or [R] int32, t.

    Returns:
      [R, V] bool; [1, V] if everything it depends on is the same for all.
    """

    def column(x: jax.Array) -> jax.Array:
        return x.reshape(-1, 1)

    allowed = jnp.ones((1, ends.shape[1]), bool)
    if target.min_new_tokens is not None:
        allowed = allowed & ~(column(step < target.min_new_tokens) & ends)
    if target.forced is not None:
        allowed = allowed & ~(column(target.forced & (step == target.cap - 1)) & ~ends)
    if target.top_k is not None or target.top_p is not None:
        values = logits.sharding.all_gather(logits.values)
        inside = _most_probable(values, target.top_k, target.top_p)
        allowed = allowed & logits.sharding.local_slice(inside)
    return allowed


def _most_probable(
    logits: jax.Array, top_k: jax.Array | None, top_p: jax.Array | None
) -> jax.Array:
    """[R, V] bool: tokens in both the top-k and the top-p set of each prefix, ties by id.

    By bisection for the smallest logit inside, since sorting a large vocabulary takes a TPU
    minutes to compile and milliseconds to run.
    """
    inside = jnp.ones(logits.shape, bool)
    if top_k is not None:
        inside = inside & _reach(logits, jnp.ones_like(logits), top_k.reshape(-1))
    if top_p is not None:
        whole = (top_p >= 1).reshape(-1, 1)
        inside = inside & (whole | _reach(logits, jax.nn.softmax(logits, axis=-1), top_p))
    return inside


def _reach(logits: jax.Array, mass: jax.Array, wanted: jax.Array) -> jax.Array:
    """[R, V] bool: the fewest tokens of highest logit, ties by id, whose mass reaches ``wanted``.

    mass [R, V] is non-negative, wanted [] or [R]. At least one token is inside.
    """
    wanted = jnp.broadcast_to(wanted, logits.shape[:1]).astype(mass.dtype)
    # Integers in the order of the logits, where 0 and -0 are equal.
    logits = jnp.where(logits == 0, jnp.zeros_like(logits), logits)
    bits, kind = (64, jnp.int64) if logits.dtype == jnp.float64 else (32, jnp.int32)
    order = jax.lax.bitcast_convert_type(logits.astype(jnp.dtype(f"float{bits}")), kind)
    order = jnp.where(order < 0, order ^ jnp.iinfo(kind).max, order)

    def reaches(least: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(order >= least[:, None], mass, 0), axis=-1) >= wanted

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        enough = reaches(middle)
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    # ``low`` reaches, or nothing does; ``high`` does not.
    low, high = jnp.min(order, axis=-1), jnp.max(order, axis=-1) + 1
    low, _ = jax.lax.fori_loop(0, bits, halve, (low, high))
    above, at = order > low[:, None], order == low[:, None]
    before = jnp.cumsum(jnp.where(at, mass, 0), axis=-1) - mass  # among the ties
    missing = wanted - jnp.sum(jnp.where(above, mass, 0), axis=-1)
    first = (jnp.cumsum(at, axis=-1, dtype=jnp.int32) == 1) & ~jnp.any(above, axis=-1)[:, None]
    return above | (at & ((before < missing[:, None]) | first))
