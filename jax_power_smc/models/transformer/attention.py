"""Attention over a prompt that the particles share and tokens that they do not.

Keys and values of the prompt are stored once, those of the generated tokens once per particle:

    prompt half      [K, S, H]         read by every particle, never moved by resampling
    generated half   [N, K, T, H]      one row per particle

Each half yields a partial result with its log-sum-exp; the two are merged exactly, because
``softmax([a, b]) = (e^la softmax(a), e^lb softmax(b)) / (e^la + e^lb)``.

Letters: N particles, K key/value heads, G query heads per key/value head, H head dimension,
S prompt length, T capacity of the generated half.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from jax_power_smc.models.transformer import kernels

_MASKED = kernels.MASKED

# Attention over one half: (sum_i e_i v_i, max_i s_i, sum_i e_i) with e_i = exp(s_i - max s), in
# float32, the last two with an axis of size 1 in place of H.
Partial = tuple[jax.Array, jax.Array, jax.Array]


def causal_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
) -> jax.Array:
    """Causal self-attention of one sequence.

    Args:
      q: [S, K, G, H]; k, v: [S, K, H].
      scale: factor of the scores; None for H^-1/2.
      softcap: scores x become ``softcap tanh(x / softcap)``; None for no cap.
      window: number of tokens that each token attends to, itself included; None for all.

    Returns:
      [S, K, G, H], of the dtype of ``v``, accumulated in float32.
    """
    length, heads, group, dim = q.shape
    # One plain matrix product per key/value head, and division by the softmax's sum after the
    # second product: on CPU 6.7 times as fast as an einsum with a softmax (S=160, K=G=2).
    q = _scaled(q, scale).transpose(1, 2, 0, 3).reshape(heads, group * length, dim)
    k, v = k.transpose(1, 0, 2), v.transpose(1, 0, 2)
    scores = jnp.einsum("kmh,kth->kmt", q, k, preferred_element_type=jnp.float32)
    visible = jnp.tri(length, dtype=jnp.bool_)
    if window is not None:
        visible = visible & ~jnp.tri(length, k=-window, dtype=jnp.bool_)
    visible = jnp.tile(visible, (group, 1))
    scores = jnp.where(visible[None], _capped(scores, softcap), jnp.float32(_MASKED))
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - top)
    out = jnp.einsum("kmt,kth->kmh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = out / jnp.sum(weights, axis=-1, keepdims=True)
    return out.reshape(heads, group, length, dim).transpose(2, 0, 1, 3).astype(v.dtype)


def shared_prompt_attention(
    q: jax.Array,
    prompt_k: jax.Array,
    prompt_v: jax.Array,
    prompt_valid: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array,
    scale: float | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Attention of one new token per particle over the shared prompt and its own tokens.

    Args:
      q: [N, K, G, H].
      prompt_k: [K, H, S]; prompt_v: [K, S, H].
      prompt_valid: [S] bool, False for padding and for tokens outside the window.
      k: [N, K, H, T]; v: [N, K, T, H]. Keys have time last, so that scores are sums over whole
        rows of time: on CPU up to 7 times as fast as keys [N, K, T, H] (N=512, K=2, G=2, H=32,
        T=384), and within 15 % of them at the other shapes that were tried.
      valid: [T] bool, the entries to attend to, at least one.
      scale, softcap: as in ``causal_attention``.

    Returns:
      [N, K, G, H], of the dtype of ``v``, accumulated in float32.
    """
    n, heads, _, dim = q.shape
    chex.assert_shape(prompt_k, (heads, dim, prompt_valid.shape[0]))
    chex.assert_shape(prompt_v, (heads, prompt_valid.shape[0], dim))
    chex.assert_shape(k, (n, heads, dim, valid.shape[0]))
    chex.assert_shape(v, (n, heads, valid.shape[0], dim))
    q = _scaled(q, scale)
    prompt_part, prompt_max, prompt_sum = _prompt_half(q, prompt_k, prompt_v, prompt_valid, softcap)
    own_part, own_max, own_sum = _generated_half(q, k, v, valid, softcap)

    top = jnp.maximum(prompt_max, own_max)  # [N, K, G, 1]
    prompt_scale, own_scale = jnp.exp(prompt_max - top), jnp.exp(own_max - top)
    total = prompt_scale * prompt_sum + own_scale * own_sum
    merged = (prompt_scale * prompt_part + own_scale * own_part) / total
    return merged.astype(v.dtype)


def _scaled(q: jax.Array, scale: float | None) -> jax.Array:
    return q * jnp.asarray(q.shape[-1] ** -0.5 if scale is None else scale, q.dtype)


def _capped(scores: jax.Array, softcap: float | None) -> jax.Array:
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def _prompt_half(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array, softcap: float | None
) -> Partial:
    """The prompt half: one product per key/value head for the queries of all particles."""
    n, heads, group, dim = q.shape
    rows = q.transpose(1, 0, 2, 3).reshape(heads, n * group, dim)
    scores = jnp.einsum("kmh,khs->kms", rows, k, preferred_element_type=jnp.float32)

    def per_particle(x: jax.Array) -> jax.Array:
        return x.reshape(heads, n, group, -1).transpose(1, 0, 2, 3)

    part, top, total = _partial(_capped(scores, softcap), valid, v)
    return per_particle(part), per_particle(top), per_particle(total)


def _generated_half(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array, softcap: float | None
) -> Partial:
    """The generated half, by the Pallas kernel on TPU; q [N, K, G, H] is already scaled."""
    product = functools.partial(_generated_by_products, softcap=softcap)
    supported = softcap is None and kernels.block_size(k) is not None
    return jax.lax.platform_dependent(
        q, k, v, valid, tpu=kernels.generated_half if supported else product, default=product
    )


def _generated_by_products(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array, softcap: float | None = None
) -> Partial:
    scores = jnp.einsum("nkgh,nkht->nkgt", q, k, preferred_element_type=jnp.float32)
    return _partial(_capped(scores, softcap), valid, v)


def _partial(scores: jax.Array, valid: jax.Array, values: jax.Array) -> Partial:
    """Unnormalised attention over one half: scores [..., M, T], valid [T], values [..., T, H]."""
    mask = valid.reshape(*(1,) * (scores.ndim - 1), -1)
    scores = jnp.where(mask, scores, jnp.float32(_MASKED))
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    part = jnp.einsum(
        "...mt,...th->...mh",
        weights.astype(values.dtype),
        values,
        preferred_element_type=jnp.float32,
    )
    return part, top, jnp.sum(weights, axis=-1, keepdims=True)
