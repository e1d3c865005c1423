"""Everything exactly, by enumeration: for models small enough to list every sequence."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc.decode import (
    StopArrays,
    ending_tokens,
    next_stop_state,
    stop_arrays,
    weight_dtype,
)
from jax_power_smc.language_model import LanguageModel
from jax_power_smc.target import PowerTarget, TargetArrays, support
from jax_power_smc.vocabulary import Logits

# V^T, above which listing every sequence is a mistake rather than a wish.
_LARGEST = 2_000_000


class Enumeration(NamedTuple):
    """Every sequence of positive target weight.

    Attributes:
      sequences: the token tuples, each ending at its end token or at the cap.
      log_prob: [M], log p(y|x).
      log_gamma: [M], log of the declared unnormalised target, alpha log p(y|x) on the support.
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
    params: Any,
    prompt: Sequence[int],
    target: PowerTarget,
    max_new_tokens: int,
    *,
    tokenizer: Any = None,
) -> Enumeration:
    """Lists every sequence with log p and log gamma.

    Args:
      model, params: the language model; its own prefill and decode are used.
      prompt: token ids.
      target: the target; ``Enumeration.log_gamma`` is its gamma.
      max_new_tokens: T.
      tokenizer: needed if the target has a stop rule, see ``engine.sample``.

    Raises:
      ValueError: if V^T is too large to list.
    """
    target.check(model.vocab_size, max_new_tokens)
    vocab = model.vocab_size
    if vocab**max_new_tokens > _LARGEST:
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
    model: LanguageModel, params: Any, prompt: Sequence[int], tokens: np.ndarray
) -> np.ndarray:
    """Teacher-forced log p of each token: tokens [N, T] -> [N, T], through the decode path."""
    target = PowerTarget(1.0).arrays(model.vocab_size, tokens.shape[1])
    return _teacher_forced(model, params, prompt, tokens, target, None)[0]


def _teacher_forced(
    model: LanguageModel,
    params: Any,
    prompt: Sequence[int],
    tokens: np.ndarray,
    target: TargetArrays,
    stop: StopArrays | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of given tokens [N, T]: log p, whether they lie in the support, whether they end; [N, T]."""
    num, horizon = tokens.shape
    forced = jnp.asarray(tokens, jnp.int32)
    ids = jnp.asarray(prompt, jnp.int32)

    def of_tokens(logits: jax.Array, state: jax.Array, t: jax.Array) -> tuple[Any, jax.Array]:
        """Three vectors [N], and the next state of the stop rule."""
        log_p = jax.nn.log_softmax(logits.astype(weight_dtype(logits)), axis=-1)
        ends = ending_tokens(target, stop, state)
        allowed = support(Logits(log_p), target, ends, t)
        column = jax.lax.dynamic_slice_in_dim(forced, t, 1, axis=1)
        picked = tuple(jnp.take_along_axis(x, column, axis=1)[:, 0] for x in (log_p, allowed, ends))
        always = jnp.ones((num,), bool)
        return picked, next_stop_state(stop, state, column[:, 0], always)

    @jax.jit
    def run(params: Any) -> tuple[jax.Array, ...]:
        logits, context = model.prefill(params, ids, jnp.asarray(len(prompt), jnp.int32))
        logits = jnp.broadcast_to(logits[None], (num, logits.shape[0]))
        first, state = of_tokens(logits, jnp.zeros((num,), jnp.int32), jnp.zeros((), jnp.int32))

        def body(carry: Any, t: jax.Array) -> tuple[Any, Any]:
            cache, state = carry
            token = jax.lax.dynamic_slice_in_dim(forced, t - 1, 1, axis=1)[:, 0]
            logits, cache = model.decode(params, context, cache, token, t - 1, t - 1)
            picked, state = of_tokens(logits, state, t)
            return (cache, state), picked

        carry = (model.init_cache(params, num, horizon), state)
        _, rest = jax.lax.scan(body, carry, jnp.arange(1, horizon, dtype=jnp.int32))
        return tuple(
            jnp.concatenate([one[None], more], axis=0).T
            for one, more in zip(first, rest, strict=True)
        )

    log_p, allowed, ends = jax.device_get(run(params))
    return log_p, allowed, ends
