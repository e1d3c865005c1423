"""MATH-500 with Phi-3.5-mini-instruct: its rows of Table 1 of Power-SMC (arXiv 2602.10273).

In addition, without-replacement SMC with a quarter of the particles.

GPU memory: parameters 3.8e9 * 2 bytes = 7.1 GiB; keys and values of one prompt, 2 * 32 layers *
32 heads * 96 * 2 bytes * 64 particles * 2048 tokens = 48 GiB, because its heads do not share
them. With logits and the prompt that is about 56 GiB for one prompt at a time: an 80 GB GPU.
"""

import ml_collections

from jax_power_smc.evaluation import job_config


def get_config() -> ml_collections.ConfigDict:
    """Every value can be overridden: --config.limit=20 --config.num_particles=16."""
    return job_config.paper("microsoft/Phi-3.5-mini-instruct", architecture="phi3", task="math500")
