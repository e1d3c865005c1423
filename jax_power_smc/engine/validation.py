"""Checks of the engine's arguments: one sentence with the value and what is allowed."""

from collections.abc import Sequence, Sized
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_power_smc.core import checks
from jax_power_smc.core.types import TokenIds
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.samplers import Sampler
from jax_power_smc.targets.power import PowerTarget


class CheckedArguments(NamedTuple):
    """The arguments that ``check_request`` accepted, copied.

    Attributes:
      prompts: int32 arrays [S].
      prompt_ids: one integer per prompt.
      key: the key of the run.
      max_new_tokens: T.
      prompts_per_batch: as given, or None.
    """

    prompts: list[np.ndarray]
    prompt_ids: list[int]
    key: jax.Array
    max_new_tokens: int
    prompts_per_batch: int | None


def check_request(
    model: LanguageModel,
    prompts: Sequence[TokenIds],
    prompt_ids: Sequence[int] | None,
    key: jax.Array,
    target: PowerTarget,
    sampler: Any,
    max_new_tokens: int,
    prompts_per_batch: int | None,
) -> CheckedArguments:
    """The arguments of ``sample``, copied; ValueError for an invalid one."""
    check_target(target)
    check_sampler(sampler)
    cap = checks.integer("max_new_tokens", max_new_tokens, at_least=1)
    if prompts_per_batch is not None:
        prompts_per_batch = checks.integer("prompts_per_batch", prompts_per_batch, at_least=1)
    key = checks.key(key)
    if isinstance(prompts, str) or not isinstance(prompts, Sized):
        raise ValueError(f"prompts is {prompts!r}; it must be a list of lists of token ids.")
    if len(prompts) == 0:
        raise ValueError("prompts is empty; at least one prompt is needed.")
    target.check(model.vocab_size, cap)
    sampler.check(cap)
    if sampler.runs_as_chains and not getattr(model, "can_rewind", True):
        raise ValueError(
            f"sampler is {type(sampler).__name__}, which rewinds sequences, and the model's cache "
            "cannot (can_rewind); allowed are WithoutReplacement, PowerSMC and Ancestral."
        )
    copies = [check_prompt(index, prompt, model, cap) for index, prompt in enumerate(prompts)]
    ids = checks.prompt_ids(prompt_ids, len(copies))
    return CheckedArguments(copies, ids, key, cap, prompts_per_batch)


def check_target(target: Any) -> None:
    """Raises ValueError unless the value is a target."""
    if not isinstance(target, PowerTarget):
        raise ValueError(f"target is {target!r}; it must be a PowerTarget.")


def check_sampler(sampler: Any) -> None:
    """Raises ValueError unless the value is a sampler."""
    if not isinstance(sampler, Sampler):
        raise ValueError(
            f"sampler is {sampler!r}; allowed are WithoutReplacement, PowerSMC, "
            "MetropolisHastings and Ancestral."
        )


def check_prompt(index: int, prompt: Any, model: LanguageModel, max_new_tokens: int) -> np.ndarray:
    """The prompt as a new int32 array, if the model has room for it and its continuation."""
    ids = checks.prompt(index, prompt, model.vocab_size)
    limit = getattr(model, "max_positions", None)
    if limit is not None and len(ids) + max_new_tokens > limit:
        raise ValueError(
            f"prompt {index} has {len(ids)} tokens and max_new_tokens is {max_new_tokens}; "
            f"together they must not exceed the model's {limit} positions."
        )
    return ids
