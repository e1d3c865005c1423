"""Qwen2.5-7B on many accelerators, calculated from the compiled decode step: nothing is measured.

Memory and link figures are the makers': for TPU v5e the system table of Google Cloud's
documentation (16 GB at 819 GB/s; 1,600 Gbit/s between chips, given elsewhere as 400 GB/s in both
directions together); for H200 NVIDIA's data sheet (141 GB at 4.8 TB/s; NVLink 900 GB/s, in both
directions together). A device sends half of the latter at most. On a TPU that takes all four links
of a chip, and a "model" group that is a line of the torus has two: times twice as long.

Compiled for as many CPU devices, or by the compiler of TPUs with
--config.machines.v5e.topology=v5e:4x4 (pip install 'jax-power-smc[tpu]'; no TPU is needed).
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    """Every value can be overridden: --config.num_particles="(8,)"."""
    config = ml_collections.ConfigDict()
    config.benchmark = "pods"
    config.dtype = "bfloat16"
    # As in its config.json.
    config.model = ml_collections.ConfigDict(
        {
            "family": "qwen2",
            "hidden_size": 3584,
            "num_layers": 28,
            "num_heads": 28,
            "num_kv_heads": 4,
            "head_dim": 128,
            "mlp_size": 18944,
            "vocab_size": 152064,
            "tied_embeddings": False,
            "max_positions": 32768,
            "rope_theta": 1e6,
            "norm_eps": 1e-6,
        }
    )
    # Layers of the models that are compiled, and of the one that checks them, once.
    config.layers = (2, 4)
    config.checked_layers = 6
    config.num_particles = (16, 64)
    config.prompt_tokens = 512
    config.max_new_tokens = 2048
    config.machines = ml_collections.ConfigDict(
        {
            "v5e": {
                "meshes": ((4, 4),),
                "prompts_per_row": 4,
                "topology": placeholder(str),
                "memory_bytes": 16e9,
                "memory_bandwidth": 819e9,
                "link_bandwidth": 200e9,
                # An assumption, of the order of what small exchanges take.
                "seconds_per_collective": 5e-6,
            },
            "H200": {
                "meshes": ((8, 1), (2, 4)),
                "prompts_per_row": 8,
                "topology": placeholder(str),
                "memory_bytes": 141e9,
                "memory_bandwidth": 4.8e12,
                "link_bandwidth": 450e9,
                "seconds_per_collective": 1e-5,
            },
        }
    )
    return config
