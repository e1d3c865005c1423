"""The config of a decoder-only transformer, and the errors of checkpoints."""

import dataclasses

from jax_power_smc.core import checks
from jax_power_smc.models.transformer.families import FAMILIES, Family
from jax_power_smc.models.transformer.limits import LIMITS, ROPE_LIMITS
from jax_power_smc.models.transformer.rope import RopeScaling


class UnsupportedModelError(ValueError):
    """The checkpoint uses an architecture or feature that this package does not implement."""


class CheckpointError(ValueError):
    """The checkpoint on disk is incomplete or contradicts itself."""


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and constants of the transformer. Letters as in the shape comments.

    Attributes:
      vocab_size: V.
      hidden_size: D, width of the residual stream.
      num_layers: L.
      num_heads: K * G query heads.
      num_kv_heads: K key/value heads.
      head_dim: H.
      mlp_size: F, width of the gated MLP.
      rope_theta: base of the rotary frequencies.
      norm_eps: epsilon of the RMS norms.
      tied_embeddings: whether the head is the transposed embedding.
      max_positions: longest sequence (prompt and generated tokens together).
      family: key of ``families.FAMILIES``, which has what all models of the family share.
      rope_scaling: how the rotary frequencies are stretched, or None.
      local_rope_theta: base of the unstretched frequencies in layers with a window; None if they
        use the same frequencies as the other layers.
      windows: for each layer the number of tokens that a token attends to, itself included, 0 for
        all; empty if every layer attends to all.
      query_scalar: scores are divided by its square root; None for H.
      query_multiplier: factor of the scores, in place of ``query_scalar``.
      attention_softcap, final_softcap: attention scores and final logits x become
        ``c tanh(x / c)``; None for no cap.
      embedding_multiplier, residual_multiplier: factors of the embeddings and of what each layer
        adds to the residual stream.
      logits_divisor: the logits are divided by it.

    Raises:
      CheckpointError: for an invalid value.
      UnsupportedModelError: for an unknown family.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_size: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied_embeddings: bool = True
    max_positions: int = 2048
    family: str = "llama"
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = None
    windows: tuple[int, ...] = ()
    query_scalar: float | None = None
    query_multiplier: float | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_divisor: float = 1.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, limit = getattr(self, field.name), LIMITS.get(field.name)
            if field.name == "windows" or limit is None:
                continue
            if not (limit.holds(value) or (value is None and field.type == float | None)):
                raise CheckpointError(f"{field.name} is {checks.shown(value)}; it must be {limit}.")
            if field.type is int:
                checks.settle(self, **{field.name: checks.as_integer(value)})
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"num_heads is {self.num_heads}; it must be a multiple of num_kv_heads, "
                f"which is {self.num_kv_heads}."
            )
        if self.head_dim % 2:
            raise CheckpointError(
                f"head_dim is {self.head_dim}; rotary positions need an even number."
            )
        if self.family not in FAMILIES:
            raise UnsupportedModelError(
                f"family is {self.family!r}; allowed are {', '.join(FAMILIES)}."
            )
        sizes = all(map(LIMITS["windows"].holds, self.windows))
        if self.windows and (len(self.windows) != self.num_layers or not sizes):
            raise CheckpointError(
                f"windows is {checks.shown(self.windows)}; it must hold a "
                f"number of tokens for each of the {self.num_layers} layers, or nothing."
            )
        if self.rope_scaling is not None:
            self._check_scaling(self.rope_scaling)

    def _check_scaling(self, scaling: RopeScaling) -> None:
        for name, limit in ROPE_LIMITS.items():
            value = getattr(scaling, name)
            if value == getattr(RopeScaling, name, ()) and (
                name != "original_positions" or scaling.kind != "longrope"
            ):
                continue
            for each in value if isinstance(value, tuple) else (value,):
                if not limit.holds(each):
                    raise CheckpointError(
                        f"{name} of rope_scaling is {checks.shown(each)}; it must be {limit}."
                    )
        if scaling.kind == "longrope":
            lengths = {len(scaling.short_factors), len(scaling.long_factors)}
            if lengths != {self.head_dim // 2}:
                raise CheckpointError(
                    f"longrope has {len(scaling.short_factors)} short and "
                    f"{len(scaling.long_factors)} long factors; with head_dim {self.head_dim} it "
                    f"must have {self.head_dim // 2} of each."
                )

    @property
    def group_size(self) -> int:
        """G, query heads per key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def of_family(self) -> Family:
        """What all models of the family share."""
        return FAMILIES[self.family]

    @property
    def query_scale(self) -> float:
        """The factor of the attention scores."""
        if self.query_multiplier is not None:
            return float(self.query_multiplier)
        return float(self.query_scalar or self.head_dim) ** -0.5

    def window(self, layer: int) -> int | None:
        """The number of tokens that a token attends to in this layer; None for all."""
        return (self.windows[layer] or None) if self.windows else None
