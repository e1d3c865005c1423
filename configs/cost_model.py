"""The paper's cost model on this machine: predicted and measured ratios, in one run."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Every value can be overridden: --config.num_particles=64 --config.repeats=9."""
    config = ml_collections.ConfigDict()
    config.benchmark = "cost_model"
    config.model = "tiny-reasoner"
    config.alpha = 4.0
    # Sequences that never end, as the lemmas assume; num_blocks divides max_new_tokens.
    config.max_new_tokens = 256
    config.num_particles = 16
    config.num_blocks = 16
    config.moves_per_block = 10
    # Each repetition runs every method once; medians over repetitions are reported.
    config.repeats = 5
    return config
