"""Configs of evaluations: made here, and checked here; every config in configs/ starts from it.

The fields themselves, with defaults and checks, are in ``config_fields``. Values that several
samplers share are references, so a flag may change all of them or one:

    --config.num_particles=8                    every sampler with particles
    --config.samplers.smc.num_particles=32      that one
"""

import collections
import dataclasses
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict, config_dict

from jax_power_smc.evaluation.config_fields import FIELDS, check_fields
from jax_power_smc.samplers import (
    Ancestral,
    MetropolisHastings,
    PowerSMC,
    Sampler,
    WithoutReplacement,
)
from jax_power_smc.targets.power import PowerTarget
from jax_power_smc.targets.stop_rules import StopBoxed, StopRule, StopString
from jax_power_smc.tasks.load import check_task, kind_of

# Kind of a sampler in a config -> its class.
KINDS: dict[str, type[Any]] = {
    "ancestral": Ancestral,
    "mh": MetropolisHastings,
    "smc": PowerSMC,
    "swor": WithoutReplacement,
}
TITLES = {"mh": "Metropolis-Hastings", "smc": "Power-SMC", "swor": "without replacement"}
# The fields of an entry of config.samplers beside those of its class.
OF_ENTRY = ("kind", "label")
BOXED = "boxed"
# The types of samplers' fields that may be None.
_OPTIONAL = {"proposal_temperature": float, "explicit_children": int}
# The largest sizes of a dry run.
_DRY = {"limit": 2, "max_new_tokens": 16, "num_particles": 4, "ramp_tokens": 4}
_DRY_SAMPLER = {
    **dict.fromkeys(("num_particles", "num_samples", "num_chains", "explicit_children"), 4),
    **{"ramp_tokens": 4, "num_blocks": 2, "moves_per_block": 1},
}


def default() -> ConfigDict:
    """A config with the defaults of all fields; it lacks only samplers."""
    return _defaults(FIELDS)


def _defaults(fields: Any) -> ConfigDict:
    config = ConfigDict()
    for name, field in fields.items():
        if isinstance(field, dict):
            config[name] = _defaults(field)
        elif field.kind is not None:
            config[name] = config_dict.FieldReference(field.default, field_type=field.kind)
        else:
            config[name] = field.default
    return config


def entry(kind: str, **values: Any) -> ConfigDict:
    """An entry of ``config.samplers`` with all fields of its kind, a key of ``KINDS``.

    Values are of fields, or of ``label``, its name in the table; other fields get their defaults.
    """
    made = ConfigDict({"kind": kind, "label": config_dict.placeholder(str)})
    for field in dataclasses.fields(KINDS[kind]):
        if field.name in _OPTIONAL:
            made[field.name] = config_dict.placeholder(_OPTIONAL[field.name])
        elif field.default is not dataclasses.MISSING:
            made[field.name] = field.default
    for name, value in values.items():
        made[name] = value
    return made


def shared(config: ConfigDict, *names: str) -> dict[str, Any]:
    """References to fields of the config: changes there take effect here, but not vice versa."""
    return {name: config.get_oneway_ref(name) for name in names}


def paper_samplers(config: ConfigDict) -> None:
    """Sets ``config.samplers`` to those of the paper, and without-replacement SMC at N = 16."""
    ramped = shared(config, "num_particles", "ramp_tokens", "ess_threshold")
    config.samplers = ConfigDict(
        {
            "temperature_1": entry("ancestral", temperature=1.0),
            "low_temperature": entry("ancestral", temperature=1.0 / config.get_ref("alpha")),
            "mh": entry("mh", num_blocks=16, moves_per_block=10),
            "smc": entry("smc", **ramped),
            "swor": entry("swor", num_particles=16),
        }
    )


def paper(model: str, architecture: str, task: str) -> ConfigDict:
    """An evaluation as in the paper: alpha 4, N = 64, kappa 0.5, ramp 100, at most 2048 tokens.

    The model is owner/name on the hub; architecture and task are keys of ``families.FAMILIES`` and
    ``tasks.load.TASKS``.
    """
    config = default()
    config.update(model=model, architecture=architecture, dtype="bfloat16", task=task)
    paper_samplers(config)
    return config


def shrink(config: ConfigDict) -> None:
    """Makes a checked config a dry run: 2 problems, 1 seed, at most 16 tokens, 4 particles."""
    with config.unlocked():
        config.dry_run = True
        config.limit = min(config.limit or _DRY["limit"], _DRY["limit"])
        for name in ("max_new_tokens", "num_particles", "ramp_tokens"):
            config[name] = min(config[name], _DRY[name])
        # Below the cap, so that a sequence may end at some step.
        config.min_new_tokens = min(config.min_new_tokens, config.max_new_tokens - 1)
        config.seeds = tuple(config.seeds[:1])
        for sampler in config.samplers.values():
            for name, most in _DRY_SAMPLER.items():
                if sampler.get(name) is not None:
                    sampler[name] = min(sampler[name], most)
            if "num_blocks" in sampler:
                sampler.num_blocks = min(sampler.num_blocks, config.max_new_tokens)


def samplers(config: ConfigDict) -> dict[str, Sampler]:
    """The samplers of a config, by name, in the order of the table.

    A ConfigDict does not keep the order in which it was filled, so the table has its own: plain
    decoding by falling temperature, then the samplers as in ``KINDS``.

    Raises:
      ValueError: for a value outside its range, naming the entry.
    """
    made: dict[str, Sampler] = {}
    for name, entry in config.samplers.items():
        values = {k: v for k, v in entry.to_dict().items() if k not in OF_ENTRY}
        try:
            made[name] = KINDS[entry.kind](**values)
        except ValueError as error:
            raise ValueError(f"config.samplers.{name}: {error}") from error
    return dict(sorted(made.items(), key=lambda item: _order(*item)))


def _order(name: str, sampler: Sampler) -> tuple[Any, ...]:
    """The sort key of the table."""
    temperature, ramp = getattr(sampler, "temperature", 0.0), getattr(sampler, "ramp_tokens", 0)
    is_set = isinstance(sampler, Ancestral) and sampler.num_particles > 1
    return list(KINDS.values()).index(type(sampler)), is_set, -temperature, ramp, name


def target(config: ConfigDict, eos_ids: tuple[int, ...]) -> PowerTarget:
    """The target of every sampler.

    Raises:
      ValueError: for a value outside its range.
    """
    stop: StopRule | None = None
    if config.stop is not None:
        stop = StopBoxed() if config.stop == BOXED else StopString(config.stop)
    fields = {f.name: config[f.name] for f in dataclasses.fields(PowerTarget) if f.name in config}
    return PowerTarget(**fields | {"eos_ids": eos_ids, "stop": stop})


def labels(config: ConfigDict) -> dict[str, str]:
    """The labels of samplers in the table: as given, or else derived from what they do.

    Derived labels that are equal get the name of the entry appended.
    """
    own = {name: entry.get("label") for name, entry in config.samplers.items()}
    made = {name: own[name] or _derived_label(config, name) for name in own}
    count = collections.Counter(made.values())
    return {
        name: label if own[name] or count[label] == 1 else f"{label} ({name})"
        for name, label in made.items()
    }


def _derived_label(config: ConfigDict, name: str) -> str:
    entry = config.samplers[name]
    if entry.kind == "ancestral":
        return _ancestral_label(entry.get("temperature", 1.0), entry.get("num_samples", 1))
    ramp = entry.get("ramp_tokens", 0)
    return TITLES.get(entry.kind, name) + (f", ramp {ramp}" if ramp else "")


def _ancestral_label(temperature: float, samples: int) -> str:
    if temperature == 0:
        what = "greedy"
    elif temperature < 1 and abs(1 / temperature - round(1 / temperature)) < 1e-9:
        what = f"temperature 1/{round(1 / temperature)}"
    else:
        what = f"temperature {temperature:g}"
    if samples == 1:
        return what
    return f"{samples} samples, {what}" if temperature == 0 else f"{samples} samples at {what}"


def check(config: ConfigDict) -> None:
    """Raises ValueError, one sentence that names the field, for a config that cannot be run.

    Reads neither a model nor a file.
    """
    _check_names("the config", config, allowed=FIELDS, needed=FIELDS)
    check_fields(config)
    check_task(config)
    if kind_of(config) == "code" and not config.allow_code_execution:
        raise ValueError(
            f"config.allow_code_execution is False; the {config.task} task runs code that a model "
            "wrote, so it must be True."
        )
    # Before the samplers: their temperatures may be computed from alpha.
    _check_target(config)
    _check_samplers(config)


def _check_target(config: ConfigDict) -> None:
    try:
        # The tokens that end a sequence are not known yet; any will do here.
        target(config, (0,)).check(1, config.max_new_tokens)
    except ValueError as error:
        raise ValueError(f"config.{error}") from error


def _check_samplers(config: ConfigDict) -> None:
    if not isinstance(config.samplers, ConfigDict) or not config.samplers:
        given = str(config.samplers).strip()
        raise ValueError(
            f"config.samplers is {given}; it must be a ConfigDict with at least one entry."
        )
    for name in config.samplers:
        _check_entry(f"config.samplers.{name}", config.samplers[name])
    taken: dict[str, str] = {}
    for name, label in labels(config).items():
        if label in taken:
            raise ValueError(
                f"config.samplers.{taken[label]} and config.samplers.{name} are both called "
                f"{label!r} in the table; give one of them another label."
            )
        taken[label] = name
    for name, sampler in samplers(config).items():
        try:
            sampler.check(config.max_new_tokens)
        except ValueError as error:
            raise ValueError(f"config.samplers.{name}: {error}") from error


def _check_entry(path: str, entry: Any) -> None:
    """Checks the names in an entry, and its label; its values are checked by its class."""
    if not isinstance(entry, ConfigDict) or "kind" not in entry:
        raise ValueError(f"{path} must be a ConfigDict with a kind; see job_config.entry.")
    if entry.kind not in KINDS:
        raise ValueError(f"{path}.kind is {entry.kind!r}; allowed are {', '.join(KINDS)}.")
    fields = dataclasses.fields(KINDS[entry.kind])
    needed = [field.name for field in fields if field.default is dataclasses.MISSING]
    _check_names(path, entry, [*OF_ENTRY, *(field.name for field in fields)], needed)
    label = entry.get("label")
    if label is not None and (not isinstance(label, str) or not label):
        raise ValueError(f"{path}.label is {label!r}; it must be None or a text.")


def _check_names(
    path: str, given: Iterable[str], allowed: Iterable[str], needed: Iterable[str]
) -> None:
    names = list(given)
    if missing := [name for name in needed if name not in names]:
        raise ValueError(f"{path} lacks {', '.join(missing)}.")
    if unknown := [name for name in names if name not in allowed]:
        raise ValueError(f"{path} has {', '.join(unknown)}; allowed are {', '.join(allowed)}.")
