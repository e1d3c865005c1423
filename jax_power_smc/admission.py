"""What is refused at the door of the engine: one sentence with the value and what is allowed."""

from collections.abc import Iterable, Sequence, Sized
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc import randomness
from jax_power_smc.language_model import LanguageModel
from jax_power_smc.samplers import MetropolisHastings, Sampler, checks
from jax_power_smc.target import PowerTarget


def check_request(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    prompt_ids: Sequence[int] | None,
    key: jax.Array,
    target: PowerTarget,
    sampler: Any,
    max_new_tokens: int,
    prompts_per_batch: int | None,
) -> list[int]:
    """Raises ValueError for what cannot be, and returns the prompts' ids."""
    check_target(target)
    check_sampler(sampler)
    checks.integer("max_new_tokens", max_new_tokens, at_least=1)
    if prompts_per_batch is not None:
        checks.integer("prompts_per_batch", prompts_per_batch, at_least=1)
    check_key(key)
    if isinstance(prompts, str) or not isinstance(prompts, Sized):
        raise ValueError(f"prompts is {prompts!r}; it must be a list of lists of token ids.")
    if len(prompts) == 0:
        raise ValueError("prompts is empty; at least one prompt is needed.")
    target.check(model.vocab_size, max_new_tokens)
    if isinstance(sampler, MetropolisHastings):
        sampler.check(max_new_tokens)
        if not getattr(model, "can_go_back", True):
            raise ValueError(
                "sampler is MetropolisHastings, which goes back to earlier steps, and the model's "
                "cache cannot; allowed are WithoutReplacement, PowerSMC and Ancestral."
            )
    for index, prompt in enumerate(prompts):
        check_prompt(index, prompt, model, max_new_tokens)
    return check_prompt_ids(prompt_ids, len(prompts))


def check_target(target: Any) -> None:
    """Raises ValueError unless it is a target."""
    if not isinstance(target, PowerTarget):
        raise ValueError(f"target is {target!r}; it must be a PowerTarget.")


def check_sampler(sampler: Any) -> None:
    """Raises ValueError unless it is a sampler."""
    if not isinstance(sampler, Sampler):
        raise ValueError(
            f"sampler is {sampler!r}; allowed are WithoutReplacement, PowerSMC, "
            "MetropolisHastings and Ancestral."
        )


def check_prompt(index: int, prompt: Any, model: LanguageModel, max_new_tokens: int) -> None:
    """Raises ValueError unless it is a list of the model's token ids that leaves room for more."""
    if isinstance(prompt, str):
        raise ValueError(f"prompt {index} is a string; prompts are lists of token ids.")
    if not isinstance(prompt, Sized):
        raise ValueError(f"prompt {index} is {prompt!r}; a prompt is a list of integers.")
    if len(prompt) == 0:
        raise ValueError(f"prompt {index} is empty; at least one token is needed.")
    try:
        ids = np.asarray(prompt)
    except ValueError:  # rows of unequal length
        ids = np.zeros((0, 0))
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"prompt {index} is {prompt!r}; a prompt is a list of integers.")
    if ids.min() < 0 or ids.max() >= model.vocab_size:
        bad = int(ids[(ids < 0) | (ids >= model.vocab_size)][0])
        raise ValueError(
            f"prompt {index} has token id {bad}; ids must lie in [0, {model.vocab_size})."
        )
    limit = getattr(model, "max_positions", None)
    if limit is not None and len(prompt) + max_new_tokens > limit:
        raise ValueError(
            f"prompt {index} has {len(prompt)} tokens and max_new_tokens is {max_new_tokens}; "
            f"together they must not exceed the model's {limit} positions."
        )


def check_key(key: Any) -> None:
    """Raises ValueError unless it is one key of ``jax.random.key``."""
    is_key = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not is_key or key.shape != ():
        got = f"an array {key.dtype}{list(key.shape)}" if isinstance(key, jax.Array) else repr(key)
        raise ValueError(f"key is {got}; it must be a single key made by jax.random.key(seed).")


def check_prompt_ids(prompt_ids: Sequence[int] | None, num_prompts: int) -> list[int]:
    """Raises ValueError unless every prompt has an id; returns the ids, or the list indices."""
    if prompt_ids is None:
        return list(range(num_prompts))
    if isinstance(prompt_ids, str) or not isinstance(prompt_ids, Iterable):
        raise ValueError(f"prompt_ids is {prompt_ids!r}; it must be a list of integers.")
    ids = list(prompt_ids)
    if len(ids) != num_prompts:
        raise ValueError(
            f"prompt_ids has {len(ids)} entries for {num_prompts} prompts; give one each."
        )
    for index in ids:
        is_integer = isinstance(index, int | np.integer) and not isinstance(index, bool)
        if not is_integer or not 0 <= index <= randomness.LARGEST_PROMPT_ID:
            raise ValueError(f"prompt_ids has {index!r}; ids are integers in [0, 2^63).")
    return ids
