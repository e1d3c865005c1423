"""``sample``: a list of prompts through the prompt slots (``slots``), and how many slots there are.

For prompts that come one by one see ``streaming``.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jax_power_smc.core.mesh import mesh_of, no_ambient_mesh
from jax_power_smc.engine import memory_plan
from jax_power_smc.engine.buckets import LARGEST_TABLE, Sizes, TokenIds, power_of_two
from jax_power_smc.engine.collect import collect
from jax_power_smc.engine.layout import layout_of
from jax_power_smc.engine.memory_plan import MemoryPlan
from jax_power_smc.engine.mh_chains import Stopped, run_chains
from jax_power_smc.engine.scheduler import ActiveRequest, Scheduler
from jax_power_smc.engine.target_batch import block_states
from jax_power_smc.engine.validation import check_request
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.results.result import SampleResult, concatenate
from jax_power_smc.samplers import MetropolisHastings, Sampler
from jax_power_smc.targets import stop_arrays
from jax_power_smc.targets.power import PowerTarget

CHUNK = 32
# Particles of all slots together; more fill the machine no better and cost memory.
MAX_ROWS = 512
# Prompts enter in groups of this share of the slots: larger groups would often be half empty,
# smaller ones mean more calls.
GROUPS = 4


@no_ambient_mesh()
def sample(
    model: LanguageModel,
    params: Any,
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
      model: a language model (``LanguageModel``).
      params: its parameters.
      prompts: P lists or arrays of token ids, ragged, none empty.
      key: a key of ``jax.random.key``.
      target: what to sample from.
      sampler: ``WithoutReplacement``, ``PowerSMC``, ``MetropolisHastings`` or ``Ancestral``.
      max_new_tokens: T, the cap.
      prompt_ids: one non-negative integer per prompt for its randomness; default the list index.
        Equal ids of equal prompts give equal results.
      prompts_per_batch: prompts decoded together; default as many as ``MAX_ROWS`` particles and
        the memory of the device allow.
      tokenizer: needed if the target has a stop rule: a fast tokenizer, or a list of the bytes of
        every token.
      memory_limit: bytes that may be used on the device; default what it has.
      mesh: devices with the axes "data" and "model" (``make_mesh``); default those on whose mesh
        the parameters lie, or else one device.
      until: asked between pieces of work: a chunk of steps, a move of all chains. Once it says
        True, the call is given up.

    Returns:
      The particles of every prompt with their weights, see ``SampleResult``.

    Raises:
      ValueError: naming the argument, its value and what is allowed, before any work starts.
      Stopped: if ``until`` said so; what was decoded is lost.
    """
    prompts, ids, key, max_new_tokens, prompts_per_batch = check_request(
        model, prompts, prompt_ids, key, target, sampler, max_new_tokens, prompts_per_batch
    )
    mesh = mesh_of(params) if mesh is None else mesh
    longest = max(len(prompt) for prompt in prompts)
    sizes, _ = plan_slots(
        model,
        params,
        sampler,
        prompt_tokens=longest,
        new_tokens=max_new_tokens,
        wanted=power_of_two(len(prompts)),
        slots=prompts_per_batch,
        memory_limit=memory_limit,
        mesh=mesh,
        stop_states=0 if target.stop is None else block_states(target.stop),
    )
    # Short prompts first: the prompt half of the slots then grows no earlier than it must.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    if isinstance(sampler, MetropolisHastings):
        stop = stop_arrays.stop_arrays(target.stop, tokenizer, model.vocab_size)
        return _sample_chains(
            model,
            params,
            prompts,
            ids,
            order,
            key,
            target,
            sampler,
            max_new_tokens,
            sizes,
            stop,
            mesh,
            until,
        ).on_device()
    works = [ActiveRequest(prompts[i], ids[i], target, max_new_tokens) for i in order]
    slots = Scheduler(model, params, sampler, key, sizes, tokenizer, mesh=mesh)
    slots.check(target)
    for work in slots.run(works, until or (lambda: False)):
        if work.error is not None:
            raise work.error
    if any(work.left is None for work in works):
        raise Stopped("until said that sampling is to stop.")
    in_order = [works[k] for k in np.argsort(order).tolist()]
    lefts = [work.left for work in in_order if work.left is not None]
    seens = [work.seen for work in in_order if work.seen is not None]
    result = collect(sampler, target, max_new_tokens, lefts, seens, slots.seconds)
    return result.on_device()


def _sample_chains(
    model: LanguageModel,
    params: Any,
    prompts: Sequence[TokenIds],
    ids: list[int],
    order: list[int],
    key: jax.Array,
    target: PowerTarget,
    sampler: MetropolisHastings,
    max_new_tokens: int,
    sizes: Sizes,
    stop: stop_arrays.StopArrays | None,
    mesh: Mesh | None,
    until: Callable[[], bool] | None,
) -> SampleResult:
    """Batch by batch: all chains follow one schedule, so nobody leaves before the others."""
    buckets: dict[int, list[int]] = {}
    for index in order:
        buckets.setdefault(sizes.prompt_bucket(len(prompts[index])), []).append(index)
    results, done = [], []
    for bucket, indices in sorted(buckets.items()):
        for first in range(0, len(indices), sizes.slots):
            batch = indices[first : first + sizes.slots]
            results.append(
                run_chains(
                    model,
                    params,
                    [prompts[i] for i in batch],
                    [ids[i] for i in batch],
                    key,
                    target,
                    sampler,
                    max_new_tokens,
                    width=sizes.slots,
                    bucket=bucket,
                    capacity=sizes.token_capacity,
                    stop=stop,
                    mesh=mesh,
                    until=until,
                )
            )
            done += batch
    return concatenate(results, np.argsort(np.array(done)))


def plan_slots(
    model: LanguageModel,
    params: Any,
    sampler: Sampler,
    *,
    prompt_tokens: int,
    new_tokens: int,
    wanted: int,
    slots: int | None,
    memory_limit: int | None,
    mesh: Mesh | None = None,
    stop_states: int = 0,
) -> tuple[Sizes, MemoryPlan]:
    """How many slots: as many as are asked for or fill the machine, if its memory has room.

    On a mesh that is asked for each of its "data" rows, and they have equally many. Beside them
    there is room for ``stop_states`` states of stop rules; more may have what is left.

    Raises:
      ValueError: if it has room for none, or not for as many as are asked for.
    """
    num = sampler.num_particles
    layout = layout_of(model, mesh)
    rows = layout.rows
    count = -(-(slots or min(rows * max(1, MAX_ROWS // num), wanted)) // rows)
    limit = getattr(model, "max_positions", None)
    sizes = Sizes(count, max(1, count // GROUPS), prompt_tokens, new_tokens, CHUNK, limit)
    plan = memory_plan.plan(
        model,
        params,
        num,
        sizes.longest,
        sizes.token_capacity,
        count,
        sizes.group,
        limit=memory_limit,
        chunk=CHUNK,
        layout=layout,
        stop_states=stop_states,
    )
    if slots is not None and plan.slots < count:
        raise ValueError(
            f"{slots} prompts at a time are too many for the memory; at most {rows * plan.slots} "
            f"fit: {plan}."
        )
    # While a cache grows there are two, the last time the last two.
    before = [*sizes.cache_buckets()[:-1], 0][-2:][0]
    second = plan.slots * plan.cache * before // sizes.token_capacity
    grows = plan.total + second <= plan.limit
    left = plan.limit - plan.total - (second if grows else 0)
    more_states = left // memory_plan.state_bytes(model.vocab_size)
    sizes = dataclasses.replace(
        sizes,
        slots=rows * plan.slots,
        group=rows * max(1, plan.slots // GROUPS),
        grows=grows,
        stop_states=min(LARGEST_TABLE, stop_states + more_states),
    )
    return sizes, plan
