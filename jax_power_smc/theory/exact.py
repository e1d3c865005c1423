"""Exact enumeration, for models small enough to list every sequence (docs/math.md, eq. 3)."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc.core import checks
from jax_power_smc.core.types import Params, TokenIds
from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.engine.validation import check_prompt, check_target
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.models.cache_moves import insert_rows, move_rows
from jax_power_smc.smc.weights import weight_dtype
from jax_power_smc.targets.power import PowerTarget, TargetArrays, support
from jax_power_smc.targets.stop_arrays import (
    StopArrays,
    ending_tokens,
    next_stop_state,
    stop_arrays,
)

# The largest V^T; a larger one is more likely a mistake than intended.
_LARGEST = 2_000_000


class Enumeration(NamedTuple):
    """Every sequence of positive target weight.

    Attributes:
      sequences: the K token tuples, each ending with its end token or at the cap.
      log_prob: [K], log p(y|x).
      log_gamma: [K], log of the declared unnormalised target, alpha log p(y|x) on the support.
      log_evidence: log Z, the log of the sum of gamma.
    """

    sequences: list[tuple[int, ...]]
    log_prob: np.ndarray
    log_gamma: np.ndarray
    log_evidence: float

    def probabilities(self) -> dict[tuple[int, ...], float]:
        """pi_alpha of every sequence."""
        weights = np.exp(self.log_gamma - self.log_evidence)
        return dict(zip(self.sequences, weights.tolist(), strict=True))


def enumerate(
    model: LanguageModel,
    params: Params,
    prompt: TokenIds,
    target: PowerTarget,
    max_new_tokens: int,
    *,
    tokenizer: Any = None,
) -> Enumeration:
    """Lists every sequence with log p and log gamma.

    Args:
      model, params: the language model, whose ``extend`` reads every sequence.
      prompt: token ids.
      target: the target; ``Enumeration.log_gamma`` is the log of its gamma.
      max_new_tokens: T.
      tokenizer: needed if the target has a stop rule, see ``sample``.

    Raises:
      ValueError: if V^T is too large to list; as ``sample``.
    """
    check_target(target)
    max_new_tokens = checks.integer("max_new_tokens", max_new_tokens, at_least=1)
    vocab = model.vocab_size
    target.check(vocab, max_new_tokens)
    check_prompt(0, prompt, model, max_new_tokens)
    if max_new_tokens * math.log(vocab) > math.log(_LARGEST):
        raise ValueError(
            f"V^T is {vocab}^{max_new_tokens}; enumeration is for at most {_LARGEST} sequences."
        )
    paths = np.array(list(itertools.product(range(vocab), repeat=max_new_tokens)), np.int32)
    arrays = target.arrays(vocab, max_new_tokens)
    gathered = {}
    stop = stop_arrays(target.stop, tokenizer, vocab)
    log_p, allowed, ends = _teacher_forced(model, params, prompt, paths, arrays, stop)
    for i, path in zip(range(len(paths)), paths.tolist(), strict=True):
        ending = int(np.argmax(ends[i])) if ends[i].any() else max_new_tokens - 1
        sequence = tuple(path[: ending + 1])
        if sequence in gathered:
            continue
        inside = bool(allowed[i, : ending + 1].all())
        total = float(log_p[i, : ending + 1].sum())
        if inside and total > -np.inf:
            gathered[sequence] = total
    log_prob = np.array(list(gathered.values()))
    log_gamma = target.alpha * log_prob
    log_evidence = float(np.logaddexp.reduce(log_gamma)) if len(log_gamma) else -np.inf
    return Enumeration(list(gathered), log_prob, log_gamma, log_evidence)


def score(
    model: LanguageModel,
    params: Params,
    prompt: TokenIds,
    tokens: Sequence[Sequence[int]] | np.ndarray | jax.Array,
    lengths: Sequence[int] | np.ndarray | jax.Array | None = None,
) -> np.ndarray:
    """Teacher-forced log p of each token, read one by one.

    The sum over a sequence is its log p: nothing after its end counts.

    Args:
      model, params: as in ``enumerate``.
      prompt: token ids.
      tokens: N sequences of ids: lists that may differ in length, such as one prompt's
        ``SampleResult.sequences()``, or an array [N, T].
      lengths: [N], how many tokens of each sequence count, such as one prompt's
        ``SampleResult.lengths``. None for all, since padding cannot be recognised.

    Returns:
      [N, T], T the longest; 0 from the length on.

    Raises:
      ValueError: for tokens that are not such lists or lie outside the vocabulary, or lengths that
        do not fit them.
    """
    sequences = _sequences(tokens)
    horizon = max(map(len, sequences))
    check_prompt(0, prompt, model, horizon)
    ends = np.asarray([len(ids) for ids in sequences] if lengths is None else lengths)
    if not np.issubdtype(ends.dtype, np.integer) or ends.shape != (len(sequences),):
        raise ValueError(
            f"lengths is {lengths!r}; it must be {len(sequences)} integers, one per sequence."
        )
    padded = np.zeros((len(sequences), horizon), np.int32)
    for sequence, end, out in zip(sequences, ends.tolist(), padded, strict=True):
        if not 0 <= end <= len(sequence):
            raise ValueError(f"lengths has {end} for a sequence of {len(sequence)} tokens.")
        ids = sequence[:end]
        outside = ids[(ids < 0) | (ids >= model.vocab_size)]
        if outside.size:
            raise ValueError(
                f"tokens has id {outside[0]}; ids must lie in [0, {model.vocab_size})."
            )
        out[:end] = ids
    target = PowerTarget(1.0).arrays(model.vocab_size, horizon)
    log_p = _teacher_forced(model, params, prompt, padded, target, None)[0]
    return np.where(np.arange(horizon) < ends[:, None], log_p, 0)


def _sequences(tokens: Any) -> list[np.ndarray]:
    """Sequences of token ids [N][T]."""
    try:
        sequences = [np.asarray(ids) for ids in tokens]
    except (TypeError, ValueError):
        sequences = []
    # NumPy makes floats of an empty list, which is a sequence too.
    sequences = [ids.astype(np.int64) if ids.size == 0 else ids for ids in sequences]
    are_ids = all(ids.ndim == 1 and np.issubdtype(ids.dtype, np.integer) for ids in sequences)
    if not are_ids or not any(ids.size for ids in sequences):
        raise ValueError("tokens must be lists of token ids or an array [N, T], and not be empty.")
    return sequences


def _teacher_forced(
    model: LanguageModel,
    params: Params,
    prompt: TokenIds,
    tokens: np.ndarray,
    target: TargetArrays,
    stop: StopArrays | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For given tokens [N, T]: log p, whether in the support, whether ending; [N, T] each."""
    num, horizon = tokens.shape
    forced = jnp.asarray(tokens, jnp.int32)
    ids, num_read = jnp.asarray(prompt, jnp.int32), len(prompt) - 1
    every = jnp.ones((num,), jnp.int32)

    @jax.jit
    def run(params: Params) -> Any:
        # The prompt is read once, up to its last token, and copied to every row.
        zero, read = jnp.zeros((1,), jnp.int32), jnp.full((1,), num_read, jnp.int32)
        prefilled = model.init_cache(params, 1, num_read + horizon)
        if num_read:
            _, prefilled = model.extend(params, prefilled, ids[None, :-1], zero, read)
        cache = model.init_cache(params, num, num_read + horizon)
        cache = insert_rows(model, cache, zero, prefilled)
        others = jnp.arange(1, num + 1, dtype=jnp.int32)
        cache = move_rows(model, cache, 0 * others, others, read * every, jnp.int32(num - 1))

        def step(carry: Any, t: jax.Array) -> tuple[Any, Any]:
            cache, state, token = carry
            position = (num_read + t) * every
            logits, cache = model.extend(params, cache, token[:, None], position, every)
            logits = logits[:, 0]
            log_p = jax.nn.log_softmax(logits.astype(weight_dtype(logits)), axis=-1)
            ends = ending_tokens(target, stop, state)
            allowed = support(Logits(log_p), target, ends, t)
            column = jax.lax.dynamic_slice_in_dim(forced, t, 1, axis=1)
            picked = tuple(
                jnp.take_along_axis(x, column, axis=1)[:, 0] for x in (log_p, allowed, ends)
            )
            token = column[:, 0]
            state = next_stop_state(stop, state, token, jnp.ones((num,), bool))
            return (cache, state, token), picked

        carry = (cache, jnp.zeros((num,), jnp.int32), ids[-1] * every)
        _, picked = jax.lax.scan(step, carry, jnp.arange(horizon, dtype=jnp.int32))
        return tuple(x.T for x in picked)

    log_p, allowed, ends = jax.device_get(run(params))
    return log_p, allowed, ends
