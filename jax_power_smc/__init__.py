"""Power sampling for language models by sequential Monte Carlo, in JAX.

import jax, jax_power_smc as psmc
lm = psmc.load("tiny-reasoner")
result = psmc.sample(lm.model, lm.params, prompts, key=jax.random.key(0), ...)
"""

from jax_power_smc.models import adapters
from jax_power_smc.theory import exact
from jax_power_smc.engine.sample import Stopped
from jax_power_smc.engine.sample import sample
from jax_power_smc.results.evidence import pool
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.core.mesh import make_mesh
from jax_power_smc.models.transformer.config import CheckpointError
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.config import UnsupportedModelError
from jax_power_smc.models.checkpoints.load import LoadedModel
from jax_power_smc.models.checkpoints.load import load
from jax_power_smc.models.checkpoints.saved import save
from jax_power_smc.models.table_lm import TableLM
from jax_power_smc.models.transformer.transformer import TransformerLM
from jax_power_smc.results.result import SampleInfo
from jax_power_smc.results.result import SampleResult
from jax_power_smc.samplers import Ancestral
from jax_power_smc.samplers import MetropolisHastings
from jax_power_smc.samplers import PowerSMC
from jax_power_smc.samplers import WithoutReplacement
from jax_power_smc.targets.stop_rules import StopBoxed
from jax_power_smc.targets.stop_rules import StopRegex
from jax_power_smc.targets.stop_rules import StopString
from jax_power_smc.engine.engine import Engine
from jax_power_smc.engine.engine import Finished
from jax_power_smc.engine.engine import Stream
from jax_power_smc.engine.engine import StreamRequest
from jax_power_smc.engine.engine import stream
from jax_power_smc.targets.power import PowerTarget

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
