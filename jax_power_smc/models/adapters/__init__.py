"""Adapters: your own functions and Flax modules behind the ``LanguageModel`` protocol.

    PlainLM       a function of whole sequences; every step recomputes the whole prefix
    CachedLM      a function with a cache of its own, which grows by one entry per token
    from_nnx      a Flax NNX module, as one of these two
    from_linen    a Flax Linen module, as one of these two

They work with every sampler and with streams. A model is a static argument of compiled programs.
Two adapted models are equal if their functions are the same objects and their other fields are
equal. So define functions at module level: a function created anew for every call, such as a
``lambda``, makes a different model, for which everything is compiled again.
"""

from jax_power_smc.models.adapters.cached import CachedLM
from jax_power_smc.models.adapters.flax_modules import from_linen, from_nnx
from jax_power_smc.models.adapters.plain import PlainLM

__all__ = ["CachedLM", "PlainLM", "from_linen", "from_nnx"]
