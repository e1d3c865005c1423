"""The families of decoder-only transformers, as a table: in what each differs from Llama.

A config of ours names its family; everything that all checkpoints of a family have in common is
looked up here, everything that differs between them is a field of ``TransformerConfig``.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


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
      windows: which layers see only a window: "none"; "some", by ``layer_types`` or a pattern;
        "all", if the config gives a window; "asked" is "some" if ``use_sliding_window`` is set.
      pattern: of "some", without ``layer_types``: every so many layers one sees everything. A
        ``sliding_window_pattern`` of the config goes before it where ``defaults`` has that name.
      theta: base of the rotary frequencies if the config does not say.
      local_theta: base of the rotary frequencies in layers with a window, if it is another one.
      scalars: of our fields, those that the config of this family gives, and their names there.
      defaults: what the reference reads where a config lacks a name. An explicit null is kept: it
        means none (no window, no cap), or what follows from the other sizes, or is refused.
      biases: names of the config that ask for biases which are not implemented; the reference does
        not read the others in this family.
    """

    architecture: str
    norms: Norms = _BEFORE
    qkv_bias: bool = False
    qk_norm: Literal["none", "head", "all"] = "none"
    norm_offset: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    fused: bool = False
    scaled_embedding: bool = False
    windows: Literal["none", "some", "all", "asked"] = "none"
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
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True, windows="asked", defaults=_QWEN, biases=()),
    "qwen3": Family(
        "Qwen3ForCausalLM", qk_norm="head", windows="asked", defaults={**_QWEN, "head_dim": 128}
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
