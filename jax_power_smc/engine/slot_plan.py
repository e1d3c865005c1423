"""How many prompt slots there are: as many as fill the machine, if they fit into its memory."""

import dataclasses

from jax.sharding import Mesh

from jax_power_smc.core.types import Params
from jax_power_smc.engine import memory_plan
from jax_power_smc.engine.buckets import MOST_STOP_STATES, Sizes
from jax_power_smc.engine.layout import layout_of
from jax_power_smc.engine.memory_plan import MemoryPlan
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.samplers import Sampler

CHUNK = 32
# Particles in all slots together. More would not use a device better, and would cost memory.
MAX_PARTICLES = 512
# Prompts enter in groups of this share of the slots: larger groups would often be half empty,
# smaller ones need more calls.
GROUPS = 4


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
) -> tuple[Sizes, MemoryPlan]:
    """Plans the shapes of a set of slots; every data shard of a mesh has equally many slots.

    Args:
      model, params, sampler: what the slots are for.
      prompt_tokens, new_tokens: S and T, the largest that may come.
      wanted: the largest number of slots that is useful.
      slots: exactly so many, rounded up to a multiple of the data shards; None to choose.
      memory_limit, mesh: as for ``Engine``.
      stop_states: the states of stop rules that must fit; more may use the memory that is left.

    Raises:
      ValueError: if not even one slot fits, or fewer than ``slots``.
    """
    num = sampler.num_particles
    layout = layout_of(model, mesh)
    shards = layout.data_shards
    count = -(-(slots or min(shards * max(1, MAX_PARTICLES // num), wanted)) // shards)
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
            f"{slots} prompts at a time are too many for the memory; at most "
            f"{shards * plan.slots} fit: {plan}."
        )
    # While a cache grows, the old one still exists; at the last growth it is in the last bucket but
    # one.
    before = [*sizes.cache_buckets()[:-1], 0][-2:][0]
    old = plan.slots * plan.cache * before // sizes.token_capacity
    grows = plan.total + old <= plan.limit
    left = plan.limit - plan.total - (old if grows else 0)
    more_states = left // memory_plan.state_bytes(model.vocab_size)
    sizes = dataclasses.replace(
        sizes,
        slots=shards * plan.slots,
        group=shards * max(1, plan.slots // GROUPS),
        grows=grows,
        stop_states=min(MOST_STOP_STATES, stop_states + more_states),
    )
    return sizes, plan
