"""Attention over a prompt that the particles share and tokens that they do not.

The keys and values of the prompt exist once, those of the generated tokens once per particle:

    prompt half      [S, K, H]         read by every particle, never moved by resampling
    generated half   [N, K, T, H]      one row per particle

Each half gives a partial result with its log-sum-exp; the two are merged exactly, because
``softmax([a, b]) = (e^la softmax(a), e^lb softmax(b)) / (e^la + e^lb)``.

Letters: N particles, K key/value heads, G query heads per key/value head, H head dimension,
S prompt length, T capacity of the generated half.
"""

import chex
import jax
import jax.numpy as jnp

# Large enough to vanish in a softmax, small enough that a fully masked row stays finite: an empty
# half then has log-sum-exp about -1e30 and merges with weight 0 instead of NaN.
_MASKED = -1e30


def rotate(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding, in the half-split convention of the Hugging Face checkpoints.

    Args:
      x: [M, ..., H] queries or keys.
      positions: [M] int32.
      theta: base of the frequencies.

    Angles are computed in float32: in bfloat16 position 257 is already 256.
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions.astype(jnp.float32)[:, None] * frequency[None, :]  # [M, H/2]
    angle = angle.reshape(angle.shape[0], *(1,) * (x.ndim - 2), half)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal self-attention of one sequence.

    Args:
      q: [S, K, G, H]; k, v: [S, K, H].

    Returns:
      [S, K, G, H], of the dtype of ``v``. Accumulated in float32.
    """
    length, heads, group, dim = q.shape
    # One plain matrix product per key/value head, and the division by the softmax's sum after the
    # second product: on CPU 6.7 times the speed of the einsum-and-softmax form (S=160, K=G=2).
    q = q.transpose(1, 2, 0, 3).reshape(heads, group * length, dim) * jnp.asarray(
        dim**-0.5, q.dtype
    )
    k, v = k.transpose(1, 0, 2), v.transpose(1, 0, 2)
    scores = jnp.einsum("kmh,kth->kmt", q, k, preferred_element_type=jnp.float32)
    causal = jnp.tile(jnp.tri(length, dtype=jnp.bool_), (group, 1))
    scores = jnp.where(causal[None], scores, jnp.float32(_MASKED))
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
) -> jax.Array:
    """Attention of one new token per particle over the shared prompt and its own tokens.

    Args:
      q: [N, K, G, H].
      prompt_k, prompt_v: [S, K, H].
      prompt_valid: [S] bool, False on padding.
      k: [N, K, H, T]; v: [N, K, T, H]. Keys lie with time last, so that the scores are sums over
        whole rows of time: on CPU 8 times the speed of keys [N, K, T, H] (N=512 rows, T=384).
      valid: [T] bool, the entries written so far.

    Returns:
      [N, K, G, H], of the dtype of ``v``. Accumulated in float32.
    """
    n, heads, _, dim = q.shape
    chex.assert_shape([prompt_k, prompt_v], (prompt_valid.shape[0], heads, dim))
    chex.assert_shape(k, (n, heads, dim, valid.shape[0]))
    chex.assert_shape(v, (n, heads, valid.shape[0], dim))
    q = q * jnp.asarray(dim**-0.5, q.dtype)
    scores = jnp.einsum("nkgh,skh->nkgs", q, prompt_k, preferred_element_type=jnp.float32)
    prompt_part, prompt_max, prompt_sum = _partial(scores, prompt_valid, prompt_v, "nkgs,skh->nkgh")
    scores = jax.lax.platform_dependent(q, k, cpu=_scores_by_rows, default=_scores_by_product)
    own_part, own_max, own_sum = _partial(scores, valid, v, "nkgt,nkth->nkgh")

    top = jnp.maximum(prompt_max, own_max)  # [N, K, G, 1]
    prompt_scale, own_scale = jnp.exp(prompt_max - top), jnp.exp(own_max - top)
    total = prompt_scale * prompt_sum + own_scale * own_sum
    merged = (prompt_scale * prompt_part + own_scale * own_part) / total
    return merged.astype(v.dtype)


def _scores_by_product(q: jax.Array, k: jax.Array) -> jax.Array:
    """q [N, K, G, H], k [N, K, H, T] -> [N, K, G, T] float32."""
    return jnp.einsum("nkgh,nkht->nkgt", q, k, preferred_element_type=jnp.float32)


def _scores_by_rows(q: jax.Array, k: jax.Array) -> jax.Array:
    """The same as one fused multiply and sum; XLA CPU packs the operands of many small products."""
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    return jnp.sum(q[..., None] * k[:, :, None], axis=-2)


def _partial(
    scores: jax.Array, valid: jax.Array, values: jax.Array, contraction: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Unnormalised attention over one half: (sum_i e_i v_i, max_i s_i, sum_i e_i)."""
    scores = jnp.where(valid[None, None, None, :], scores, jnp.float32(_MASKED))
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    part = jnp.einsum(
        contraction, weights.astype(values.dtype), values, preferred_element_type=jnp.float32
    )
    return part, top, jnp.sum(weights, axis=-1, keepdims=True)
