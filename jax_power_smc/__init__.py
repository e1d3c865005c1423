"""Power sampling for language models by sequential Monte Carlo, in JAX.

import jax, jax_power_smc as psmc
lm = psmc.load("tiny-reasoner")
result = psmc.sample(lm.model, lm.params, prompts, key=jax.random.key(0), ...)
"""

from jax_power_smc import adapters, exact
from jax_power_smc.engine import Stopped, sample
from jax_power_smc.evidence import pool
from jax_power_smc.language_model import LanguageModel
from jax_power_smc.mesh import make_mesh
from jax_power_smc.models.config import CheckpointError, TransformerConfig, UnsupportedModelError
from jax_power_smc.models.load import LoadedModel, load
from jax_power_smc.models.saved import save
from jax_power_smc.models.table import TableLM
from jax_power_smc.models.transformer import TransformerLM
from jax_power_smc.result import SampleInfo, SampleResult
from jax_power_smc.samplers import Ancestral, MetropolisHastings, PowerSMC, WithoutReplacement
from jax_power_smc.stop import StopBoxed, StopRegex, StopString
from jax_power_smc.streaming import Engine, Finished, Stream, StreamRequest, stream
from jax_power_smc.target import PowerTarget

__all__ = [
    "Ancestral",
    "CheckpointError",
    "Engine",
    "Finished",
    "LanguageModel",
    "LoadedModel",
    "MetropolisHastings",
    "PowerSMC",
    "PowerTarget",
    "SampleInfo",
    "SampleResult",
    "StopBoxed",
    "StopRegex",
    "StopString",
    "Stopped",
    "Stream",
    "StreamRequest",
    "TableLM",
    "TransformerConfig",
    "TransformerLM",
    "UnsupportedModelError",
    "WithoutReplacement",
    "adapters",
    "exact",
    "load",
    "make_mesh",
    "pool",
    "sample",
    "save",
    "stream",
]
