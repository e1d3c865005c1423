"""How many prompt slots and rows there are: as many as fill the machine, if they fit its memory."""

import dataclasses
import math

from jax.sharding import Mesh

from jax_power_smc.core.types import Params
from jax_power_smc.engine import memory_plan
from jax_power_smc.engine.buckets import MOST_STOP_STATES, SMALLEST_PROMPT_BUCKET, Sizes
from jax_power_smc.engine.layout import layout_of
from jax_power_smc.engine.memory_plan import MemoryPlan
from jax_power_smc.engine.row_policy import row_ladder
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.samplers import Sampler

# Steps per call of the device. On a CPU a free row costs as much as any other, so the
# table is looked at more often.
CHUNK, CHUNK_ON_CPU = 32, 8
# Particles in all slots together. More would not use a device better, and would cost memory.
MAX_PARTICLES = 512
# Prompts enter in groups of this share of the slots: larger groups would often be half empty,
# smaller ones need more calls.
GROUPS = 4
# Rows of an accelerator, where a free row costs little, over those that prompts typically need.
SPARE_ROWS = 2


def plan_slots(
    model: LanguageModel,
    params: Params,
    sampler: Sampler,
    *,
    prompt_tokens: int,
    new_tokens: int,
    wanted: int,
    slots: int | None,
    memory_limit: int | None,
    mesh: Mesh | None = None,
    stop_states: int = 0,
    rows: int | None = None,
    capacity: int | None = None,
    prompt_bucket: int | None = None,
) -> tuple[Sizes, MemoryPlan]:
    """Plans the shapes of the slots and the row table; every data shard of a mesh has equal parts.

    Args:
      model, params, sampler: what the slots are for.
      prompt_tokens, new_tokens: the longest prompt and the largest cap that may come.
      wanted: the largest number of slots that is useful.
      slots: exactly so many, rounded up to a multiple of the data shards; None to choose.
      memory_limit, mesh: as for ``Engine``.
      stop_states: the states of stop rules that must fit; more may use the memory that is left.
      rows, capacity, prompt_bucket: as for ``Engine``.

    Raises:
      ValueError: if not even one slot fits, or fewer than ``slots``.
    """
    num = sampler.num_particles
    layout = layout_of(model, mesh)
    shards = layout.data_shards
    on_cpu = memory_plan.first_device(layout).platform == "cpu"
    count = -(-(slots or min(shards * max(1, MAX_PARTICLES // num), wanted)) // shards)
    sizes = Sizes(
        slots=count,
        group=max(1, count // GROUPS),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        chunk=CHUNK_ON_CPU if on_cpu else CHUNK,
        rows=(num,),
        most_positions=getattr(model, "max_positions", None),
        capacity=capacity,
        smallest_bucket=prompt_bucket or SMALLEST_PROMPT_BUCKET,
    )
    if capacity is not None and capacity < prompt_tokens + new_tokens:
        raise ValueError(
            f"capacity is {capacity}; the longest prompt and max_new_tokens need "
            f"{prompt_tokens} + {new_tokens} positions."
        )

    def useful(slots: int) -> tuple[int, int]:
        if sampler.runs_as_chains:
            return slots * num, slots * num
        if rows is not None:
            return rows, rows
        typical = math.ceil(slots * sampler.typical_rows)
        least = min(slots * num, max(num, typical))
        return least, slots * num if on_cpu else min(slots * num, max(num, SPARE_ROWS * typical))

    plan = memory_plan.plan(
        model,
        params,
        num,
        capacity=sizes.longest,
        bucket=sizes.prompt_bucket(prompt_tokens),
        slots=count,
        rows=useful,
        group=lambda slots: slots if sampler.runs_as_chains else max(1, slots // GROUPS),
        chunk=sizes.chunk,
        limit=memory_limit,
        layout=layout,
        stop_states=stop_states,
        resizes=not sampler.runs_as_chains and (rows is None or capacity is None),
        prefills_whole=sampler.runs_as_chains,
    )
    if slots is not None and plan.slots < count:
        raise ValueError(
            f"{slots} prompts at a time are too many for the memory; at most "
            f"{shards * plan.slots} fit: {plan}."
        )
    fixed = rows is not None or not on_cpu or sampler.runs_as_chains
    more_states = (plan.limit - plan.total) // memory_plan.state_bytes(model.vocab_size)
    sizes = dataclasses.replace(
        sizes,
        slots=shards * plan.slots,
        group=shards * max(1, plan.slots // GROUPS),
        rows=(plan.rows,) if fixed else row_ladder(plan.rows),
        grows=on_cpu and not sampler.runs_as_chains,
        stop_states=min(MOST_STOP_STATES, stop_states + more_states),
    )
    return sizes, plan
