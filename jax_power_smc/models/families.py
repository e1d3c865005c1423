"""The families of decoder-only transformers, as a table: in what each differs from Llama.

A config of ours names its family; everything that all checkpoints of a family have in common is
looked up here, everything that differs between them is a field of ``TransformerConfig``.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Norms:
    """Names of a layer's norms in the file; None for one that the family does not have.

    Attributes:
      attention, mlp: of what goes into attention and MLP.
      after_attention, after_mlp: of what comes out, before it is added to the stream.
    """

    attention: str | None = None
    mlp: str | None = None
    after_attention: str | None = None
    after_mlp: str | None = None


_BEFORE = Norms(attention="input_layernorm", mlp="post_attention_layernorm")
_AFTER = Norms(after_attention="post_attention_layernorm", after_mlp="post_feedforward_layernorm")
_AROUND = Norms(
    attention="input_layernorm",
    mlp="pre_feedforward_layernorm",
    after_attention="post_attention_layernorm",
    after_mlp="post_feedforward_layernorm",
)


@dataclasses.dataclass(frozen=True)
class Family:
    """What the checkpoints of a family have in common.

    Attributes:
      architecture: the class of ``transformers`` that computes it.
      norms: where a layer normalises.
      qkv_bias: biases on q, k and v.
      qk_norm: q and k are normalised before they are rotated: "head" by head, or "all" heads
        together.
      norm_offset: norms scale by 1 + weight, in float32.
      activation: of the MLP's gate.
      fused: q, k and v are one tensor of the file, gate and up another.
      scaled_embedding: embeddings are multiplied by sqrt(D).
      tied_embeddings: whether the head is the embedding if the config does not say.
      windows: which layers see only a window: "none"; "some", by ``layer_types`` or a pattern;
        "all", if the config gives a window; "asked" is "some" if ``use_sliding_window`` is set.
      pattern: of "some", without ``layer_types``: every so many layers one sees everything.
      theta: base of the rotary frequencies if the config does not say.
      local_theta: base of the rotary frequencies in layers with a window, if it is another one.
      scalars: of our fields, those that the config of this family gives, and their names there.
      required: names without which a config means something else than its absence says.
      norm_eps: epsilon of the norms if the config does not say.
    """

    architecture: str
    norms: Norms = _BEFORE
    qkv_bias: bool = False
    qk_norm: Literal["none", "head", "all"] = "none"
    norm_offset: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    fused: bool = False
    scaled_embedding: bool = False
    tied_embeddings: bool = False
    windows: Literal["none", "some", "all", "asked"] = "none"
    pattern: int = 0
    theta: float = 10_000.0
    local_theta: float | None = None
    scalars: tuple[tuple[str, str], ...] = ()
    required: tuple[str, ...] = ()
    norm_eps: float = 1e-6


_GEMMA = {
    "norms": _AROUND,
    "norm_offset": True,
    "activation": "gelu_tanh",
    "scaled_embedding": True,
    "tied_embeddings": True,
    "windows": "some",
    "required": ("head_dim", "num_key_value_heads", "query_pre_attn_scalar", "sliding_window"),
}
_SOFTCAPS = (
    ("query_scalar", "query_pre_attn_scalar"),
    ("attention_softcap", "attn_logit_softcapping"),
    ("final_softcap", "final_logit_softcapping"),
)

# model_type of config.json -> family
FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM"),
    "mistral": Family(
        "MistralForCausalLM",
        windows="all",
        required=("sliding_window", "num_key_value_heads"),
    ),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True, windows="asked"),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        qk_norm="head",
        windows="asked",
        required=("head_dim", "num_key_value_heads"),
    ),
    "phi3": Family("Phi3ForCausalLM", fused=True, windows="all", norm_eps=1e-5),
    "gemma2": Family("Gemma2ForCausalLM", pattern=2, scalars=_SOFTCAPS, **_GEMMA),  # type: ignore[arg-type]
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        qk_norm="head",
        pattern=6,
        theta=1_000_000.0,
        local_theta=10_000.0,
        scalars=_SOFTCAPS,
        **_GEMMA,  # type: ignore[arg-type]
    ),
    "olmo2": Family("Olmo2ForCausalLM", norms=_AFTER, qk_norm="all", norm_eps=1e-5),
    "granite": Family(
        "GraniteForCausalLM",
        scalars=(
            ("query_multiplier", "attention_multiplier"),
            ("embedding_multiplier", "embedding_multiplier"),
            ("residual_multiplier", "residual_multiplier"),
            ("logits_divisor", "logits_scaling"),
        ),
        required=("attention_multiplier",),
    ),
}
