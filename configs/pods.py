"""Qwen2.5-7B on many accelerators, calculated from the compiled decode step: nothing is measured.

Memory and link figures are the makers': for TPU v5e from the system table of Google Cloud's
documentation (16 GB at 819 GB/s; 1,600 Gbit/s between chips, elsewhere 400 GB/s for both directions
together), for H200 from NVIDIA's data sheet (141 GB at 4.8 TB/s; NVLink 900 GB/s for both
directions together). A device can send at most half of the latter. On a TPU this takes all four
links of a chip; a "model" group that is a line of the torus has only two, and takes twice as long.

Compiled for as many CPU devices, or by the compiler for TPUs with
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
    # Layers of the two compiled models, and of a third that checks them, once.
    config.layers = (2, 4)
    config.checked_layers = 6
    config.num_particles = (16, 64)
    config.prompt_tokens = 512
    config.max_new_tokens = 2048
    config.machines = ml_collections.ConfigDict(
        {
            "v5e": {
                "meshes": ((4, 4),),
                "prompts_per_shard": 4,
                "topology": placeholder(str),
                "memory_bytes": 16e9,
                "memory_bandwidth": 819e9,
                "link_bandwidth": 200e9,
                # An assumption, of the order of the time of a small exchange.
                "seconds_per_collective": 5e-6,
            },
            "H200": {
                "meshes": ((8, 1), (2, 4)),
                "prompts_per_shard": 8,
                "topology": placeholder(str),
                "memory_bytes": 141e9,
                "memory_bandwidth": 4.8e12,
                "link_bandwidth": 450e9,
                "seconds_per_collective": 1e-5,
            },
        }
    )
    return config
