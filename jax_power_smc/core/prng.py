"""All randomness of a run: uniform numbers from (seed, prompt id, run, step).

The numbers of a prompt depend on nothing else, so its result depends neither on the other
prompts of its batch nor on the slot it sits in. The decode step takes its numbers as an argument;
the proofs in ``tests`` replace them by the midpoints of every interval that matters.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Folded in instead of a step index for the draw of the returned particle.
_FINAL = 0xFFFFFFFF
LARGEST_PROMPT_ID = 2**63 - 1
# The one implementation of random bits that gives a prompt the same numbers in any company: what
# "rbg" draws under vmap depends on the batch, and "unsafe_rbg" gives prompts each other's numbers.
KEY_IMPL = "threefry2x32"


class StepUniforms(NamedTuple):
    """Uniform numbers in [0, 1) of one step of one prompt.

    Attributes:
      resample: [M], for the resampling scheme; M rows as in ``samplers.base.Particles``.
      token: [M, 2], two levels of the token draw.
    """

    resample: jax.Array
    token: jax.Array


def seed_key(seed: int) -> jax.Array:
    """The key of a seed, whatever implementation is the default of this process."""
    return jax.random.key(seed, impl=KEY_IMPL)


def prompt_id(name: str) -> int:
    """A prompt id from the name of an item: the same wherever and with whomever it is sampled."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & LARGEST_PROMPT_ID


def prompt_keys(key: jax.Array, prompt_ids: Sequence[int], run: int = 0) -> jax.Array:
    """[P] keys of one run on P prompts.

    Args:
      key: one key for all, or [P].
      prompt_ids: non-negative integers below 2^63.
      run: number of the run.
    """
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
    key: jax.Array, step: jax.Array, num_rows: int, dtype: Any = jnp.float32
) -> StepUniforms:
    """The numbers of step ``step`` [] int32 of the run that ``key`` belongs to."""
    numbers = jax.random.uniform(jax.random.fold_in(key, step), (num_rows, 3), dtype)
    return StepUniforms(resample=numbers[:, 0], token=numbers[:, 1:])


def final_uniforms(key: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """The numbers [2] after the last step: for the returned particle, and for the sampler."""
    return jax.random.uniform(jax.random.fold_in(key, jnp.uint32(_FINAL)), (2,), dtype)
