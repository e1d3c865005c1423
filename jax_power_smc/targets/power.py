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
      ends: [V] bool, tokens that end every sequence; a stop rule adds its own.
      forced: [] bool, whether the last step allows only ending tokens.
      min_new_tokens: [] int32.
      cap: [] int32, T; no token is drawn at or after this step.
      top_k: [] int32, or None for no restriction.
      top_p: [], or None for no restriction.
    """

    alpha: jax.Array
    ends: jax.Array
    forced: jax.Array
    min_new_tokens: jax.Array
    cap: jax.Array
    top_k: jax.Array | None
    top_p: jax.Array | None


def support(logits: Logits, target: TargetArrays, ends: jax.Array, step: jax.Array) -> jax.Array:
    """The tokens that the target allows at one step.

    Args:
      logits: [N, V] of the base model, or log p, unmasked. For top-k and top-p a sharded
        vocabulary is gathered, because they depend on the order of all tokens.
      target: the target of this prompt.
      ends: [N, V] bool, tokens that would end each sequence; or [1, V] if they are the same for
        all.
      step: [] int32, t.

    Returns:
      [N, V] bool; [1, V] if ``ends`` is and there is neither top-k nor top-p.
    """
    too_early = (step < target.min_new_tokens) & ends
    too_late = target.forced & (step == target.cap - 1) & ~ends
    allowed = ~(too_early | too_late)
    if target.top_k is not None or target.top_p is not None:
        values = logits.sharding.all_gather(logits.values)
        inside = _most_probable(values, target.top_k, target.top_p)
        allowed = allowed & logits.sharding.local_slice(inside)
    return allowed


def _most_probable(
    logits: jax.Array, top_k: jax.Array | None, top_p: jax.Array | None
) -> jax.Array:
    """[N, V] bool: tokens in both the top-k and the top-p set of each particle, ties by id."""
    order = jnp.argsort(-logits, axis=-1, stable=True)
    rank = jnp.argsort(order, axis=-1).astype(jnp.int32)
    inside = jnp.ones(logits.shape, bool)
    if top_k is not None:
        inside = inside & (rank < top_k)
    if top_p is not None:
        p = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
        before = jnp.cumsum(p, axis=-1) - p  # mass ranked above
        reached = (before >= top_p) & (top_p < 1)
        # The first is always inside, however an empty sum is rounded.
        reached = reached & (jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, :] > 0)
        inside = inside & ~jnp.take_along_axis(reached, rank, axis=-1)
    return inside
