"""The benchmark of programs compiled for devices that are not there (``configs/compiled.py``)."""

import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from jax_power_smc.benchmarks import compiled, records, tables
from jax_power_smc.benchmarks.lowering import NAMES
from jax_power_smc.core import checks
from jax_power_smc.core.progress import ProgressDisplay
from jax_power_smc.evaluation.config_fields import Check, boolean, each, integer, one_of
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.report.tables import print_tables

_CHECKS: dict[str, Check] = {
    "targets": each(one_of(*compiled.TARGETS)),
    "programs": each(one_of(*NAMES)),
    "layers": integer(0),
    "rows": each(integer(2)),
    **dict.fromkeys(("num_particles", "prompt_tokens", "max_new_tokens", "steps"), integer(1)),
    "keep_texts": boolean(),
}
FIELDS = (*_CHECKS, "python", "models")

# figure -> its unit; those of a step come once for rows of each age
_UNITS = {
    **dict.fromkeys(("compile_seconds", "lower_seconds"), "s"),
    **dict.fromkeys(("arguments", "temporaries", "cache", "read", "written"), "bytes"),
    **dict.fromkeys(("planned", "needed"), "bytes"),
    **dict.fromkeys(("kernels", "attentions", "collectives", "cycles"), "1"),
    **dict.fromkeys(("heads", "sorts", "conditionals_with_cache", "relayouts"), "1"),
    **dict.fromkeys(("least", "moved", "least_of_a_move", "moved_by_a_move"), "bytes"),
    **dict.fromkeys(("seconds",), "s"),
    **dict.fromkeys(("share", "share_of_bytes"), "1"),
}
_AGES = ("full", "mixed")


def run(config: ConfigDict, root: pathlib.Path) -> pathlib.Path:
    """Compiles for every target; returns the file with the figures."""
    jobs = list(_jobs(config, root))
    with (
        records.new_file(root, "compiled.jsonl") as (path, write),
        ProgressDisplay(seconds_between_lines=15.0) as progress,
    ):
        for done, (name, job) in enumerate(jobs):
            progress.update("compiling", done, len(jobs), f"{job.target}, {job.rows} rows")
            python = config.python[compiled.TARGETS[job.target].platform]
            for found in compiled.run(job, python):
                _write(write, name, job, found)
    print_tables(tables.compiled(records.read(path)))
    print(f"The figures: {path}")
    return path


def _jobs(config: ConfigDict, root: pathlib.Path) -> Iterator[tuple[str, compiled.Job]]:
    for name, check in _CHECKS.items():
        check(f"config.{name}", config[name])
    for platform in ("tpu", "cuda"):
        if not isinstance(config.python.get(platform), str):
            raise ValueError(f"config.python.{platform} must be a path, or '' for this Python.")
    for target, (name, fields), rows in itertools.product(
        config.targets, config.models.items(), config.rows
    ):
        given = fields.to_dict()
        given["num_layers"] = config.layers or given["num_layers"]
        shape = TransformerConfig(**given)
        capacity = config.prompt_tokens + config.max_new_tokens
        checks.number("config.max_new_tokens", capacity, at_most=shape.max_positions)
        yield (
            name,
            compiled.Job(
                target,
                given,
                config.num_particles,
                max(1, rows // config.num_particles),
                rows,
                capacity,
                config.prompt_tokens,
                config.steps,
                programs=tuple(config.programs),
                keep=str(root / "texts") if config.keep_texts else "",
            ),
        )


def _write(write: records.Write, name: str, job: compiled.Job, found: dict[str, Any]) -> None:
    """One line per figure."""
    data, size = job.mesh or compiled.TARGETS[job.target].mesh
    about = {
        "target": job.target,
        "mesh": f"{data}x{size}",
        "model": name,
        "num_layers": job.model["num_layers"],
        "rows": job.rows,
        "prompts": job.prompts,
        "num_particles": job.num_particles,
        "prompt_tokens": job.prompt_tokens,
        "capacity": job.capacity,
        "program": found["program"],
        "versions": found["versions"],
    }
    for metric, unit in _UNITS.items():
        if metric in found:
            write(metric, found[metric], unit, **about)
        for age in _AGES:
            if metric in found.get(age, {}):
                write(metric, found[age][metric], unit, **about, age=age)
    if "copies" in found:
        write("copies", len(found["copies"]), "1", **about, arrays=sorted(set(found["copies"])))
        kinds = found["collective_kinds"]
        write("collective_kinds", len(kinds), "1", **about, arrays=kinds)
