"""The engine's programs compiled for TPUs and GPUs without either."""

import ml_collections

# Of Qwen2.5-7B.
QWEN_7B = {
    "family": "qwen2",
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "num_layers": 28,
    "num_heads": 28,
    "num_kv_heads": 4,
    "head_dim": 128,
    "mlp_size": 18_944,
    "tied_embeddings": False,
    "max_positions": 32_768,
    "rope_theta": 1e6,
    "norm_eps": 1e-6,
}


def get_config() -> ml_collections.ConfigDict:
    """Every value can be overridden: --config.targets="('h200',)" --config.rows="(16,)".

    Compiling for TPUs needs libtpu, for GPUs the CUDA plugin, its compiler and cuDNN: the extras
    compiled-tpu and compiled-cuda. Each changes JAX's default backend where it is installed, so
    `make compiled` installs each into an environment of its own, whose interpreters go here.
    """
    config = ml_collections.ConfigDict()
    config.benchmark = "compiled"
    config.targets = ("v5e", "v6e", "v5p", "h100", "h200")
    config.python = ml_collections.ConfigDict({"tpu": "", "cuda": ""})  # "": this interpreter
    config.programs = ("decode_chunk", "prefill", "insert", "compact", "resize")
    config.models = ml_collections.ConfigDict({"qwen25-7b": QWEN_7B})
    config.layers = 0  # fewer than the model has, for a quick look; 0 for all
    config.rows = (16, 64)
    # Of each device: prompts that share the rows, one for each N of them.
    config.num_particles = 16
    config.prompt_tokens = 512
    config.max_new_tokens = 2048
    config.steps = 16  # of a chunk
    config.keep_texts = False  # of the programs, in WORKDIR/texts
    return config
