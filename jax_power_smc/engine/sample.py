"""``sample``: the results of a list of prompts. For prompts that come one by one see ``engine``."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jax_power_smc.core.mesh import no_ambient_mesh
from jax_power_smc.core.types import Params, TokenIds
from jax_power_smc.engine.collect import collect
from jax_power_smc.engine.engine import BaseEngine
from jax_power_smc.engine.request import ActiveRequest
from jax_power_smc.engine.target_batch import block_states
from jax_power_smc.engine.validation import check_request
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.results.result import SampleResult
from jax_power_smc.samplers import Sampler
from jax_power_smc.targets.power import PowerTarget


class Stopped(Exception):  # noqa: N818, not an error: the caller asked for it
    """Sampling was given up because ``until`` said so."""


@no_ambient_mesh()
def sample(
    model: LanguageModel,
    params: Params,
    prompts: Sequence[TokenIds],
    *,
    key: jax.Array,
    target: PowerTarget,
    sampler: Sampler,
    max_new_tokens: int,
    prompt_ids: Sequence[int] | None = None,
    prompts_per_batch: int | None = None,
    tokenizer: Any = None,
    memory_limit: int | None = None,
    mesh: Mesh | None = None,
    until: Callable[[], bool] | None = None,
) -> SampleResult:
    """Samples from a target, for every prompt.

    Args:
      model: a language model (``LanguageModel``). What is compiled for it is kept as long as the
        model is, and shared with equal models.
      params: its parameters.
      prompts: P lists or arrays of token ids, ragged, none empty.
      key: a key of ``jax.random.key``.
      target: what to sample from.
      sampler: ``WithoutReplacement``, ``PowerSMC``, ``MetropolisHastings`` or ``Ancestral``.
      max_new_tokens: T, the cap.
      prompt_ids: one non-negative integer per prompt for its randomness; default the list index.
        Equal ids of equal prompts give equal results.
      prompts_per_batch: prompts decoded together; default as many as ``MAX_PARTICLES`` particles
        and the memory of the device allow.
      tokenizer: needed if the target has a stop rule: a fast tokenizer, or a list of the bytes of
        every token.
      memory_limit: bytes that may be used on the device; default what it has.
      mesh: devices with the axes "data" and "model" (``make_mesh``); default those on whose mesh
        the parameters are, or else one device.
      until: asked between pieces of work: a chunk of steps, a move of all chains. Once it says
        True, the call is given up.

    Returns:
      The particles of every prompt with their weights, see ``SampleResult``.

    Raises:
      ValueError: naming the argument, its value and what is allowed, before any work starts.
      Stopped: if ``until`` said so; what was decoded is lost.
    """
    asked = check_request(
        model, prompts, prompt_ids, key, target, sampler, max_new_tokens, prompts_per_batch
    )
    requests = [
        ActiveRequest(prompt, prompt_id, target, asked.max_new_tokens)
        for prompt, prompt_id in zip(asked.prompts, asked.prompt_ids, strict=True)
    ]
    scheduler = BaseEngine(
        model,
        params,
        sampler=sampler,
        max_prompt_tokens=max(len(request.prompt) for request in requests),
        max_new_tokens=asked.max_new_tokens,
        slots=asked.prompts_per_batch,
        tokenizer=tokenizer,
        memory_limit=memory_limit,
        num_requests=len(requests),
        stop_states=0 if target.stop is None else block_states(target.stop),
        mesh=mesh,
    ).scheduler(asked.key)
    scheduler.check(target)
    # Short prompts first: the rows then grow no earlier than they must.
    shortest_first = sorted(requests, key=lambda request: len(request.prompt))
    for request in scheduler.run(shortest_first, until, len(shortest_first)):
        if request.error is not None:
            raise request.error
    if any(request.outcome is None for request in requests):
        raise Stopped("until said that sampling is to stop.")
    return collect(sampler, requests, scheduler.seconds).on_device()
