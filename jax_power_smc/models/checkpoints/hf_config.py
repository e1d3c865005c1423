"""``config.json`` in Hugging Face format: read into a ``TransformerConfig``, and written.

Both schemas are read: the old one with ``rope_theta`` and ``rope_scaling``, and the new one with
``rope_parameters``. Settings that would change the result and are not implemented are refused by
name.
"""

import os
import pathlib
from typing import Any

from jax_power_smc.core import checks
from jax_power_smc.models.checkpoints.hf_rope import Ropes, read_ropes, write_ropes
from jax_power_smc.models.checkpoints.model_files import read_object
from jax_power_smc.models.transformer.config import (
    CheckpointError,
    TransformerConfig,
    UnsupportedModelError,
)
from jax_power_smc.models.transformer.families import FAMILIES, Family
from jax_power_smc.models.transformer.limits import LIMITS, Limit

# our field -> its name in config.json: the sizes that are required, and those with a default
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
# Entries whose default is a number, and whose null has a meaning of its own.
_NULLABLE = {"num_key_value_heads", "attn_logit_softcapping", "final_logit_softcapping"}
# activation -> the entry that names it, and its names
_ACTIVATIONS = {
    "silu": ("hidden_act", ("silu", "swish")),
    "gelu_tanh": ("hidden_activation", ("gelu_pytorch_tanh",)),
}
_FULL, _WINDOW = "full_attention", "sliding_attention"


def read_config(
    directory: str | os.PathLike[str], max_positions: int | None = None
) -> TransformerConfig:
    """Reads ``config.json`` of a directory in Hugging Face format; see ``config_from_hf``.

    Raises:
      CheckpointError: if config.json is missing, unreadable or inconsistent.
      UnsupportedModelError: if it asks for an architecture or a feature that is not implemented.
    """
    path = pathlib.Path(directory, "config.json")
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent} has no config.json; a model directory in Hugging Face format "
            "holds config.json, model.safetensors (or shards with an index) and tokenizer.json."
        )
    return config_from_hf(read_object(path), str(path), max_positions)


def config_from_hf(
    raw: dict[str, Any], source: str = "config.json", max_positions: int | None = None
) -> TransformerConfig:
    """Turns the contents of a ``config.json`` into a ``TransformerConfig``.

    Args:
      raw: the JSON object.
      source: how error messages refer to it.
      max_positions: the longest sequence that the model will be used for, at most its own limit.
        The default is that limit, or with "longrope" the context length of pretraining: longer
        sequences need other rotary frequencies, which make short ones worse.

    Raises:
      CheckpointError: for missing or invalid values.
      UnsupportedModelError: for settings that are not implemented.
    """
    name = _family(raw, source)
    family = FAMILIES[name]
    missing = [key for key in _REQUIRED.values() if raw.get(key) is None]
    if missing:
        raise CheckpointError(f"{source} lacks {', '.join(missing)}.")
    raw = {**family.defaults, **raw}
    ropes = read_ropes(raw, family, source)
    _refuse_unimplemented(raw, name, source)
    names = _REQUIRED | _OPTIONAL
    scalars = {key: raw[key] for _, key in family.scalars}
    numbers = {"rope_theta": ropes.theta, "norm_eps": raw["rms_norm_eps"]}
    fields = names | dict(family.scalars) | {"rope_theta": "rope_theta", "norm_eps": "rms_norm_eps"}
    nullable = {key for key, value in family.defaults.items() if value is None} | _NULLABLE
    bad = []
    for ours, key in fields.items():
        value = numbers[ours] if ours in numbers else raw[key]
        if not (LIMITS[ours].holds(value) or (value is None and key in nullable)):
            bad.append(f"{key} {checks.shown(value)}, which must be {LIMITS[ours]}")
    if bad:
        raise CheckpointError(f"{source} has {'; '.join(bad)}.")
    sizes = {ours: raw[key] for ours, key in names.items()}
    heads, width = sizes["num_heads"], sizes["hidden_size"]
    if sizes["head_dim"] is None and width % heads:
        raise CheckpointError(
            f"{source} has hidden_size {width} and num_attention_heads {heads} and no head_dim; "
            "hidden_size must then be a multiple of num_attention_heads."
        )
    sizes["num_kv_heads"] = sizes["num_kv_heads"] or heads
    sizes["head_dim"] = sizes["head_dim"] or width // heads
    sizes["max_positions"] = _positions(sizes["max_positions"], max_positions, ropes, source)
    try:
        return TransformerConfig(
            **sizes,
            **{ours: scalars[key] for ours, key in family.scalars},
            rope_theta=float(ropes.theta),
            rope_scaling=ropes.scaling,
            local_rope_theta=ropes.local_theta,
            norm_eps=float(raw["rms_norm_eps"]),
            tied_embeddings=_boolean(raw, "tie_word_embeddings", source),
            windows=_windows(raw, family, sizes["num_layers"], source),
            family=name,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{source} cannot be used: {error}") from error


def config_to_hf(config: TransformerConfig, **extra: Any) -> dict[str, Any]:
    """The contents of ``config.json`` for a config; the inverse of ``config_from_hf``."""
    family = config.of_family
    names = _REQUIRED | _OPTIONAL
    key, values = _ACTIVATIONS[family.activation]
    scalars = {ours: getattr(config, ours) for ours, _ in family.scalars}
    # These two must not be null in the file.
    scalars["query_scalar"] = config.query_scalar or config.head_dim
    scalars["query_multiplier"] = config.query_scale
    made = {
        "architectures": [family.architecture],
        "model_type": config.family,
        **{name: getattr(config, ours) for ours, name in names.items()},
        **{name: scalars[ours] for ours, name in family.scalars},
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        key: values[0],
    }
    made |= write_ropes(config)
    windows = set(config.windows) - {0}
    if family.windows != "none":
        made["sliding_window"] = next(iter(windows), None)
    if family.windows == "opt_in":
        made["use_sliding_window"] = bool(windows)
    if family.windows in ("opt_in", "some"):
        kinds = [_WINDOW if config.window(i) else _FULL for i in range(config.num_layers)]
        made["layer_types"] = kinds
    return {**made, **extra}


def _positions(limit: int, requested: int | None, ropes: Ropes, source: str) -> int:
    """The longest sequence: what is requested, if the model has that many positions."""
    if requested is None:
        stretched = ropes.scaling is not None and ropes.scaling.kind == "longrope"
        return min(limit, ropes.scaling.original_positions) if stretched else limit  # type: ignore[union-attr]
    whole = checks.as_integer(requested)
    if whole is None or not 1 <= whole <= limit:
        raise CheckpointError(
            f"max_positions is {requested!r}; it must be a positive integer of at most {limit}, "
            f"the limit in {source}."
        )
    return whole


def _windows(raw: dict[str, Any], family: Family, layers: int, source: str) -> tuple[int, ...]:
    """How many tokens each layer sees, 0 for all; empty if all see all."""
    kinds = raw.get("layer_types") or []
    if not isinstance(kinds, list) or (kinds and len(kinds) != layers):
        raise CheckpointError(
            f"{source} has layer_types {checks.shown(kinds)}; it must be a list with an entry for "
            f"each of the {layers} layers, or null."
        )
    others = {str(kind) for kind in kinds} - {_FULL, _WINDOW}
    if others or (family.windows == "none" and _WINDOW in kinds):
        raise UnsupportedModelError(
            f"{source} asks for layer_types {checks.shown(sorted(set(map(str, kinds))))} (only "
            f"{_FULL!r} is implemented, and {_WINDOW!r} in families with windows)."
        )
    window = raw.get("sliding_window")
    if family.windows == "none":
        return ()
    if family.windows == "opt_in" and not _boolean(raw, "use_sliding_window", source):
        window = None
    if window is not None:
        _checked(raw, "sliding_window", Limit(1, LIMITS["windows"].high), source)
    if family.windows == "all":
        if _FULL in kinds and window is not None:
            raise UnsupportedModelError(
                f"{source} asks for layer_types {_FULL!r} beside a sliding_window (in this family "
                "only a window in all layers is implemented)."
            )
        kinds = kinds if window is None else [_WINDOW] * layers
    elif not kinds and family.windows == "opt_in":
        first = _checked(raw, "max_window_layers", LIMITS["windows"], source)
        kinds = [_WINDOW if i >= first and window is not None else _FULL for i in range(layers)]
    elif not kinds:
        pattern = family.pattern
        if "sliding_window_pattern" in family.defaults:
            pattern = _checked(raw, "sliding_window_pattern", LIMITS["num_layers"], source)
        kinds = [_WINDOW if (i + 1) % pattern else _FULL for i in range(layers)]
    if _WINDOW in kinds and window is None:
        raise CheckpointError(f"{source} has layers with {_WINDOW!r} but gives no window.")
    found = tuple(window or 0 if kind == _WINDOW else 0 for kind in kinds)
    return found if any(found) else ()


def _checked(raw: dict[str, Any], key: str, limit: Limit, source: str) -> Any:
    if not limit.holds(raw[key]):
        raise CheckpointError(f"{source} has {key} {checks.shown(raw[key])}; it must be {limit}.")
    return raw[key]


def _boolean(raw: dict[str, Any], key: str, source: str) -> bool:
    value = raw[key]
    if not isinstance(value, bool):
        raise CheckpointError(
            f"{source} has {key} {checks.shown(value)}; it must be true or false."
        )
    return value


def _refuse_unimplemented(raw: dict[str, Any], name: str, source: str) -> None:
    """Raises an error that names every unimplemented setting that would change the result."""
    family = FAMILIES[name]
    key, allowed = _ACTIVATIONS[family.activation]
    activation = raw.get(key) or allowed[0]
    read = {key for _, key in family.scalars}
    softcaps = [
        key
        for key in ("attn_logit_softcapping", "final_logit_softcapping")
        if key not in read and raw.get(key) is not None
    ]
    unwanted_window = family.windows == "none" and bool(raw.get("use_sliding_window"))
    refusals = {
        "use_sliding_window true (not in this family)": unwanted_window,
        **{f"{x} true (only false is implemented)": bool(raw.get(x)) for x in family.biases},
        f"{key} {checks.shown(activation)} (only {allowed[0]!r} is implemented)": activation
        not in allowed,
        f"{' and '.join(softcaps)} (not in this family)": bool(softcaps),
        "use_bidirectional_attention true (only false is implemented)": bool(
            raw.get("use_bidirectional_attention")
        ),
        "clip_qkv (only null is implemented)": raw.get("clip_qkv") is not None,
        "experts (only dense layers are implemented)": any(
            raw.get(key) for key in ("num_local_experts", "num_experts", "n_routed_experts")
        ),
        "quantization_config (weights must be plain floating point)": bool(
            raw.get("quantization_config")
        ),
    }
    refused = [text for text, present in refusals.items() if present]
    if refused:
        raise UnsupportedModelError(f"{source} asks for {' and '.join(refused)}.")


def _family(raw: dict[str, Any], source: str) -> str:
    """The family that a config names, by model_type and by architecture."""
    model_type = raw.get("model_type")
    architectures = raw.get("architectures") or []
    allowed = ", ".join(family.architecture for family in FAMILIES.values())
    # The code that checkpoints of a known family bring along is not needed, and is ignored.
    shown = checks.shown(architectures)
    code = " and needs code of its own, which is never run" if raw.get("auto_map") else ""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"{source} names model_type {checks.shown(model_type)} (architectures {shown}){code}; "
            f"only {allowed} are implemented."
        )
    # In a string, ``in`` would look for a substring.
    listed = architectures if isinstance(architectures, list) else [architectures]
    if listed and FAMILIES[model_type].architecture not in listed:
        raise UnsupportedModelError(
            f"{source} names architectures {shown}{code}; only {allowed} are implemented."
        )
    return model_type
