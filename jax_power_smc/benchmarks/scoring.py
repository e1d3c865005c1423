"""The token distributions along a given sequence, by teacher forcing of any language model.

Letters: S prompt length, T tokens, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc.core.types import Cache, Params, TokenIds
from jax_power_smc.models.base import LanguageModel

# Prompts and sequences are padded to a power of two, and at least to this.
SMALLEST_BUCKET = 64


def token_distributions(
    model: LanguageModel, params: Params, prompt: TokenIds, tokens: TokenIds
) -> np.ndarray:
    """The log probabilities ``log p(. | prompt, tokens[:t])`` at temperature 1, for every t.

    Their entries at ``tokens[t]`` sum to log p of the sequence. The program is compiled once per
    padded length of prompt and tokens.

    Args:
      model: a language model.
      params: its parameters.
      prompt: [S] token ids.
      tokens: [T] ids of the continuation, an end token included.

    Returns:
      [T, V] float32.

    Raises:
      ValueError: if the prompt or the continuation is empty.
    """
    for name, ids in (("prompt", prompt), ("tokens", tokens)):
        if len(ids) == 0:
            raise ValueError(f"{name} is empty; at least one token is needed.")
    length = jnp.asarray(len(prompt), jnp.int32)
    log_p = _teacher_forced(params, _padded(prompt), length, _padded(tokens), model=model)
    return np.asarray(log_p)[: len(tokens)]


@functools.partial(jax.jit, static_argnames=("model",))
def _teacher_forced(
    params: Params, prompt: jax.Array, length: jax.Array, tokens: jax.Array, *, model: LanguageModel
) -> jax.Array:
    """prompt [S], of which the first ``length`` [] count, tokens [T] -> log p [T, V]."""

    def step(cache: Cache, fed: tuple[jax.Array, jax.Array]) -> tuple[Cache, jax.Array]:
        token, index = fed
        logits, cache = model.decode(params, context, cache, token[None], index, index)
        return cache, logits[0]

    first, context = model.prefill(params, prompt, length)
    cache = model.init_cache(params, 1, tokens.shape[0])
    # The last token is not fed, since nothing follows it.
    indices = jnp.arange(tokens.shape[0] - 1, dtype=jnp.int32)
    _, rest = jax.lax.scan(step, cache, (tokens[:-1], indices))
    logits = jnp.concatenate([first[None], rest], axis=0)
    return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)


def _padded(ids: TokenIds) -> jax.Array:
    """The ids, padded with zeros; the results there are discarded."""
    size = max(SMALLEST_BUCKET, 1 << (len(ids) - 1).bit_length())
    return jnp.asarray(np.pad(np.asarray(ids, np.int32), (0, size - len(ids))))
