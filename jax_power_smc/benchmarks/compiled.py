"""The engine's programs, compiled for devices that are not there, and what they cost there.

XLA compiles for a TPU that libtpu only knows by name, and for a GPU of which it has a description.
What the programs move and need is read from the result; nothing is run. Libraries that compile for
an accelerator change JAX's default backend, and only one of them can be asked in a process, so
every target has a process of its own: this module, run as a script.

Letters: R rows, T capacity, K key/value heads, H head dimension, L layers, V vocabulary.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from jax_power_smc.benchmarks import hlo, step_account
from jax_power_smc.benchmarks.lowering import NAMES, Programs, Sizes
from jax_power_smc.core.mesh import make_mesh
from jax_power_smc.engine import memory_plan
from jax_power_smc.models.transformer import kernels, kv_cache
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import TransformerLM
from jax_power_smc.samplers import PowerSMC

DESCRIPTIONS = pathlib.Path(__file__).parents[1] / "data" / "targets"


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
      platform: "tpu" or "cuda".
      topology: as libtpu names it; or the file of the description.
      mesh: the sizes of "data" and "model" unless a job says otherwise.
      bandwidth: peak bytes per second of its memory, by its maker's data sheet.
      clock: cycles per second in which a TPU's compiler counts; 0 of a GPU.
    """

    platform: str
    topology: str
    mesh: tuple[int, int]
    bandwidth: float
    clock: float = 0.0


TARGETS = {
    "v5e": Target("tpu", "v5e:2x2", (1, 4), 819e9, 1.5e9),
    "v6e": Target("tpu", "v6e:2x2", (1, 1), 1640e9, 1.75e9),
    "v5p": Target("tpu", "v5p:2x2x1", (1, 1), 2765e9, 1.75e9),
    "h100": Target("cuda", "h100.txtpb", (1, 1), 3.35e12),
    "h200": Target("cuda", "h200.txtpb", (1, 1), 4.8e12),
}
# What a process needs to compile for a device that is not there.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Without a device, nothing can be tried out.
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",
    # What a caller may have set for programs of its own.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    "JAX_ENABLE_COMPILATION_CACHE": "0",
}


@dataclasses.dataclass(frozen=True)
class Job:
    """What is compiled.

    Attributes:
      target: a key of ``TARGETS``.
      model: fields of a ``TransformerConfig``.
      num_particles: N.
      prompts, rows, capacity, group, prompt_tokens, steps: of one device, see ``Sizes``.
      mesh: the sizes of "data" and "model"; None for the target's own.
      programs: from ``lowering.NAMES``.
      dtype: of parameters and cache.
      keep: a directory for the programs' texts; "" for none.
    """

    target: str
    model: dict[str, Any]
    num_particles: int
    prompts: int
    rows: int
    capacity: int
    prompt_tokens: int
    steps: int
    group: int = 1
    mesh: tuple[int, int] | None = None
    programs: tuple[str, ...] = NAMES
    dtype: str = "bfloat16"
    keep: str = ""

    @property
    def sizes(self) -> Sizes:
        """Of one device."""
        fields = (field.name for field in dataclasses.fields(Sizes))
        return Sizes(**{name: getattr(self, name) for name in fields})


def run(job: Job, python: str = "") -> Iterator[dict[str, Any]]:
    """Compiles a job's programs in a process of its own; yields what each costs.

    Args:
      job: what to compile.
      python: the interpreter that has the target's libraries; by default this one.

    Raises:
      RuntimeError: if they cannot be compiled; the message ends with the process's own words.
    """
    command = [python or sys.executable, "-m", __name__, json.dumps(dataclasses.asdict(job))]
    # As here, also if the interpreter is of an environment without this package.
    path = os.pathsep.join([str(DESCRIPTIONS.parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **_ENVIRONMENT, "PYTHONPATH": path}
    try:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    except OSError as error:
        message = f"the interpreter of {job.target} cannot be started: {error}."
        raise RuntimeError(message) from error
    with process:
        assert process.stdout is not None and process.stderr is not None
        try:
            output, errors = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise RuntimeError(
            f"compiling for {job.target} failed; are its libraries installed (make compiled)? "
            f"{errors[-2000:].strip()}"
        )
    for line in output.splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def devices(target: Target) -> Sequence[Any]:
    """The devices of a target, which need not be there.

    Raises:
      RuntimeError: if the library that knows them is not installed.
    """
    from jax.experimental import topologies

    if target.platform == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name=target.topology).devices
    text = (DESCRIPTIONS / target.topology).read_text("utf-8")
    count = target.mesh[0] * target.mesh[1]
    return topologies.get_topology_desc(
        platform="cuda", topology=f"1x1x{count}", target_config=text
    ).devices


def compile_programs(job: Job) -> Iterator[dict[str, Any]]:
    """What each program of a job costs: a dictionary of strings and numbers."""
    target = TARGETS[job.target]
    data, size = job.mesh or target.mesh
    target = dataclasses.replace(target, mesh=(data, size))
    found = list(devices(target))[: data * size]
    # What is best on the device; by default a model asks for the backend of the process.
    model = TransformerLM(TransformerConfig(**job.model), job.dtype, layout="flat")
    programs = Programs(model, make_mesh(size, found), PowerSMC(job.num_particles), job.sizes)
    versions = _versions(target.platform)
    memory: dict[str, Any] = {}
    for name in job.programs:
        began = time.perf_counter()
        lowered = programs.lower(name)
        lowering = time.perf_counter() - began
        compiled = lowered.compile()
        seconds = time.perf_counter() - began - lowering
        text = compiled.as_text()
        if job.keep:
            pathlib.Path(job.keep).mkdir(parents=True, exist_ok=True)
            stem = f"{job.target}_{data}x{size}_{name}_L{job.model['num_layers']}_R{job.rows}"
            pathlib.Path(job.keep, f"{stem}.hlo").write_text(text, "utf-8")
        memory[name] = analysis = compiled.memory_analysis()
        yield {
            "program": name,
            "device_kind": found[0].device_kind,
            **versions,
            "lower_seconds": lowering,
            "compile_seconds": seconds,
            "arguments": analysis.argument_size_in_bytes,
            "results": analysis.output_size_in_bytes,
            "aliased": analysis.alias_size_in_bytes,
            "temporaries": analysis.temp_size_in_bytes,
            **figures(job, target, programs, hlo.parse(text), in_loop=name == "decode_chunk"),
        }
    if {"decode_chunk", "prefill"} <= memory.keys():
        yield {"program": "all", **versions, **planned(job, programs, found[0], memory)}


def figures(
    job: Job, target: Target, programs: Programs, module: hlo.Module, *, in_loop: bool
) -> dict[str, Any]:
    """What is read from a program's text, see ``StepAccount``, and its share of the roofline."""
    leaf = jax.tree.leaves(programs.cache)[0]
    vocab = job.model["vocab_size"] // programs.layout.vocabulary.num_shards
    found = step_account.account(
        module, leaf=leaf.size, logits=job.rows * vocab, vocab=vocab, in_loop=in_loop
    )
    groups = {group for _, _, each in found.collectives for group in each}
    cache = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(programs.cache))
    result: dict[str, Any] = {
        "cache": cache,
        "read": found.rest.read,
        "written": found.rest.written,
        "kernels": found.rest.kernels,
        "attention_kernels": sorted(set(found.attention)),
        "attentions": len(found.attention),
        "copies": list(found.copies),
        "relayouts": len(found.relayouts),
        "conditionals_with_cache": len(found.carried),
        "heads": found.heads,
        "sorts": found.sorts,
        "collectives": len(found.collectives),
        "collective_kinds": sorted({f"{kind} {arrays}" for kind, arrays, _ in found.collectives}),
        "groups": sorted(groups),
        "cycles": found.rest.cycles,
    }
    if not in_loop:
        return result
    block = kv_cache.BLOCK
    for age, positions in ages(job.rows, job.capacity).items():
        least = least_bytes(programs, positions)
        attention = attention_bytes(target.platform, leaf, job.model["head_dim"], positions)
        attention *= len(found.attention)
        # One row: of the mean length.
        length = sum(positions) // len(positions) + 1
        move = found.moving(-(-length // block))
        result[age] = {
            "least": sum(least.values()),
            **{f"least_{name}": value for name, value in least.items()},
            "moved": found.rest.moved + attention,
            "least_of_a_move": 2 * cache // job.rows * length // job.capacity,
            "moved_by_a_move": move.moved,
        }
        result[age] |= roofline(target, found.rest, attention, result[age])
    return result


def roofline(
    target: Target, rest: step_account.Cost, attention: float, bytes_: Mapping[str, float]
) -> dict[str, float]:
    """Static seconds of a step without exchanges, and the least possible over it.

    On a TPU the compiler's cycles, and what attention kernels read at peak bandwidth; but not less
    than all bytes at peak bandwidth, of which some are fetched while others are used. On a GPU
    nothing but the bytes is known.
    """
    seconds = bytes_["moved"] / target.bandwidth
    if target.clock:
        computed = (rest.cycles - rest.exchange_cycles) / target.clock
        seconds = max(seconds, computed + attention / target.bandwidth)
    share = bytes_["least"] / target.bandwidth / seconds
    return {"seconds": seconds, "share": share, "share_of_bytes": bytes_["least"] / bytes_["moved"]}


def ages(rows: int, capacity: int) -> dict[str, list[int]]:
    """Positions of all rows: at the end of the capacity, and of mixed ages with a mean of half."""
    mixed = [int(capacity * (row + 0.5) / rows) for row in range(rows)]
    return {"full": [capacity - 1] * rows, "mixed": mixed}


def least_bytes(programs: Programs, positions: Sequence[int]) -> dict[str, float]:
    """Bytes that a step of rows at these positions cannot do without, on one device.

    Weights once, of the embedding only what is looked up unless it is the head as well; filled
    entries once, the new one included; the new one written; logits written once.
    """
    flat = programs.local_params()
    rows = len(positions)
    weights = float(sum(x.size * x.dtype.itemsize for x in flat.values()))
    if "head" in flat:
        table = flat["embedding"]
        weights -= (table.shape[0] - rows) * table.shape[1] * table.dtype.itemsize
    leaves = jax.tree.leaves(programs.cache)
    entry = sum(x.size * x.dtype.itemsize for x in leaves) / (rows * programs.sizes.capacity)
    vocab = flat.get("head", flat["embedding"]).shape[0]
    return {
        "weights": weights,
        "cache": entry * (sum(positions) + rows),
        "new_entries": entry * rows,
        "logits": 4.0 * rows * vocab,
    }


def attention_bytes(platform: str, leaf: Any, dim: int, positions: Sequence[int]) -> float:
    """What the attention kernel of one layer reads and writes of the cache.

    The kernel for TPUs reads whole blocks and writes whole tiles. What cuDNN reads is not visible;
    it is assumed to read what is filled, and another instruction writes.
    """
    width = leaf.shape[-1] * leaf.dtype.itemsize
    if platform != "tpu":
        return 2.0 * width * sum(position + 1 for position in positions)
    block, tile = kernels.block_size(leaf, dim), 32 // leaf.dtype.itemsize
    assert block is not None
    return 2.0 * width * sum((position // block + 1) * block + tile for position in positions)


def planned(
    job: Job, programs: Programs, device: Any, memory: Mapping[str, Any]
) -> dict[str, float]:
    """The memory plan of these sizes, and what the compiled programs need.

    These are the arguments of the chunk, what it has besides, the results of the chunk before, and
    a prefill that runs at the same time.
    """
    plan = memory_plan.plan(
        programs.layout.source,
        programs.params,
        job.num_particles,
        capacity=job.capacity,
        bucket=job.prompt_tokens,
        slots=job.prompts,
        rows=lambda slots: (job.rows, job.rows),
        group=lambda slots: job.group,
        chunk=job.steps,
        limit=2**60,
        device=device,
        layout=programs.layout,
        resizes=False,
    )

    def new(name: str) -> int:
        m = memory[name]
        return m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes

    chunk = memory["decode_chunk"]
    records = chunk.output_size_in_bytes - chunk.alias_size_in_bytes
    needed = chunk.argument_size_in_bytes + new("decode_chunk") + records + new("prefill")
    return {"planned": plan.total, "needed": needed}


def _versions(platform: str) -> dict[str, str]:
    import importlib.metadata

    packages = ["jax", "jaxlib"]
    packages += ["libtpu"] if platform == "tpu" else ["jax-cuda12-pjrt", "nvidia-cudnn-cu12"]
    return {
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    }


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    for name in ("mesh", "programs"):
        asked[name] = asked[name] and tuple(asked[name])
    for record in compile_programs(Job(**asked)):
        print(json.dumps(record), flush=True)
