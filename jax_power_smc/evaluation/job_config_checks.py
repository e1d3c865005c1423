"""What can be wrong with the fields of an evaluation, seen before a model or a file is read."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from jax_power_smc.core import checks
from jax_power_smc.evaluation import build
from jax_power_smc.models.transformer.families import FAMILIES
from jax_power_smc.models.transformer.transformer import DTYPES
from jax_power_smc.samplers import MetropolisHastings
from jax_power_smc.tasks.load import check_task, kind_of


def check_values(config: ConfigDict) -> None:
    """Raises ValueError for a value that cannot be; see ``job_config.check``."""
    if not isinstance(config.model, str) or not config.model:
        raise ValueError(f"config.model is {config.model!r}; it must be a name or a directory.")
    for name, allowed in (("architecture", FAMILIES), ("dtype", DTYPES)):
        if config[name] is not None:
            checks.one_of(f"config.{name}", config[name], allowed)
    if config.revision is not None and not isinstance(config.revision, str):
        raise ValueError(f"config.revision is {config.revision!r}; it must be a name, or None.")
    for name in ("max_positions", "grading_processes", "slots"):
        if config[name] is not None:
            checks.integer(f"config.{name}", config[name], at_least=1)
    for name in ("allow_code_execution", "dry_run"):
        if not isinstance(config[name], bool):
            raise ValueError(f"config.{name} is {config[name]!r}; it must be True or False.")
    if config.chat is not None and not isinstance(config.chat, bool):
        raise ValueError(f"config.chat is {config.chat!r}; it must be True, False or None.")
    if not isinstance(config.mesh, ConfigDict) or set(config.mesh) != {"scope", "model"}:
        raise ValueError(f"config.mesh is {config.mesh!r}; it must have scope and model.")
    checks.one_of("config.mesh.scope", config.mesh.scope, ("process", "global"))
    checks.integer("config.mesh.model", config.mesh.model, at_least=1)
    checks.number("config.grading_seconds", config.grading_seconds, above=0, at_most=3600)
    if not isinstance(config.fields, ConfigDict):
        raise ValueError(f"config.fields is {config.fields!r}; it must be a ConfigDict.")
    check_task(config)
    if kind_of(config) == "code" and not config.allow_code_execution:
        raise ValueError(
            f"config.allow_code_execution is False; the {config.task} task runs code that a model "
            "wrote, so it must be True."
        )
    checks.integer("config.max_new_tokens", config.max_new_tokens, at_least=1)
    checks.seeds("config.seeds", config.seeds)
    # Before the samplers: their temperatures may be computed from alpha.
    _check_target(config)
    checks.integer("config.num_particles", config.num_particles, at_least=1)
    checks.integer("config.ramp_tokens", config.ramp_tokens, at_least=0)
    checks.number("config.ess_threshold", config.ess_threshold, at_least=0, at_most=1)
    _check_samplers(config)


def _check_target(config: ConfigDict) -> None:
    if config.stop is not None and (not isinstance(config.stop, str) or not config.stop):
        raise ValueError(
            f"config.stop is {config.stop!r}; it must be None, {build.BOXED!r} or a text."
        )
    try:
        # Which tokens end a sequence is not known yet; that there are some is for the model to say.
        build.target(config, (0,)).check(1, config.max_new_tokens)
    except ValueError as error:
        raise ValueError(f"config.{error}") from error


def _check_samplers(config: ConfigDict) -> None:
    if not isinstance(config.samplers, ConfigDict) or not config.samplers:
        raise ValueError(
            f"config.samplers is {str(config.samplers).strip()}; it must be a ConfigDict with at "
            "least one entry."
        )
    for name in config.samplers:
        _check_entry(f"config.samplers.{name}", config.samplers[name])
    taken: dict[str, str] = {}
    for name, label in build.labels(config).items():
        if label in taken:
            raise ValueError(
                f"config.samplers.{taken[label]} and config.samplers.{name} are both called "
                f"{label!r} in the table; give one of them another label."
            )
        taken[label] = name
    for name, sampler in build.samplers(config).items():
        if isinstance(sampler, MetropolisHastings):
            try:
                sampler.check(config.max_new_tokens)
            except ValueError as error:
                raise ValueError(f"config.samplers.{name}: {error}") from error


def _check_entry(place: str, entry: Any) -> None:
    """The names in an entry, and its label; its values are for its class to check."""
    if not isinstance(entry, ConfigDict) or "kind" not in entry:
        raise ValueError(f"{place} must be a ConfigDict with a kind; see settings.entry.")
    checks.one_of(f"{place}.kind", entry.kind, build.KINDS)
    fields = dataclasses.fields(build.KINDS[entry.kind])
    allowed = [*build.OF_ENTRY, *(field.name for field in fields)]
    unknown = [name for name in entry if name not in allowed]
    if unknown:
        raise ValueError(f"{place} has {', '.join(unknown)}; allowed are {', '.join(allowed)}.")
    needed = [field.name for field in fields if field.default is dataclasses.MISSING]
    missing = [name for name in needed if name not in entry]
    if missing:
        raise ValueError(f"{place} lacks {', '.join(missing)}.")
    label = entry.get("label")
    if label is not None and (not isinstance(label, str) or not label):
        raise ValueError(f"{place}.label is {label!r}; it must be None or a text.")
