"""Theorem 1 of the paper on real decodes: the weight's variance by temperature, and its cost."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Every value can be overridden: --config.alpha=2 --config.temperatures="(0.3,0.7)"."""
    config = ml_collections.ConfigDict()
    config.benchmark = "theory"
    config.model = "tiny-reasoner"
    config.alpha = 4.0
    # One sequence per held-out problem, drawn by Power-SMC.
    config.prompts = 8
    config.num_particles = 16
    config.max_new_tokens = 384
    # Of the proposal; 1/alpha and 1 are always among them.
    config.temperatures = (0.15, 0.18, 0.2, 0.22, 0.24, 0.26, 0.28, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8)
    # Sequences in the plot of log S_t, and tokens in the list of the costliest.
    config.num_traces = 4
    config.num_costliest = 20
    return config
