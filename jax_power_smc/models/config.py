"""The shape of a decoder-only transformer, and how it is read from a Hugging Face config."""

import dataclasses
import json
import os
import sys
from typing import Any

# family name -> (architecture class, has biases on q, k and v)
FAMILIES: dict[str, tuple[str, bool]] = {
    "llama": ("LlamaForCausalLM", False),
    "qwen2": ("Qwen2ForCausalLM", True),
}

# our field -> its name in config.json: the sizes that must be there, and those with a default
_REQUIRED = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_size": "intermediate_size",
}
_OPTIONAL = {
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_positions": "max_position_embeddings",
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
            if field.type is int and not _is_size(value):
                raise CheckpointError(f"{field.name} is {value!r}; it must be a positive integer.")
            if field.type is float and not _is_positive(value):
                raise CheckpointError(f"{field.name} is {value!r}; it must be a positive number.")
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
        # A checkpoint says this by its family alone: any other pair could be saved, not read.
        if self.qkv_bias != FAMILIES[self.family][1]:
            raise UnsupportedModelError(
                f"qkv_bias is {self.qkv_bias!r}; with family {self.family!r} only "
                f"{FAMILIES[self.family][1]} is allowed."
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
    ropes = _ropes(raw, source)
    _refuse_unimplemented(raw, family, ropes, source)
    missing = [name for name in _REQUIRED.values() if raw.get(name) is None]
    if missing:
        raise CheckpointError(f"{source} lacks {', '.join(missing)}.")
    names = _REQUIRED | _OPTIONAL
    sizes = {ours: raw[name] for ours, name in names.items() if raw.get(name) is not None}
    numbers = {
        "rope_theta": next(
            (r["rope_theta"] for r in ropes if r.get("rope_theta") is not None), None
        ),
        "rms_norm_eps": raw.get("rms_norm_eps"),
    }
    bad = [f"{names[ours]} {value!r}" for ours, value in sizes.items() if not _is_size(value)]
    bad += [f"{k} {v!r}" for k, v in numbers.items() if v is not None and not _is_positive(v)]
    if bad:
        raise CheckpointError(
            f"{source} has {', '.join(bad)}; sizes must be positive integers, rope_theta and "
            "rms_norm_eps positive numbers."
        )
    heads, width = sizes["num_heads"], sizes["hidden_size"]
    if "head_dim" not in sizes and width % heads:
        raise CheckpointError(
            f"{source} has hidden_size {width} and num_attention_heads {heads} and no head_dim; "
            "the first must then be a multiple of the second."
        )
    defaults = {"num_kv_heads": heads, "head_dim": width // heads, "max_positions": 2048}
    try:
        return TransformerConfig(
            **(defaults | sizes),
            rope_theta=float(numbers["rope_theta"] or 10_000.0),
            norm_eps=float(numbers["rms_norm_eps"] or 1e-6),
            qkv_bias=qkv_bias,
            tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
            family=family,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{source} cannot be used: {error}") from error


def config_to_hf(config: TransformerConfig, **extra: Any) -> dict[str, Any]:
    """The ``config.json`` of a checkpoint of ours; the inverse of ``config_from_hf``."""
    names = _REQUIRED | _OPTIONAL
    return {
        "architectures": [FAMILIES[config.family][0]],
        "model_type": config.family,
        **{name: getattr(config, ours) for ours, name in names.items()},
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "hidden_act": "silu",
        **extra,
    }


def _ropes(raw: dict[str, Any], source: str) -> list[dict[str, Any]]:
    """Every place where rotary settings may stand, the one with the last word first."""
    ropes = []
    for name in ("rope_parameters", "rope_scaling"):
        value = raw.get(name) or {}
        if not isinstance(value, dict):
            raise CheckpointError(f"{source} has {name} {value!r}; it must be an object or null.")
        ropes.append(value)
    return [*ropes, {"rope_theta": raw.get("rope_theta")}]


def _refuse_unimplemented(
    raw: dict[str, Any], family: str, ropes: list[dict[str, Any]], source: str
) -> None:
    """Names every setting that would change the result and is not implemented."""
    kinds = [r.get("rope_type") or r.get("type") or "default" for r in ropes]
    kind = next((kind for kind in kinds if kind != "default"), "default")
    # Settings by kind of layer; read as one set they would silently mean theta 10000.
    nested = any(isinstance(value, dict) for rope in ropes for value in rope.values())
    rotated = [r.get("partial_rotary_factor") for r in (*ropes, raw)]
    kinds_of_layers = raw.get("layer_types") or []
    if not isinstance(kinds_of_layers, list):
        raise CheckpointError(
            f"{source} has layer_types {kinds_of_layers!r}; it must be a list or null."
        )
    windows = {str(kind) for kind in kinds_of_layers} - {"full_attention"}
    activation = raw.get("hidden_act", "silu")
    refusals = {
        f"rope_type {kind!r} (implemented is 'default')": kind != "default",
        "rope_parameters by layer type (implemented is one set for all)": nested,
        "a partial_rotary_factor (implemented is 1)": any(f not in (None, 1) for f in rotated),
        f"layer_types {sorted(windows)} (implemented is 'full_attention')": bool(windows),
        "use_sliding_window true (implemented is false)": bool(raw.get("use_sliding_window")),
        "attention_bias true (implemented is false)": family == "llama"
        and bool(raw.get("attention_bias")),
        "mlp_bias true (implemented is false)": bool(raw.get("mlp_bias")),
        f"hidden_act {activation!r} (implemented is 'silu')": activation not in ("silu", "swish"),
        "quantization_config (weights must be plain floating point)": bool(
            raw.get("quantization_config")
        ),
        "auto_map (a checkpoint's own code is never run)": bool(raw.get("auto_map")),
    }
    refused = [text for text, present in refusals.items() if present]
    if refused:
        raise UnsupportedModelError(f"{source} asks for {' and '.join(refused)}.")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # An integer beyond every float has no finite value either.
    return is_number and 0 < value <= sys.float_info.max


def _family(raw: dict[str, Any], source: str) -> str:
    """The family that a config names, by model_type and by architecture."""
    model_type = raw.get("model_type")
    architectures = raw.get("architectures") or []
    allowed = ", ".join(architecture for architecture, _ in FAMILIES.values())
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"{source} names model_type {model_type!r} (architectures {architectures}); "
            f"implemented are {allowed}."
        )
    # A string would be searched for a part of itself.
    listed = architectures if isinstance(architectures, list) else [architectures]
    if listed and FAMILIES[model_type][0] not in listed:
        raise UnsupportedModelError(
            f"{source} names architectures {architectures}; implemented are {allowed}."
        )
    return model_type
