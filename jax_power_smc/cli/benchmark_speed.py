"""The benchmark that measures speed (``configs/benchmark.py``)."""

import pathlib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from jax_power_smc.benchmarks import (
    against_torch,
    plots,
    records,
    speed,
    tables,
    timing,
    torch_baseline,
)
from jax_power_smc.benchmarks.speed import Bench, Subject
from jax_power_smc.cli import benchmark_io
from jax_power_smc.core import checks, prng
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import DTYPES, TransformerLM
from jax_power_smc.report.tables import print_tables
from jax_power_smc.targets.power import PowerTarget

# section -> its fields besides "models"
SECTIONS: dict[str, tuple[str, ...]] = {
    "steps": ("particles", "prompt_tokens", "max_new_tokens"),
    "parts": ("particles", "logit_scale", "prompt_tokens", "max_new_tokens"),
    "resampling": ("particles", "periods", "prompt_tokens", "max_new_tokens"),
    "forks": ("particles", "scales", "prompt_tokens", "max_new_tokens"),
    "throughput": ("num_particles", "slots", "prompts", "longest_prompt", "max_new_tokens"),
    "torch_batch_1": ("particles", "prompt_tokens", "max_new_tokens"),
    "torch": ("particles", "prompt_tokens", "max_new_tokens"),
}
# Lists in some section; every field is one number elsewhere.
_LISTS = {
    *(("steps", "max_new_tokens"), ("torch", "prompt_tokens")),
    ("torch_batch_1", "prompt_tokens"),
    *((section, "particles") for section in SECTIONS),
    *(("resampling", "periods"), ("forks", "scales")),
}
FIELDS = (
    *("sections", "alpha", "repeats", "bandwidth_bytes", "dtype", "models"),
    *SECTIONS,
)


def run(config: ConfigDict, root: pathlib.Path) -> pathlib.Path:
    """Measures the sections in the config; returns the file with the figures."""
    shapes = _check(config)
    sections = list(config.sections)
    if not torch_baseline.available():
        absent = [section for section in sections if _RUNS[section] is _torch]
        if absent:
            print(f"PyTorch is not installed; left out: {', '.join(absent)}.")
        sections = [section for section in sections if section not in absent]
    path = benchmark_io.new_file(root, "speed.jsonl")
    with open(path, "w", encoding="utf-8") as file:
        write = records.writer(file)
        bench = Bench(config.alpha, config.repeats, write, benchmark_io.Progress())
        bandwidth = timing.copy_bandwidth(config.bandwidth_bytes, 2 * config.repeats + 1)
        write("copy_bandwidth", bandwidth, "bytes/s", array_bytes=config.bandwidth_bytes)
        subjects: dict[str, Subject] = {}
        for section in sections:
            for name in config[section].models:
                if name not in subjects:
                    model = TransformerLM(shapes[name], config.dtype)
                    subjects[name] = Subject(name, model, model.init(prng.seed_key(0)))
                _RUNS[section](bench, subjects[name], config[section], bandwidth)
    print_tables(tables.speed(records.read(path)))
    print(f"The figures: {path}")
    if "steps" in sections:
        plots.step_multiples(path, root / "steps.png")
        print(f"The picture: {root / 'steps.png'}")
    return path


def _steps(bench: Bench, subject: Subject, c: ConfigDict, bandwidth: float) -> None:
    for new_tokens in c.max_new_tokens:
        speed.steps(bench, subject, c.particles, c.prompt_tokens, new_tokens, bandwidth)


def _parts(bench: Bench, subject: Subject, c: ConfigDict, bandwidth: float) -> None:
    for num in c.particles:
        speed.parts(bench, subject, num, c.prompt_tokens, c.max_new_tokens, c.logit_scale)


def _resampling(bench: Bench, subject: Subject, c: ConfigDict, bandwidth: float) -> None:
    speed.resampling(bench, subject, c.particles, c.periods, c.prompt_tokens, c.max_new_tokens)


def _forks(bench: Bench, subject: Subject, c: ConfigDict, bandwidth: float) -> None:
    speed.forks(bench, subject, c.particles, c.scales, c.prompt_tokens, c.max_new_tokens)


def _throughput(bench: Bench, subject: Subject, c: ConfigDict, bandwidth: float) -> None:
    speed.throughput(
        bench,
        subject,
        c.num_particles,
        c.slots,
        c.prompts,
        c.longest_prompt,
        c.max_new_tokens,
    )


def _torch(bench: Bench, subject: Subject, c: ConfigDict, bandwidth: float) -> None:
    against_torch.measure(bench, subject, c.particles, c.prompt_tokens, c.max_new_tokens)


_RUNS: dict[str, Callable[[Bench, Subject, ConfigDict, float], None]] = {
    "steps": _steps,
    "parts": _parts,
    "resampling": _resampling,
    "forks": _forks,
    "throughput": _throughput,
    "torch_batch_1": _torch,
    "torch": _torch,
}


def _check(config: ConfigDict) -> dict[str, TransformerConfig]:
    """The models' shapes.

    Raises:
      ValueError: for an invalid value, before anything is made or written.
    """
    PowerTarget(config.alpha)
    checks.integer("config.repeats", config.repeats, at_least=1)
    checks.integer("config.bandwidth_bytes", config.bandwidth_bytes, at_least=2**12)
    checks.one_of("config.dtype", config.dtype, DTYPES)
    longest = 1
    for section in benchmark_io.listed("config.sections", config.sections):
        checks.one_of("config.sections", section, SECTIONS)
        longest = max(longest, _check_section(config, section))
    made = {}
    for name, shape in config.models.items():
        try:
            made[name] = TransformerConfig(**shape, max_positions=longest)
        except TypeError as error:
            raise ValueError(f"config.models.{name} cannot be read: {error}.") from error
    return made


def _check_section(config: ConfigDict, section: str) -> int:
    """Raises ValueError for an invalid value; returns the number of positions that it needs."""
    fields = config[section]
    missing = [name for name in ("models", *SECTIONS[section]) if name not in fields]
    if missing:
        raise ValueError(f"config.{section} lacks {', '.join(missing)}.")
    for name in benchmark_io.listed(f"config.{section}.models", fields.models):
        checks.one_of(f"config.{section}.models", name, config.models)
    for field in SECTIONS[section]:
        name, value = f"config.{section}.{field}", fields[field]
        values: Any = benchmark_io.listed(name, value) if (section, field) in _LISTS else (value,)
        for each in values:
            if field in ("scales", "logit_scale"):
                checks.number(name, each, above=0)
            else:
                checks.integer(name, each, at_least=2 if field == "max_new_tokens" else 1)

    def most(field: str) -> int:
        value = fields.get(field, 0)
        return max(value) if isinstance(value, tuple | list) else int(value)

    prompt = most("longest_prompt" if section == "throughput" else "prompt_tokens")
    return prompt + most("max_new_tokens")
