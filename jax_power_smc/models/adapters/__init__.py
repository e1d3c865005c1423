"""Models of others behind the ``LanguageModel`` protocol, for every sampler and for streams.

    PlainLM       a function of whole sequences; every step computes its whole prefix again
    CachedLM      a function with a cache of its own, which grows by one entry a token
    from_nnx      a Flax NNX module, as one of these two
    from_linen    a Flax Linen module, as one of these two

A model is a static argument of compiled programs. Two of these are equal if their functions are
the same objects and all else is equal, so functions are best defined at module level: one that is
made anew for every call, a ``lambda`` for instance, makes another model, and all is compiled again.
"""

from jax_power_smc.models.adapters.cached import CachedLM
from jax_power_smc.models.adapters.flax_modules import from_linen, from_nnx
from jax_power_smc.models.adapters.plain import PlainLM

__all__ = ["CachedLM", "PlainLM", "from_linen", "from_nnx"]
