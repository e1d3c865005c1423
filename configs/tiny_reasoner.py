"""The embedded model on word problems it has never seen; see evaluation/config_fields.py."""

from typing import Any

import ml_collections

from jax_power_smc.evaluation import job_config


def get_config() -> ml_collections.ConfigDict:
    """Every value can be overridden: --config.limit=20 --config.num_particles=64."""
    config = job_config.default()
    config.limit = 400  # of the held-out split, on which nothing was tuned
    config.alpha = 4.0
    config.max_new_tokens = 384
    config.num_particles = 16  # of every sampler with particles, best-of-N and the vote included
    config.ramp_tokens = 64

    def entry(kind: str, *shared: str, **values: Any) -> ml_collections.ConfigDict:
        return job_config.entry(kind, **job_config.shared(config, *shared), **values)

    n = config.get_oneway_ref("num_particles")
    config.samplers.temperature_1 = entry("ancestral", temperature=1.0)
    config.samplers.low_temperature = entry("ancestral", temperature=1.0 / config.get_ref("alpha"))
    config.samplers.greedy = entry("ancestral", temperature=0.0)
    config.samplers.samples = entry("ancestral", num_samples=config.get_oneway_ref("num_particles"))
    # As many moves as cost the tokens of N particles, 4 (N - 1) / (B + 1), rounded; see
    # docs/math.md, eq. 38.
    config.samplers.mh = entry("mh", num_blocks=16, moves_per_block=(4 * (n - 1) + 8) // 17)
    config.samplers.smc = entry("smc", "num_particles")
    config.samplers.smc_ramp = entry("smc", "num_particles", "ramp_tokens")
    config.samplers.swor = entry("swor", "num_particles")
    return config
