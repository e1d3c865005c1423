"""The shape of a decoder-only transformer, and how it is read from a Hugging Face config."""

import dataclasses
import json
import os
from typing import Any

# family name -> (architecture class, has biases on q, k and v)
FAMILIES: dict[str, tuple[str, bool]] = {
    "llama": ("LlamaForCausalLM", False),
    "qwen2": ("Qwen2ForCausalLM", True),
}


class UnsupportedModelError(ValueError):
    """The checkpoint uses an architecture or a feature that this package does not implement."""


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
      qkv_bias: whether q, k and v have biases (Qwen2).
      tied_embeddings: whether the head is the transposed embedding.
      max_positions: longest sequence (prompt and generated tokens together).
      family: key of ``FAMILIES``.
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
    qkv_bias: bool = False
    tied_embeddings: bool = True
    max_positions: int = 2048
    family: str = "llama"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (not isinstance(value, int) or value < 1):
                raise CheckpointError(f"{field.name} is {value!r}; it must be a positive integer.")
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

    @property
    def group_size(self) -> int:
        """G, query heads per key/value head."""
        return self.num_heads // self.num_kv_heads


def read_config(directory: str | os.PathLike[str]) -> TransformerConfig:
    """Reads ``config.json`` of a directory in Hugging Face format.

    Args:
      directory: the checkpoint's directory.

    Raises:
      CheckpointError: if config.json is missing, unreadable or inconsistent.
      UnsupportedModelError: if it names an architecture or a feature that is not implemented.
    """
    path = os.path.join(directory, "config.json")
    if not os.path.isfile(path):
        raise CheckpointError(
            f"{os.fspath(directory)} has no config.json; a model directory in Hugging Face format "
            "holds config.json, model.safetensors (or shards with an index) and tokenizer.json."
        )
    try:
        with open(path, encoding="utf-8") as file:
            raw = json.load(file)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds a JSON {type(raw).__name__}; it must be an object.")
    return config_from_hf(raw, path)


def config_from_hf(raw: dict[str, Any], source: str = "config.json") -> TransformerConfig:
    """Turns the contents of a Hugging Face ``config.json`` into a ``TransformerConfig``.

    Both the old schema (``rope_theta``) and the new one (``rope_parameters``) are read. Features
    that would change the result and are not implemented are refused by name.
    """
    family = _family(raw, source)
    _, qkv_bias = FAMILIES[family]
    required = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    missing = [name for name in (*required, "intermediate_size") if raw.get(name) is None]
    if missing:
        raise CheckpointError(f"{source} lacks {', '.join(missing)}.")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    refusals = {
        "rope scaling": rope.get("rope_type", rope.get("type", "default")) != "default",
        "a sliding window": bool(raw.get("use_sliding_window")),
        "attention_bias": family == "llama" and bool(raw.get("attention_bias")),
        "mlp_bias": bool(raw.get("mlp_bias")),
        f"hidden_act {raw.get('hidden_act')!r}": raw.get("hidden_act", "silu") != "silu",
        "quantized weights": bool(raw.get("quantization_config")),
        "code of its own (auto_map)": bool(raw.get("auto_map")),
    }
    refused = [name for name, present in refusals.items() if present]
    if refused:
        raise UnsupportedModelError(
            f"{source} asks for {' and '.join(refused)}, which is not implemented."
        )
    heads = raw["num_attention_heads"]
    return TransformerConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        mlp_size=raw["intermediate_size"],
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        qkv_bias=qkv_bias,
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        max_positions=raw.get("max_position_embeddings", 2048),
        family=family,
    )


def config_to_hf(config: TransformerConfig, **extra: Any) -> dict[str, Any]:
    """The ``config.json`` of a checkpoint of ours; the inverse of ``config_from_hf``."""
    return {
        "architectures": [FAMILIES[config.family][0]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_size,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "max_position_embeddings": config.max_positions,
        "hidden_act": "silu",
        **extra,
    }


def _family(raw: dict[str, Any], source: str) -> str:
    """The family that a config names, by model_type and by architecture."""
    model_type = raw.get("model_type")
    architectures = raw.get("architectures") or []
    allowed = ", ".join(architecture for architecture, _ in FAMILIES.values())
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"{source} names model_type {model_type!r} (architectures {architectures}); "
            f"implemented are {allowed}."
        )
    if architectures and FAMILIES[model_type][0] not in architectures:
        raise UnsupportedModelError(
            f"{source} names architectures {architectures}; implemented are {allowed}."
        )
    return str(model_type)
