"""The tiny checkpoints on which our transformer is compared with the reference implementation.

Weights come from numpy by a seed, so that only the reference's outputs need to be kept. Every case
exercises what its family is known for, on prompts of 3 and of 600 tokens.
"""

import json
import pathlib
import zlib

import numpy as np
from safetensors.numpy import save_file

GOLDEN = pathlib.Path(__file__).parent / "golden"
VOCAB, SHORT, LONG = 24, 3, 600
TOLERANCE = 2e-4

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# The context of its pretraining lies between the two prompts.
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.6],
    "long_factor": [1.0, 2.5, 6.0, 20.0],
    "original_max_position_embeddings": 512,
}

# name -> settings of the reference's config, by model_type
CASES = {
    "llama": {"model_type": "llama", **_SIZES, "rms_norm_eps": 1e-5},
    "llama3": {"model_type": "llama", **_SIZES, "rope_parameters": _LLAMA3},
    "linear": {
        "model_type": "llama",
        **_SIZES,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0},
    },
    "mistral": {"model_type": "mistral", **_SIZES, "head_dim": 12, "sliding_window": 50},
    "qwen2": {"model_type": "qwen2", **_SIZES, "tie_word_embeddings": True},
    "qwen2-windows": {
        "model_type": "qwen2",
        **_SIZES,
        "use_sliding_window": True,
        "sliding_window": 70,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", **_SIZES, "head_dim": 12},
    "phi3": {
        "model_type": "phi3",
        **_SIZES,
        "rope_parameters": _LONGROPE,
        "original_max_position_embeddings": 512,
        "sliding_window": 300,
    },
    "gemma2": {
        "model_type": "gemma2",
        **_SIZES,
        "head_dim": 12,
        "query_pre_attn_scalar": 20,
        "sliding_window": 40,
        "layer_types": _KINDS,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "tie_word_embeddings": True,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        **_SIZES,
        "head_dim": 12,
        "query_pre_attn_scalar": 20,
        "sliding_window": 40,
        "layer_types": _KINDS,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        "tie_word_embeddings": True,
    },
    "olmo2": {"model_type": "olmo2", **_SIZES},
    "granite": {
        "model_type": "granite",
        **_SIZES,
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "logits_scaling": 0.5,
    },
}


def prompt(length):
    """Token ids [length]; the short one is not the beginning of the long one."""
    return np.random.default_rng(length).integers(0, VOCAB, length)


def random_tensors(shapes):
    """A checkpoint's tensors by their names: norms and biases away from where they start."""
    made = {}
    for name, shape in shapes.items():
        random = np.random.default_rng(zlib.crc32(name.encode()))
        noise = random.normal(size=shape)
        if len(shape) == 2:
            array = noise / np.sqrt(shape[1])
        else:
            array = 0.3 * noise + (0.0 if name.endswith("bias") else 0.7)
        made[name] = array.astype(np.float32)
    return made


def read(name):
    """What the reference gave: (arrays by name, and what is known about them)."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    return arrays, json.loads(str(arrays.pop("about")))


def write_checkpoint(directory, about, tensors=None):
    """The case's config.json and model.safetensors in the reference's format."""
    (directory / "config.json").write_text(json.dumps(about["config"]))
    tensors = random_tensors(about["shapes"]) if tensors is None else tensors
    save_file(tensors, directory / "model.safetensors")
    return tensors
