"""Rotary position embeddings, and the ways in which checkpoints stretch them to longer contexts.

Channel pair j of a head is rotated by the angle ``position * frequency_j``; the frequencies are
powers of theta, modified once by a scaling. Letters: H head dimension.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc.models.transformer.precision import wide


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """A modification of the rotary frequencies; each kind uses only some of the fields.

    Attributes:
      kind: "linear" divides all frequencies by ``factor``. "llama3" divides those with a wavelength
        beyond ``original_positions / low_factor``, keeps those below ``original_positions /
        high_factor``, and interpolates in between. "longrope" divides each by its own factor.
      factor: of "linear" and "llama3"; for "longrope", the model's positions over the original
        ones.
      original_positions: the context length of pretraining.
      low_factor, high_factor: of "llama3".
      short_factors, long_factors: of "longrope", [H/2] each: for sequences within the original
        context, and for longer ones.
      attention_factor: of "longrope", the factor of rotated queries and keys; None for
        ``sqrt(1 + log factor / log original_positions)``.
    """

    kind: Literal["linear", "llama3", "longrope"]
    factor: float = 1.0
    original_positions: int = 0
    low_factor: float = 1.0
    high_factor: float = 4.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    attention_factor: float | None = None


@dataclasses.dataclass(frozen=True)
class Rope:
    """The rotary embedding of a layer.

    Attributes:
      theta: base of the frequencies.
      scaling: their modification, or None.
      max_positions: the longest sequence that the model is used for. It selects the factors of
        "longrope": one set for all sequences, whatever their length, because the cached keys of a
        sequence that outgrew its set would all be wrong.
    """

    theta: float
    scaling: RopeScaling | None = None
    max_positions: int = 0

    def frequencies(self, head_dim: int) -> tuple[np.ndarray, float]:
        """The frequencies [H/2] float32, and the factor of rotated queries and keys."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        base = (1.0 / np.float32(self.theta) ** exponents).astype(np.float32)
        scaling = self.scaling
        if scaling is None:
            return base, 1.0
        if scaling.kind == "linear":
            return base / np.float32(scaling.factor), 1.0
        original = scaling.original_positions
        if scaling.kind == "llama3":
            # 1 where the wavelength is short, 0 where it is long.
            cycles = original * base / (2 * math.pi)
            kept = (cycles - scaling.low_factor) / (scaling.high_factor - scaling.low_factor)
            kept = np.clip(kept, 0.0, 1.0).astype(np.float32)
            return base * (kept + (1 - kept) / np.float32(scaling.factor)), 1.0
        long = self.max_positions > original
        factors = np.asarray(scaling.long_factors if long else scaling.short_factors, np.float32)
        multiplier = scaling.attention_factor
        if multiplier is None:
            stretch = max(scaling.factor, 1.0)
            multiplier = math.sqrt(1 + math.log(stretch) / math.log(original))
        return base / factors, multiplier

    def rotate(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """Rotates queries or keys, in the half-split convention of Hugging Face checkpoints.

        Angles are computed in float32 at least: bfloat16 rounds position 257 to 256.

        Args:
          x: [M, ..., H].
          positions: [M] int32.
        """
        frequency, multiplier = self.frequencies(x.shape[-1])
        half = x.shape[-1] // 2
        dtype = wide(x.dtype)
        angle = positions.astype(dtype)[:, None] * jnp.asarray(frequency, dtype)[None, :]
        angle = angle.reshape(angle.shape[0], *(1,) * (x.ndim - 2), half)  # [M, ..., H/2]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        if multiplier != 1.0:
            cos, sin = cos * multiplier, sin * multiplier
        first, second = jnp.split(x.astype(dtype), 2, axis=-1)
        rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
        return rotated.astype(x.dtype)
