"""Decoding on many accelerators, calculated from the compiled chunk of steps; see ``collectives``.

A model is compiled twice, with a few layers and with a few more. The difference is due to the
layers and the rest is there once, which gives the exchanges of the whole model; a third compilation
checks this.

In a bfloat16 model the program sums the layers' results in float32 and rounds the sums. The CPU
compiler exchanges everything in float32, even the 16-bit embeddings; the TPU compiler exchanges all
of these in 16 bits, half the bytes.
"""

import dataclasses
import functools
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh

from jax_power_smc.benchmarks.collectives import Collective, collectives
from jax_power_smc.benchmarks.records import Write
from jax_power_smc.core import prng
from jax_power_smc.engine import executables, memory_plan, programs
from jax_power_smc.engine.decode import PromptInputs, SharedInputs
from jax_power_smc.engine.layout import Layout, layout_of
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import TransformerLM
from jax_power_smc.samplers import Kernel, PowerSMC
from jax_power_smc.targets.power import PowerTarget

# Enough steps that the compiled program has a loop over them.
_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Machine:
    """Accelerators by their maker's figures; ``memory_plan.plan`` takes it for a single device.

    Attributes:
      name: in the figures.
      memory_bytes: of one device.
      memory_bandwidth: bytes per second of its memory.
      link_bandwidth: bytes per second that it can send over all its links together.
      seconds_per_collective: overhead of an exchange beyond its bytes; an assumption.
      platform: as a JAX device has it.
    """

    name: str
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    seconds_per_collective: float
    platform: str = "accelerator"

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class Load:
    """What is decoded.

    Attributes:
      prompts_per_shard: prompts in the slots of a data shard.
      num_particles: N.
      prompt_tokens, new_tokens: S and T; caches are full, as at the last step.
    """

    prompts_per_shard: int
    num_particles: int
    prompt_tokens: int
    new_tokens: int


def topology(name: str) -> list[Any]:
    """The TPUs of a topology such as "v5e:4x4", to compile for; this needs libtpu but no TPU.

    Raises:
      ValueError: if there is no compiler for the topology.
    """
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as error:  # of many kinds, as libtpu is absent or does not know the name
        raise ValueError(
            f"topology is {name!r}, for which nothing can be compiled here ({error}); "
            "pip install 'jax-power-smc[tpu]'."
        ) from error
    return list(described.devices)


def lower_chunk(
    model: TransformerLM,
    mesh: Mesh | None,
    sampler: Kernel,
    *,
    prompts: int,
    prompt_tokens: int,
    capacity: int,
    num_steps: int = _STEPS,
) -> tuple[Any, Any]:
    """Lowers a chunk of decode steps from shapes alone.

    Args:
      model: as one device runs it.
      mesh: the mesh, or None for one device.
      sampler: any that has slots.
      prompts: P, over all data shards.
      prompt_tokens, capacity: S and T.
      num_steps: of the chunk.

    Returns:
      The lowered program, and the shapes of the caches on one device.
    """
    layout = layout_of(model, mesh)
    params = nnx.state(model.abstract_module())

    def of_all(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((prompts, *x.shape), x.dtype)

    target = PowerTarget(4.0, (0,)).arrays(model.vocab_size, capacity)
    shared = SharedInputs(jax.eval_shape(sampler.traced))
    own = PromptInputs(None, target, prng.prompt_keys(prng.seed_key(0), [0])[0])
    args: Any = (
        params,
        shared,
        jax.tree.map(of_all, own),
        of_all(jax.ShapeDtypeStruct((prompt_tokens,), jnp.int32)),
        of_all(jnp.zeros((), jnp.int32)),
    )
    static: dict[str, Any] = {"model": layout.model}
    inputs, state, _ = executables.results(
        programs.prefill, static | {"capacity": capacity}, args, layout
    )
    make = functools.partial(programs.empty_cache, layout.model, params)
    sizes = sampler.num_particles, capacity
    cache = jax.eval_shape(lambda: make(prompts * layout.model_shards, *sizes))
    clocks = jax.ShapeDtypeStruct((num_steps,), jnp.int32)
    args = params, shared, inputs, state._replace(cache=cache), clocks
    specs = programs.SPECS[programs.decode_chunk](layout, args)
    lowered = layout.lower(programs.decode_chunk, static, args, specs)
    return lowered, jax.eval_shape(lambda: make(prompts // layout.data_shards, *sizes))


def per_step(model: TransformerLM, mesh: Mesh, load: Load) -> Counter[Collective]:
    """How many times each exchange occurs in a compiled step of Power-SMC.

    Exchanges once per chunk, which make its results available to all processes, are left out.
    """
    lowered, _ = lower_chunk(
        model,
        mesh,
        PowerSMC(load.num_particles),
        prompts=load.prompts_per_shard * mesh.shape["data"],
        prompt_tokens=load.prompt_tokens,
        capacity=load.new_tokens,
    )
    found = Counter(collectives(lowered.compile().as_text()))
    of_chunk = 0 if mesh.is_multi_process else 1
    outside = [each for each in found if not of_chunk <= each.loops <= 1]
    if outside:
        raise ValueError(f"the chunk has an exchange outside of its steps: {outside[0]}.")
    return Counter({each: count for each, count in found.items() if each.loops == 1})


def measure(
    config: TransformerConfig,
    dtype: str,
    machine: Machine,
    mesh: Mesh,
    load: Load,
    *,
    layers: tuple[int, int],
    checked: int | None,
    write: Write,
) -> None:
    """Writes the figures of one model on one mesh.

    Args:
      config, dtype: the model.
      machine: the devices.
      mesh: of as many CPU devices instead, or of the devices of ``topology``.
      load: what is decoded.
      layers: of the two compiled models, the smaller one first.
      checked: layers of a third model that checks them; None for no check.
      write: receives the figures.

    Raises:
      ValueError: if the check fails.
    """

    def counted(num: int) -> Counter[Collective]:
        some = dataclasses.replace(config, num_layers=num)
        return per_step(TransformerLM(some, dtype), mesh, load)

    few, more = (counted(num) for num in layers)

    def extrapolated(num: int) -> dict[Collective, float]:
        share = (num - layers[0]) / (layers[1] - layers[0])
        return {each: few[each] + share * (more[each] - few[each]) for each in few | more}

    if checked is not None and extrapolated(checked) != counted(checked):
        raise ValueError(f"{checked} layers do not exchange what {layers} layers predict.")
    about = {
        "machine": machine.name,
        "mesh": "x".join(map(str, mesh.devices.shape)),
        **{name: getattr(load, name) for name in ("num_particles", "prompts_per_shard")},
        **{name: getattr(load, name) for name in ("prompt_tokens", "new_tokens")},
        "num_layers": config.num_layers,
        "layers_compiled": list(layers),
        "layers_checked": checked,
        "compiled_for": mesh.devices.flat[0].device_kind,
    }
    whole = extrapolated(config.num_layers)
    of_layer = {each: (more[each] - few[each]) / (layers[1] - layers[0]) for each in whole}
    for each, count in whole.items():
        arrays = " ".join(f"{dtype}{list(shape)}" for dtype, shape in each.arrays)
        named = {"kind": each.kind, "arrays": arrays, "group": each.group}
        times = {"per_step": count, "per_layer": of_layer[each]}
        write("collective_bytes", each.size, "bytes", **named, **times, **about)
    sent = sum(each.sent * count for each, count in whole.items())
    number = sum(whole.values())
    write("collectives_per_step", number, "collectives", **about)
    write("collectives_per_layer", sum(of_layer.values()), "collectives", **about)
    write("sent_per_step", sent, "bytes/device", **about)
    of_layers = sum(each.sent * count for each, count in of_layer.items())
    write("sent_per_layer", of_layers, "bytes/device", **about)

    read = _memory(TransformerLM(config, dtype), machine, mesh, load, write, about)
    memory_time, link_time = read / machine.memory_bandwidth, sent / machine.link_bandwidth
    besides = number * machine.seconds_per_collective
    about = {
        **about,
        "memory_bandwidth": machine.memory_bandwidth,
        "link_bandwidth": machine.link_bandwidth,
        "seconds_per_collective": machine.seconds_per_collective,
    }
    write("memory_time", memory_time, "s/step, calculated", **about)
    write("link_time", link_time, "s/step, calculated", **about)
    share = link_time / (memory_time + link_time)
    write("collective_share", share, "of a step, calculated", **about)
    slow = link_time + besides
    share = slow / (memory_time + slow)
    write("collective_share_with_overhead", share, "of a step, calculated", **about)


def _memory(
    model: TransformerLM,
    machine: Machine,
    mesh: Mesh,
    load: Load,
    write: Write,
    about: dict[str, Any],
) -> int:
    """Writes the memory that a device needs; returns the bytes that a step reads."""
    layout = layout_of(model, mesh)
    params = nnx.state(model.abstract_module())
    limit = int(memory_plan.ACCELERATOR_SHARE * machine.memory_bytes)
    slots = load.prompts_per_shard
    # First without a limit: what does not fit has a size, too.
    plan = functools.partial(
        memory_plan.plan,
        model,
        params,
        load.num_particles,
        load.prompt_tokens,
        load.new_tokens,
        slots,
        group=max(1, slots // 4),
        device=machine,
        layout=layout,
    )
    needed = plan(limit=2**62)
    write("weights", needed.params, "bytes/device", **about)
    kv = slots * (needed.context + needed.cache)
    write("keys_and_values", kv, "bytes/device", **about)
    write("planned_memory", needed.total, "bytes/device", **about)
    write("share_of_memory", needed.total / limit, "of what the engine may use", **about)
    one = dataclasses.replace(needed, slots=1, limit=limit)
    fitting = plan(limit=limit).slots if one.fits else 0
    write("prompts_that_fit", fitting, "of those per shard", **about)
    return needed.params - _unread(layout, params) + kv


def _unread(layout: Layout, params: Any) -> int:
    """Bytes of an embedding that is not also the head: a step reads only a few rows of it."""
    local = dict(nnx.to_flat_state(layout.local(params)))
    if ("head",) not in local:
        return 0
    embedding = local["embedding",]
    return int(np.prod(embedding.shape)) * jnp.dtype(embedding.dtype).itemsize
