"""Power sampling for language models by sequential Monte Carlo, in JAX.

import jax, jax_power_smc as psmc
lm = psmc.load("tiny-reasoner")
result = psmc.sample(lm.model, lm.params, prompts, key=jax.random.key(0), ...)
"""

from jax_power_smc.core.mesh import make_mesh
from jax_power_smc.engine.engine import Engine, Finished, Stream, StreamRequest, stream
from jax_power_smc.engine.sample import Stopped, sample
from jax_power_smc.models import adapters
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.models.checkpoints.load import LoadedModel, load
from jax_power_smc.models.checkpoints.saved import save
from jax_power_smc.models.table_lm import TableLM
from jax_power_smc.models.transformer.config import (
    CheckpointError,
    TransformerConfig,
    UnsupportedModelError,
)
from jax_power_smc.models.transformer.transformer import TransformerLM
from jax_power_smc.results.evidence import pool
from jax_power_smc.results.result import SampleInfo, SampleResult
from jax_power_smc.samplers import Ancestral, MetropolisHastings, PowerSMC, WithoutReplacement
from jax_power_smc.targets.power import PowerTarget
from jax_power_smc.targets.stop_rules import StopBoxed, StopRegex, StopString
from jax_power_smc.theory import exact

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
