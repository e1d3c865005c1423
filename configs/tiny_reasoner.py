"""Evaluation of the embedded model on word problems it has never seen."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Every value can be overridden: --config.limit=20 --config.num_particles=64."""
    config = ml_collections.ConfigDict()
    config.model = "tiny-reasoner"

    # Problems: of the held-out split that nothing was tuned on.
    config.split = "test"
    config.limit = 400
    config.problem_seed = 0
    config.seeds = (0,)  # scores are averaged over them within each problem

    # The target p^alpha, and N for Power-SMC, best-of-N and the majority vote alike.
    config.alpha = 4.0
    config.num_particles = 16
    config.ramp_tokens = 64  # a second Power-SMC row; 0 leaves it out
    config.max_new_tokens = 384
    return config
