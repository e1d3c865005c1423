"""HumanEval with Qwen2.5-7B, as in Table 1 of Power-SMC (arXiv 2602.10273).

The settings are those of the table, which covers only MATH-500.

The answers are programs, which run on this machine only with --config.allow_code_execution
and inside bubblewrap (SECURITY.md).

GPU memory: parameters 7.6e9 * 2 bytes = 14.2 GiB; keys and values of one prompt, 2 * 28 layers *
4 heads * 128 * 2 bytes * 64 particles * 2048 tokens = 7.0 GiB. With logits and the prompt that is
about 22 GiB for one prompt at a time, and 7 prompts together in 80 GB.
"""

import ml_collections

from jax_power_smc.evaluation import job_config


def get_config() -> ml_collections.ConfigDict:
    """Every value can be overridden: --config.limit=20 --config.num_particles=16."""
    return job_config.paper("Qwen/Qwen2.5-7B", architecture="qwen2", task="humaneval")
