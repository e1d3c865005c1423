"""The families of decoder-only transformers, and how each differs from Llama.

What all checkpoints of a family have in common is recorded here; what differs between them is a
field of ``TransformerConfig``, which names its family.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Norms:
    """Names of a layer's norms in the file; None for norms that the family lacks.

    Attributes:
      attention, mlp: of the inputs of attention and MLP.
      after_attention, after_mlp: of their outputs, before they are added to the residual stream.
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
      architecture: its class in ``transformers``.
      norms: where a layer normalises.
      qkv_bias: whether q, k and v have biases.
      qk_norm: how q and k are normalised before they are rotated: each "head" by itself, or "all"
        heads together.
      norm_offset: whether norms scale by 1 + weight, in float32.
      activation: of the MLP's gate.
      fused: whether the file stores q, k and v as one tensor, and gate and up as another.
      scaled_embedding: whether embeddings are multiplied by sqrt(D).
      windows: which layers have a sliding window: "none"; "some", by ``layer_types`` or a pattern;
        "all", if the config gives a window; "opt_in", as "some" if ``use_sliding_window`` is true.
      pattern: for "some" without ``layer_types``: layers ``pattern``, ``2 * pattern``, ... have no
        window, counted from 1. A ``sliding_window_pattern`` in the config takes precedence if
        ``defaults`` has that entry.
      theta: base of the rotary frequencies if the config gives none.
      local_theta: base of the rotary frequencies in layers with a window, if it differs.
      scalars: pairs of a ``TransformerConfig`` field and the entry of config.json that gives it.
      defaults: what the reference assumes for absent entries of config.json. An explicit null is
        kept: it means none (no window, no cap) or a value derived from other sizes, or is refused.
      biases: entries of config.json that ask for biases which are not implemented; the reference
        ignores the others in this family.
    """

    architecture: str
    norms: Norms = _BEFORE
    qkv_bias: bool = False
    qk_norm: Literal["none", "head", "all"] = "none"
    norm_offset: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    fused: bool = False
    scaled_embedding: bool = False
    windows: Literal["none", "some", "all", "opt_in"] = "none"
    pattern: int = 0
    theta: float = 10_000.0
    local_theta: float | None = None
    scalars: tuple[tuple[str, str], ...] = ()
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    biases: tuple[str, ...] = ("attention_bias",)


_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": None,  # as many as there are query heads
    "head_dim": None,  # the width over the query heads
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_QWEN = {
    **_DEFAULTS,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_GEMMA2 = {
    **_DEFAULTS,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_GEMMA3 = {
    **_GEMMA2,
    "max_position_embeddings": 131072,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "sliding_window_pattern": 6,
}
_GEMMA = {
    "norms": _AROUND,
    "norm_offset": True,
    "activation": "gelu_tanh",
    "scaled_embedding": True,
    "windows": "some",
}
_SOFTCAPS = (
    ("query_scalar", "query_pre_attn_scalar"),
    ("attention_softcap", "attn_logit_softcapping"),
    ("final_softcap", "final_logit_softcapping"),
)

# model_type of config.json -> family
FAMILIES: dict[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM",
        defaults={**_DEFAULTS, "max_position_embeddings": 2048},
        biases=("attention_bias", "mlp_bias"),
    ),
    "mistral": Family(
        "MistralForCausalLM",
        windows="all",
        defaults={
            **_DEFAULTS,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
        biases=(),
    ),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True, windows="opt_in", defaults=_QWEN, biases=()),
    "qwen3": Family(
        "Qwen3ForCausalLM", qk_norm="head", windows="opt_in", defaults={**_QWEN, "head_dim": 128}
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        fused=True,
        windows="all",
        defaults={
            **_DEFAULTS,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
        },
        biases=(),
    ),
    "gemma2": Family("Gemma2ForCausalLM", pattern=2, scalars=_SOFTCAPS, defaults=_GEMMA2, **_GEMMA),  # type: ignore[arg-type]
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        qk_norm="head",
        pattern=6,
        theta=1_000_000.0,
        local_theta=10_000.0,
        scalars=_SOFTCAPS,
        defaults=_GEMMA3,
        **_GEMMA,  # type: ignore[arg-type]
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        norms=_AFTER,
        qk_norm="all",
        defaults={**_DEFAULTS, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    ),
    "granite": Family(
        "GraniteForCausalLM",
        scalars=(
            ("query_multiplier", "attention_multiplier"),
            ("embedding_multiplier", "embedding_multiplier"),
            ("residual_multiplier", "residual_multiplier"),
            ("logits_divisor", "logits_scaling"),
        ),
        defaults={
            **_DEFAULTS,
            "max_position_embeddings": 2048,
            "attention_multiplier": 1.0,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "logits_scaling": 1.0,
        },
        biases=("attention_bias", "mlp_bias"),
    ),
}
