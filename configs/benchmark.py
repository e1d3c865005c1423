"""Step time, throughput, and the same work in PyTorch."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Every value can be overridden: --config.sections="('steps',)" --config.repeats=9.

    The last two sections compare with PyTorch, if installed: pip install -e '.[torch]'.
    """
    config = ml_collections.ConfigDict()
    config.benchmark = "speed"
    config.sections = ("steps", "throughput", "torch_batch_1", "torch")
    config.alpha = 4.0
    # Every round runs every variant once; medians over rounds are reported.
    config.repeats = 3
    # Bytes of the array that is copied to measure the bandwidth of the machine.
    config.bandwidth_bytes = 2**28
    config.dtype = "float32"
    # Random weights in these shapes, as in config.json of a Llama.
    config.models = ml_collections.ConfigDict(
        {
            "5M": _shape(hidden=256, layers=4, heads=8, kv_heads=8, mlp=688, vocab=8192),
            "23M": _shape(hidden=512, layers=6, heads=8, kv_heads=8, mlp=1376, vocab=8192),
            "50M": _shape(hidden=768, layers=6, heads=12, kv_heads=4, mlp=2304, vocab=8192),
            "98M": _shape(hidden=1024, layers=8, heads=16, kv_heads=4, mlp=2816, vocab=8192),
        }
    )
    config.steps = ml_collections.ConfigDict(
        {
            "models": ("5M", "50M"),
            "particles": (1, 4, 8, 16, 32, 64),
            "prompt_tokens": 32,
            "max_new_tokens": (128, 512),
        }
    )
    config.throughput = ml_collections.ConfigDict(
        {
            "models": ("5M",),
            "num_particles": 16,
            "slots": 8,
            "prompts": 64,
            "longest_prompt": 256,
            "max_new_tokens": 256,
        }
    )
    config.torch_batch_1 = ml_collections.ConfigDict(
        {
            "models": ("5M", "23M", "50M", "98M"),
            "particles": (1,),
            "prompt_tokens": (32,),
            "max_new_tokens": 128,
        }
    )
    config.torch = ml_collections.ConfigDict(
        {
            "models": ("5M", "50M"),
            "particles": (8, 64),
            "prompt_tokens": (32, 512),
            "max_new_tokens": 128,
        }
    )
    return config


def _shape(
    *, hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, vocab: int
) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "hidden_size": hidden,
            "num_layers": layers,
            "num_heads": heads,
            "num_kv_heads": kv_heads,
            "head_dim": hidden // heads,
            "mlp_size": mlp,
            "vocab_size": vocab,
        }
    )
