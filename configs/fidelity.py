"""How close each sampler comes to the power distribution, measured by its evidence."""

import os
import pathlib

import ml_collections

# Data that the project does not ship, such as small models; tests look in the same place.
TEST_DATA = os.environ.get("PSMC_TEST_DATA", pathlib.Path(__file__).resolve().parents[2] / "shared")


def get_config() -> ml_collections.ConfigDict:
    """Every value can be overridden: --config.seeds="(0,)" --config.runs=8."""
    config = ml_collections.ConfigDict()
    config.benchmark = "fidelity"
    config.alpha = 4.0
    config.runs = 8

    # Second-order Markov models with exact log Z; entropies in nats per token.
    config.vocab_size = 32
    config.kinds = ("homogeneous", "inhomogeneous")
    config.horizons = (128, 256)
    config.entropies = (0.5, 1.0, 2.0)
    config.seeds = (0, 1, 2)

    # N of each sampler, and its ramps as shares of T. "mh" is one chain with the tokens of N.
    config.smc_particles = (16, 64, 256, 512)
    config.smc_ramps = (0.0, 0.25, 0.5)
    config.swor_particles = (4, 16, 64)
    config.swor_ramps = (0.0, 0.25)
    config.mh_particles = (16, 64)

    # Language models, without exact log Z: first the embedded one on its own problems, then others
    # on beginnings of texts, which they continue for exactly text_max_new_tokens tokens. Missing
    # directories are reported and left out; PSMC_TEST_DATA says where models/ is.
    config.models = ("tiny-reasoner",)
    config.prompts = 16
    config.max_new_tokens = 384
    config.text_models = (str(pathlib.Path(TEST_DATA, "models", "stories260K")),)
    config.texts = (
        "Once upon a time, there was a little girl named Lily.",
        "Tom and his dog went to the park.",
        "One day, a big bear",
        "The sun was",
    )
    config.text_max_new_tokens = 128
    config.model_runs = 4
    config.model_smc_particles = (16, 64)
    config.model_swor_particles = (4, 16, 64)
    config.model_mh_particles = (16,)
    return config
