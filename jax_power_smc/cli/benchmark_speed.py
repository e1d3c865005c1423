"""The benchmark that measures speed (``configs/benchmark.py``)."""

import pathlib
from collections.abc import Sequence

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
from jax_power_smc.core import checks, prng
from jax_power_smc.core.progress import ProgressDisplay
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import DTYPES, TransformerLM
from jax_power_smc.report.tables import print_tables
from jax_power_smc.targets.power import PowerTarget

# section -> its fields besides "models"; the first ones are lists
SECTIONS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "steps": (("particles", "max_new_tokens"), ("prompt_tokens",)),
    "throughput": ((), ("num_particles", "slots", "prompts", "longest_prompt", "max_new_tokens")),
    "torch_batch_1": (("particles", "prompt_tokens"), ("max_new_tokens",)),
    "torch": (("particles", "prompt_tokens"), ("max_new_tokens",)),
}
FIELDS = ("sections", "alpha", "repeats", "bandwidth_bytes", "dtype", "models", *SECTIONS)


def run(config: ConfigDict, root: pathlib.Path) -> pathlib.Path:
    """Measures the sections in the config; returns the file with the figures."""
    shapes = _check(config)
    sections = list(config.sections)
    if not torch_baseline.available():
        absent = [section for section in sections if section.startswith("torch")]
        if absent:
            print(f"PyTorch is not installed; left out: {', '.join(absent)}.")
        sections = [section for section in sections if section not in absent]
    with (
        records.new_file(root, "speed.jsonl") as (path, write),
        ProgressDisplay(seconds_between_lines=15.0) as progress,
    ):
        bench = Bench(config.alpha, config.repeats, write, progress.update)
        bandwidth = timing.copy_bandwidth(config.bandwidth_bytes, 2 * config.repeats + 1)
        write("copy_bandwidth", bandwidth, "bytes/s", array_bytes=config.bandwidth_bytes)
        subjects: dict[str, Subject] = {}
        for section in sections:
            for name in config[section].models:
                if name not in subjects:
                    model = TransformerLM(shapes[name], config.dtype)
                    subjects[name] = Subject(name, model, model.init(prng.seed_key(0)))
                _measure(section, bench, subjects[name], config[section], bandwidth)
    print_tables(tables.speed(records.read(path)))
    print(f"The figures: {path}")
    if "steps" in sections:
        plots.step_multiples(path, root / "steps.png")
        print(f"The picture: {root / 'steps.png'}")
    return path


def _measure(
    section: str, bench: Bench, subject: Subject, fields: ConfigDict, bandwidth: float
) -> None:
    """Measures one model in one section."""
    given = {name: value for name, value in fields.items() if name != "models"}
    if section == "steps":
        for cap in given.pop("max_new_tokens"):
            speed.steps(bench, subject, **given, max_new_tokens=cap, bandwidth=bandwidth)
    elif section == "throughput":
        speed.throughput(bench, subject, **given)
    else:
        against_torch.measure(bench, subject, **given)


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
    for section in checks.listed("config.sections", config.sections):
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
    lists, numbers = SECTIONS[section]
    missing = [name for name in ("models", *lists, *numbers) if name not in fields]
    if missing:
        raise ValueError(f"config.{section} lacks {', '.join(missing)}.")
    for name in checks.listed(f"config.{section}.models", fields.models):
        checks.one_of(f"config.{section}.models", name, config.models)
    largest = {}
    for field in (*lists, *numbers):
        name, value = f"config.{section}.{field}", fields[field]
        values = checks.listed(name, value) if field in lists else (value,)
        least = 2 if field == "max_new_tokens" else 1
        largest[field] = max([checks.integer(name, each, at_least=least) for each in values] or [0])
    prompt = largest["longest_prompt" if section == "throughput" else "prompt_tokens"]
    return prompt + largest["max_new_tokens"]
