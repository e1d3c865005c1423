"""All randomness: uniform numbers from (key, prompt id, run, step) (docs/math.md, eq. 44).

A prompt's numbers depend on nothing else, so its result depends neither on the other prompts of
its batch nor on its slot. The decode step takes its numbers as an argument; the proofs in
``tests/proofs`` replace them by the midpoints of every interval that matters.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# All constants that are folded into a key. Those that are folded into the same key must differ, and
# changing one changes results.
#
# Into a prompt's key, which also takes step indices (below 2^31):
FOLD_FINAL = 0xFFFFFFFF  # the draw of the returned particle
# Into the caller's key, which also takes the high half of prompt ids and the index of independent
# runs (below 2^31). Only an id or an index with that very value could share numbers with the last
# two; no list index has one, and a hashed name has it with probability 2^-31.
FOLD_CUTS = 0xFFFFFFFF  # cuts of Metropolis-Hastings
FOLD_POOL = 0x706F6F6C  # "pool": the choice among pooled particles
FOLD_PIMH = 0x70696D68  # "pimh": acceptance of runs

LARGEST_PROMPT_ID = 2**63 - 1
# The only implementation of random bits whose numbers for a prompt do not depend on the batch: what
# "rbg" draws under vmap depends on it, and "unsafe_rbg" gives prompts each other's numbers.
KEY_IMPL = "threefry2x32"


class StepUniforms(NamedTuple):
    """Uniform numbers in [0, 1) for one step of one prompt.

    Attributes:
      resample: [M], for the resampling scheme; M as in ``samplers.base.Particles``.
      token: [M, 2], the two levels of the token draw.
    """

    resample: jax.Array
    token: jax.Array


def seed_key(seed: int) -> jax.Array:
    """The key of a seed, whatever this process's default implementation is."""
    return jax.random.key(seed, impl=KEY_IMPL)


def prompt_id(name: str) -> int:
    """A prompt id made from an item's name, the same in every job and batch."""
    # JSON may hold a lone surrogate.
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") & LARGEST_PROMPT_ID


def prompt_keys(key: jax.Array, prompt_ids: Sequence[int], run: int = 0) -> jax.Array:
    """[P] keys of one run on P prompts, whose ids lie in [0, 2^63); from one key, or [P] keys."""
    ids = np.asarray(prompt_ids, np.uint64)
    high, low = (ids >> np.uint64(32)).astype(np.uint32), ids.astype(np.uint32)
    keys = jnp.broadcast_to(key, ids.shape)
    return _fold(keys, jnp.asarray(high), jnp.asarray(low), jnp.asarray(run, jnp.uint32))


@jax.jit
def _fold(keys: jax.Array, high: jax.Array, low: jax.Array, run: jax.Array) -> jax.Array:
    def one(key: jax.Array, high: jax.Array, low: jax.Array) -> jax.Array:
        prompt = jax.random.fold_in(jax.random.fold_in(key, high), low)
        return jax.random.fold_in(prompt, run)

    return jax.vmap(one)(keys, high, low)


def step_uniforms(
    key: jax.Array, step: jax.Array, population_size: int, dtype: Any = jnp.float32
) -> StepUniforms:
    """The numbers for one step [] int32 of a prompt, given the prompt's key."""
    numbers = jax.random.uniform(jax.random.fold_in(key, step), (population_size, 3), dtype)
    return StepUniforms(resample=numbers[:, 0], token=numbers[:, 1:])


def final_uniforms(key: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """The numbers [2] after the last step: for the returned particle, and for the sampler."""
    return jax.random.uniform(jax.random.fold_in(key, jnp.uint32(FOLD_FINAL)), (2,), dtype)


def host_uniforms(
    key: jax.Array, purpose: int, prompt_ids: Sequence[int], runs: Sequence[int]
) -> np.ndarray:
    """[P, R] numbers in [0, 1) in float64, each from (key, purpose, prompt id, run) only.

    The purpose is a constant of the table above.
    """
    folded = jax.random.fold_in(key, purpose)
    keys = jnp.stack([prompt_keys(folded, prompt_ids, run) for run in runs], axis=1)
    words = jax.vmap(jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32)))
    bits = np.asarray(words(keys)).astype(np.uint64)
    # 53 bits: 32 of the first word, 21 of the second.
    high, low = bits[..., 0] << np.uint64(21), bits[..., 1] >> np.uint64(11)
    return (high | low).astype(np.float64) * 2.0**-53
