"""Power sampling for language models by sequential Monte Carlo, in JAX.

    import jax, jax_power_smc as psmc
    lm = psmc.load("tiny-reasoner")
    result = psmc.sample(lm.model, lm.params, prompts, key=jax.random.key(0), ...)

Every public name is imported when it is first used, so that importing the package is quick and
registers nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from jax_power_smc import evidence as evidence
    from jax_power_smc import plain as plain
    from jax_power_smc import testing as testing
    from jax_power_smc import theory as theory
    from jax_power_smc.core.mesh import make_mesh as make_mesh
    from jax_power_smc.engine.engine import Engine as Engine
    from jax_power_smc.engine.engine import stream as stream
    from jax_power_smc.engine.sample import Stopped as Stopped
    from jax_power_smc.engine.sample import sample as sample
    from jax_power_smc.engine.stream import Finished as Finished
    from jax_power_smc.engine.stream import Stream as Stream
    from jax_power_smc.engine.stream import StreamRequest as StreamRequest
    from jax_power_smc.models import adapters as adapters
    from jax_power_smc.models.base import LanguageModel as LanguageModel
    from jax_power_smc.models.checkpoints.load import load as load
    from jax_power_smc.models.checkpoints.loaded_model import LoadedModel as LoadedModel
    from jax_power_smc.models.table_lm import TableLM as TableLM
    from jax_power_smc.models.transformer.config import CheckpointError as CheckpointError
    from jax_power_smc.models.transformer.config import TransformerConfig as TransformerConfig
    from jax_power_smc.models.transformer.config import (
        UnsupportedModelError as UnsupportedModelError,
    )
    from jax_power_smc.models.transformer.transformer import TransformerLM as TransformerLM
    from jax_power_smc.results.pooling import pool as pool
    from jax_power_smc.results.result import SampleInfo as SampleInfo
    from jax_power_smc.results.result import SampleResult as SampleResult
    from jax_power_smc.samplers.ancestral import Ancestral as Ancestral
    from jax_power_smc.samplers.metropolis_hastings import MetropolisHastings as MetropolisHastings
    from jax_power_smc.samplers.power_smc import PowerSMC as PowerSMC
    from jax_power_smc.samplers.without_replacement import WithoutReplacement as WithoutReplacement
    from jax_power_smc.targets.power import PowerTarget as PowerTarget
    from jax_power_smc.targets.stop_rules import StopBoxed as StopBoxed
    from jax_power_smc.targets.stop_rules import StopRegex as StopRegex
    from jax_power_smc.targets.stop_rules import StopString as StopString
    from jax_power_smc.theory import cost_model as cost_model
    from jax_power_smc.theory import exact as exact

# Public name -> the module it comes from; a name of ``_MODULES`` is that module.
_HOME = {
    "Ancestral": "samplers.ancestral",
    "CheckpointError": "models.transformer.config",
    "Engine": "engine.engine",
    "Finished": "engine.stream",
    "LanguageModel": "models.base",
    "LoadedModel": "models.checkpoints.loaded_model",
    "MetropolisHastings": "samplers.metropolis_hastings",
    "PowerSMC": "samplers.power_smc",
    "PowerTarget": "targets.power",
    "SampleInfo": "results.result",
    "SampleResult": "results.result",
    "StopBoxed": "targets.stop_rules",
    "StopRegex": "targets.stop_rules",
    "StopString": "targets.stop_rules",
    "Stopped": "engine.sample",
    "Stream": "engine.stream",
    "StreamRequest": "engine.stream",
    "TableLM": "models.table_lm",
    "TransformerConfig": "models.transformer.config",
    "TransformerLM": "models.transformer.transformer",
    "UnsupportedModelError": "models.transformer.config",
    "WithoutReplacement": "samplers.without_replacement",
    "load": "models.checkpoints.load",
    "make_mesh": "core.mesh",
    "pool": "results.pooling",
    "sample": "engine.sample",
    "stream": "engine.engine",
}
_MODULES = {
    "adapters": "models.adapters",
    "cost_model": "theory.cost_model",
    "evidence": "evidence",
    "exact": "theory.exact",
    "plain": "plain",
    "testing": "testing",
    "theory": "theory",
}

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
    "cost_model",
    "evidence",
    "exact",
    "load",
    "make_mesh",
    "plain",
    "pool",
    "sample",
    "stream",
    "testing",
    "theory",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value: Any = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    elif name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # the next use finds it without asking
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
