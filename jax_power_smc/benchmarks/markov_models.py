"""Second-order Markov models whose log Z is known exactly, by dynamic programming.

Homogeneous models have the same transitions at every step, so a few loops may dominate the power
distribution; inhomogeneous ones have new transitions at each position and, like text, never return.

Letters: V vocabulary, T steps.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jax_power_smc.core import checks, prng
from jax_power_smc.models.table_lm import TableLM, TableParams

ORDER = 2
KINDS = ("homogeneous", "inhomogeneous")


def make(
    vocab_size: int, horizon: int, entropy: float, kind: str, seed: int
) -> tuple[TableLM, TableParams]:
    """A random model whose transitions have this entropy on average.

    Args:
      vocab_size: V.
      horizon: T, the number of positions with their own transitions if inhomogeneous.
      entropy: mean over histories, in nats per token, between 0 and log V.
      kind: "homogeneous" or "inhomogeneous".
      seed: of the transitions.

    Raises:
      ValueError: for any other kind, or an impossible entropy.
    """
    check(vocab_size, entropy, kind)
    model = TableLM(vocab_size, ORDER)
    steps = 1 if kind == "homogeneous" else horizon
    noise = model.init(prng.seed_key(seed), steps=steps).logits
    sample = np.asarray(noise[0], np.float64)
    low, high = 0.0, 200.0
    for _ in range(60):
        scale = (low + high) / 2
        low, high = (scale, high) if _mean_entropy(scale * sample) > entropy else (low, scale)
    return model, TableParams(noise * jnp.float32(scale))


def check(vocab_size: int, entropy: float, kind: str) -> None:
    """Raises ValueError for any other kind, or an impossible entropy."""
    checks.one_of("kind", kind, KINDS)
    checks.number("entropy", entropy)
    if not 0 < entropy < np.log(vocab_size):
        raise ValueError(
            f"entropy is {entropy}; it must lie between 0 and log {vocab_size} = "
            f"{np.log(vocab_size):.3f} nats."
        )


class Exact(NamedTuple):
    """Exact log Z of ``p^alpha``, and the mean of log p(y) under it, ``d log Z / d alpha``."""

    log_evidence: float
    mean_log_prob: float


def exact_moments(
    model: TableLM, params: TableParams, prompt: list[int], alpha: float, horizon: int
) -> Exact:
    """Log Z and the mean log p of ``p^alpha`` over sequences of exactly T tokens, in float64.

    By a backward recursion over histories h, ``Z_t(h) = sum_v p(v | h)^alpha Z_{t+1}(h v)``, whose
    terms are also the weights of the tokens that follow.
    """
    vocab = model.vocab_size
    base = vocab + 1
    logits = np.asarray(params.logits, np.float64)
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    rows = np.arange(base**ORDER)
    following = (rows % base)[:, None] * base + np.arange(vocab)[None, :]  # [rows, V]
    log_z, mean = np.zeros(base**ORDER), np.zeros(base**ORDER)
    # Tables are by position: that at the prompt's last token is the first one to be drawn from.
    for position in reversed(range(len(prompt) - 1, len(prompt) - 1 + horizon)):
        step = log_p[min(position, len(log_p) - 1)]
        terms = alpha * step + log_z[following]
        log_z = np.logaddexp.reduce(terms, axis=1)
        mean = np.sum(np.exp(terms - log_z[:, None]) * (step + mean[following]), axis=1)
    history = ([vocab] * ORDER + list(prompt))[-ORDER:]
    row = history[0] * base + history[1]
    return Exact(float(log_z[row]), float(mean[row]))


def _mean_entropy(logits: np.ndarray) -> float:
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return float(-np.sum(np.exp(log_p) * log_p, axis=-1).mean())
