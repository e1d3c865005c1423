"""The benchmark that calculates decoding on meshes (``configs/pods.py``).

It compiles for CPU devices in place of accelerators; no speed is measured.
"""

import contextlib
import math
import pathlib

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jax_power_smc.benchmarks import pods, records, tables
from jax_power_smc.cli import benchmark_io
from jax_power_smc.core import checks
from jax_power_smc.core.mesh import make_mesh
from jax_power_smc.engine.layout import layout_of
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import DTYPES, TransformerLM
from jax_power_smc.report.tables import print_tables

FIELDS = (
    *("dtype", "model", "layers", "checked_layers", "num_particles"),
    *("prompt_tokens", "max_new_tokens", "machines"),
)
_OF_MACHINE = ("memory_bytes", "memory_bandwidth", "link_bandwidth", "seconds_per_collective")


def run(config: ConfigDict, root: pathlib.Path) -> pathlib.Path:
    """Calculates every machine, mesh and N in the config; returns the file of figures."""
    shape = _check(config)
    path = benchmark_io.new_file(root, "pods.jsonl")
    unchecked = config.checked_layers is not None
    tasks = [
        (name, mesh, num)
        for name, machine in config.machines.items()
        for mesh in machine.meshes
        for num in config.num_particles
    ]
    with open(path, "w", encoding="utf-8") as file:
        write, progress = records.writer(file), benchmark_io.Progress()
        for done, (name, mesh, num) in enumerate(tasks):
            machine = config.machines[name]
            rows, size = mesh
            # One check is enough, on a mesh with exchanges.
            checked = config.checked_layers if unchecked and size > 1 else None
            unchecked = unchecked and checked is None
            progress(f"{name}, mesh {rows}x{size}, N = {num}", done, len(tasks))
            pods.measure(
                shape,
                config.dtype,
                pods.Machine(name, *(machine[field] for field in _OF_MACHINE)),
                _mesh(machine, rows, size),
                pods.Load(
                    machine.prompts_per_shard, num, config.prompt_tokens, config.max_new_tokens
                ),
                layers=tuple(config.layers),
                checked=checked,
                write=write,
            )
    print_tables([tables.pods(records.read(path))])
    print("Calculated from compiled programs and the makers' figures; nothing was measured.")
    print(f"The figures: {path}")
    return path


def _check(config: ConfigDict) -> TransformerConfig:
    """The model's shape.

    Raises:
      ValueError: for an invalid value, before anything is compiled or written.
    """
    checks.one_of("config.dtype", config.dtype, DTYPES)
    try:
        shape = TransformerConfig(**config.model)
    except TypeError as error:
        raise ValueError(f"config.model cannot be read: {error}.") from error
    for name in ("prompt_tokens", "max_new_tokens"):
        checks.integer(f"config.{name}", config[name], at_least=1)
    for num in benchmark_io.listed("config.num_particles", config.num_particles):
        checks.integer("config.num_particles", num, at_least=1)
    layers = benchmark_io.listed("config.layers", config.layers)
    for num in layers:
        checks.integer("config.layers", num, at_least=1)
    if len(layers) != 2 or layers[0] >= layers[1]:
        raise ValueError(f"config.layers is {layers!r}; it must be two numbers, the smaller first.")
    if config.checked_layers is not None:
        checks.integer("config.checked_layers", config.checked_layers, at_least=1)
    for name, machine in config.machines.items():
        _check_machine(f"config.machines.{name}", machine)
    meshes = [mesh for machine in config.machines.values() for mesh in machine.meshes]
    _make_devices(max((math.prod(mesh) for mesh in meshes), default=1))
    for machine in config.machines.values():
        for rows, size in machine.meshes:
            # Rejects a mesh that does not divide the model.
            layout_of(TransformerLM(shape), _mesh(machine, rows, size))
    return shape


def _mesh(machine: ConfigDict, rows: int, size: int) -> Mesh:
    """The mesh, of the machine's topology or of CPU devices in its place."""
    name = machine.get("topology")
    devices = pods.topology(name) if name else jax.devices("cpu")
    if len(devices) < rows * size:
        raise ValueError(
            f"topology is {name!r}; a mesh of {rows}x{size} devices is too large for it."
        )
    return make_mesh(size, devices[: rows * size])


def _check_machine(name: str, machine: ConfigDict) -> None:
    missing = [
        field for field in ("meshes", "prompts_per_shard", *_OF_MACHINE) if field not in machine
    ]
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}.")
    checks.integer(f"{name}.prompts_per_shard", machine.prompts_per_shard, at_least=1)
    for field in _OF_MACHINE[:-1]:
        checks.number(f"{name}.{field}", machine[field], above=0)
    checks.number(f"{name}.seconds_per_collective", machine.seconds_per_collective, at_least=0)
    for mesh in benchmark_io.listed(f"{name}.meshes", machine.meshes):
        if not isinstance(mesh, tuple | list) or len(mesh) != 2:
            raise ValueError(f"{name}.meshes has {mesh!r}; it must be two numbers of devices.")
        for number in mesh:
            checks.integer(f"{name}.meshes", number, at_least=1)


def _make_devices(count: int) -> None:
    """Raises ValueError if this process cannot have this many CPU devices."""
    # The number is fixed once JAX is initialised.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
    there = len(jax.devices("cpu"))
    if there < count:
        raise ValueError(
            f"config.machines has a mesh of {count} devices; this process has only {there} CPU "
            "devices in their place."
        )
