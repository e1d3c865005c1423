"""The part of the benchmark launcher that calculates decoding on meshes (``configs/pods.py``).

It compiles for CPU devices that stand for accelerators, and says so: no speed is measured.
"""

import contextlib
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.table import Table

from jax_power_smc.benchmarks import pods, records
from jax_power_smc.cli import benchmark_io
from jax_power_smc.core import checks
from jax_power_smc.core.mesh import make_mesh
from jax_power_smc.engine.layout import layout_of
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import DTYPES, TransformerLM

FIELDS = (
    *("dtype", "model", "layers", "checked_layers", "num_particles"),
    *("prompt_tokens", "max_new_tokens", "machines"),
)
_OF_MACHINE = ("memory_bytes", "memory_bandwidth", "link_bandwidth", "seconds_per_collective")
# metric -> heading, and what its values are divided by
_COLUMNS = {
    "collectives_per_step": ("sums\netc.", 1),
    "sent_per_step": ("sent\nMB", 1e6),
    "weights": ("weights\nGB", 1e9),
    "keys_and_values": ("K, V\nGB", 1e9),
    "share_of_memory": ("of the\nmemory", 1),
    "memory_time": ("memory\nms", 1e-3),
    "link_time": ("links\nms", 1e-3),
    "collective_share": ("links\nshare", 1),
    "collective_share_with_overhead": ("more\nslowly", 1),
}


def run(config: ConfigDict, root: pathlib.Path) -> pathlib.Path:
    """Calculates every machine, mesh and N that the config names; returns the file of figures."""
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
        write, report = records.writer(file), benchmark_io.Report()
        for done, (name, mesh, num) in enumerate(tasks):
            machine = config.machines[name]
            rows, size = mesh
            # Once is enough, where something is exchanged.
            checked = config.checked_layers if unchecked and size > 1 else None
            unchecked = unchecked and checked is None
            report(f"{name}, mesh {rows}x{size}, N = {num}", done, len(tasks))
            pods.measure(
                shape,
                config.dtype,
                pods.Machine(name, *(machine[field] for field in _OF_MACHINE)),
                _mesh(machine, rows, size),
                pods.Load(
                    machine.prompts_per_row, num, config.prompt_tokens, config.max_new_tokens
                ),
                layers=tuple(config.layers),
                checked=checked,
                write=write,
            )
    benchmark_io.show([_table(benchmark_io.read(path))])
    print("Calculated from compiled programs and the makers' figures; nothing was measured.")
    print(f"The figures: {path}")
    return path


def _table(lines: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="A step of decoding, per device", title_justify="left")
    names = ("machine", "mesh", "num_particles")
    for heading in ("", "mesh", "N", *(heading for heading, _ in _COLUMNS.values())):
        table.add_column(heading, justify="right")
    for case in dict.fromkeys(tuple(line[name] for name in names) for line in lines):
        of_case = {
            line["metric"]: line["value"]
            for line in lines
            if tuple(line[name] for name in names) == case
        }
        cells = [f"{of_case[metric] / unit:.3g}" for metric, (_, unit) in _COLUMNS.items()]
        table.add_row(*map(str, case), *cells)
    return table


def _check(config: ConfigDict) -> TransformerConfig:
    """The model's shape.

    Raises:
      ValueError: for a value that cannot be, before anything is compiled or written.
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
            # Refuses what does not divide the model.
            layout_of(TransformerLM(shape), _mesh(machine, rows, size))
    return shape


def _mesh(machine: ConfigDict, rows: int, size: int) -> Mesh:
    """Of the machine's topology, or of CPU devices in its place."""
    name = machine.get("topology")
    devices = pods.topology(name) if name else jax.devices("cpu")
    if len(devices) < rows * size:
        raise ValueError(
            f"topology is {name!r}; a mesh of {rows}x{size} devices is too large for it."
        )
    return make_mesh(size, devices[: rows * size])


def _check_machine(name: str, machine: ConfigDict) -> None:
    missing = [
        field for field in ("meshes", "prompts_per_row", *_OF_MACHINE) if field not in machine
    ]
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}.")
    checks.integer(f"{name}.prompts_per_row", machine.prompts_per_row, at_least=1)
    for field in _OF_MACHINE[:-1]:
        checks.number(f"{name}.{field}", machine[field], above=0)
    checks.number(f"{name}.seconds_per_collective", machine.seconds_per_collective, at_least=0)
    for mesh in benchmark_io.listed(f"{name}.meshes", machine.meshes):
        if not isinstance(mesh, tuple | list) or len(mesh) != 2:
            raise ValueError(f"{name}.meshes has {mesh!r}; it must be two numbers of devices.")
        for number in mesh:
            checks.integer(f"{name}.meshes", number, at_least=1)


def _make_devices(count: int) -> None:
    """Raises ValueError if this process cannot have so many CPU devices."""
    # Not once JAX has begun; it then has as many as it has.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
    there = len(jax.devices("cpu"))
    if there < count:
        raise ValueError(
            f"config.machines has a mesh of {count} devices; this process has only {there} CPU "
            "devices in their place."
        )
