"""The fields of an evaluation with their defaults; every config in configs/ starts from here.

Values that several samplers share are references, so a flag may change all or one:

    --config.num_particles=8                    every sampler with particles
    --config.samplers.smc.num_particles=32      that one
"""

import dataclasses
from typing import Any

import ml_collections
from ml_collections import config_dict

from jax_power_smc.samplers import (
    Ancestral,
    MetropolisHastings,
    PowerSMC,
    Sampler,
    WithoutReplacement,
)
from jax_power_smc.stop import StopBoxed, StopRule, StopString
from jax_power_smc.target import PowerTarget

# kind of a sampler in a config -> what is built of its fields
KINDS: dict[str, type[Any]] = {
    "ancestral": Ancestral,
    "mh": MetropolisHastings,
    "smc": PowerSMC,
    "swor": WithoutReplacement,
}
# What an entry of config.samplers has besides the fields of its class.
OF_ENTRY = ("kind", "label")
BOXED = "boxed"
# Types of sampler fields that may be None.
_OPTIONAL = {"proposal_temperature": float, "explicit_children": int}
# A dry run's sizes at most.
_DRY = {"limit": 2, "max_new_tokens": 16, "num_particles": 4, "ramp_tokens": 4}
_DRY_SAMPLER = {
    "num_particles": 4,
    "num_samples": 4,
    "num_chains": 4,
    "ramp_tokens": 4,
    "explicit_children": 4,
    "num_blocks": 2,
    "moves_per_block": 1,
}


def default() -> ml_collections.ConfigDict:
    """Every field of an evaluation; fields that are None here may be set to the type named."""
    none = config_dict.placeholder
    config = ml_collections.ConfigDict()

    # The model.
    config.model = "tiny-reasoner"  # embedded, a directory, or owner/name on the hub
    config.architecture = none(str)  # family of a dry run's model, if config.json is not there
    config.dtype = none(str)  # float32, bfloat16 or float16; None is float32
    config.revision = none(str)  # branch, tag or commit on the hub
    config.max_positions = none(int)  # longest sequence; None for what the model says
    config.chat = none(bool)  # whether prompts go through the chat template; None if it has one

    # The problems.
    config.task = "tiny_reasoner"  # a key of tasks.load.TASKS
    config.data = none(str)  # file, or data set on the hub; None for the benchmark's own
    config.data_name = none(str)  # which configuration of a data set on the hub
    config.split = "test"
    config.limit = none(int)  # the first so many; None for all
    config.problem_seed = 0  # of problems that are made as they are asked for
    config.few_shot = 0  # worked examples before each question
    config.few_shot_data = none(str)  # file with them, in the benchmark's layout
    config.prompt_format = none(str)  # text with {question} in it; None for the benchmark's own

    # The user's own problems, task = "jsonl": the names of their fields, and how to judge them.
    config.fields = ml_collections.ConfigDict()
    config.fields.id = config_dict.FieldReference("id", field_type=str)  # None: by the question
    config.fields.question = "question"
    config.fields.answer = "answer"
    config.fields.solution = config_dict.FieldReference("solution", field_type=str)
    config.grader = none(str)  # math, choice, code, string or reasoner

    # Grading.
    config.allow_code_execution = False  # whether code that a model wrote may run here
    config.grading_seconds = 10.0  # for one answer
    config.grading_processes = none(int)  # None for as many as there are cores to spare

    # The target p^alpha, see ``PowerTarget``.
    config.alpha = 4.0
    config.length = "stopped"
    config.min_new_tokens = 0
    config.top_k = none(int)
    config.top_p = none(float)
    config.stop = none(str)  # "boxed", or a text after which an answer ends
    config.max_new_tokens = 2048

    config.seeds = (0,)  # scores are averaged over them within each problem

    # The samplers, and values that entries of them share by reference.
    config.num_particles = 64
    config.ramp_tokens = 100
    config.ess_threshold = 0.5
    config.samplers = ml_collections.ConfigDict()  # name -> entry, see ``entry``
    config.slots = none(int)  # prompts decoded together; None for the engine's choice

    # A tiny random model of the same family, two problems, a few tokens.
    config.dry_run = False
    return config


def entry(kind: str, **values: Any) -> ml_collections.ConfigDict:
    """An entry of ``config.samplers`` with every field that its kind has.

    Args:
      kind: a key of ``KINDS``.
      **values: of fields, or ``label``, its name in the table; others have their defaults.
    """
    made = ml_collections.ConfigDict()
    made.kind = kind
    made.label = config_dict.placeholder(str)
    for field in dataclasses.fields(KINDS[kind]):
        if field.name in _OPTIONAL:
            made[field.name] = config_dict.placeholder(_OPTIONAL[field.name])
        elif field.default is not dataclasses.MISSING:
            made[field.name] = field.default
    for name, value in values.items():
        made[name] = value
    return made


def shared(config: ml_collections.ConfigDict, *names: str) -> dict[str, Any]:
    """References to fields of the config: what changes there changes here, but not back."""
    return {name: config.get_oneway_ref(name) for name in names}


def paper_samplers(config: ml_collections.ConfigDict) -> None:
    """Sets ``config.samplers`` to the rows of the paper, and without-replacement SMC at N = 16."""
    ramped = shared(config, "num_particles", "ramp_tokens", "ess_threshold")
    config.samplers = ml_collections.ConfigDict(
        {
            "temperature_1": entry("ancestral", temperature=1.0),
            "low_temperature": entry("ancestral", temperature=1.0 / config.get_ref("alpha")),
            "mh": entry("mh", num_blocks=16, moves_per_block=10),
            "smc": entry("smc", **ramped),
            "swor": entry("swor", num_particles=16),
        }
    )


def paper(model: str, architecture: str, task: str) -> ml_collections.ConfigDict:
    """An evaluation as in the paper: alpha 4, N = 64, kappa 0.5, ramp 100, at most 2048 tokens.

    Args:
      model: owner/name on the hub.
      architecture: its family, a key of ``models.families.FAMILIES``.
      task: a key of ``tasks.load.TASKS``.
    """
    config = default()
    config.model = model
    config.architecture = architecture
    config.dtype = "bfloat16"
    config.task = task
    paper_samplers(config)
    return config


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy for a dry run: two problems, one seed, at most 16 tokens and 4 particles.

    Args:
      config: one that has been checked.
    """
    small = config.copy_and_resolve_references()
    with small.unlocked():
        small.dry_run = True
        small.limit = min(small.limit or _DRY["limit"], _DRY["limit"])
        for name in ("max_new_tokens", "num_particles", "ramp_tokens"):
            small[name] = min(small[name], _DRY[name])
        # Below the cap, so that there is a step at which a sequence may end.
        small.min_new_tokens = min(small.min_new_tokens, small.max_new_tokens - 1)
        small.seeds = tuple(small.seeds[:1])
        for sampler in small.samplers.values():
            for name, most in _DRY_SAMPLER.items():
                if sampler.get(name) is not None:
                    sampler[name] = min(sampler[name], most)
            if "num_blocks" in sampler:
                sampler.num_blocks = min(sampler.num_blocks, small.max_new_tokens)
    return small


def samplers(config: ml_collections.ConfigDict) -> dict[str, Sampler]:
    """What the entries of ``config.samplers`` declare, by name, in the order of the table.

    A ConfigDict does not keep the order in which it was filled, so the table has one of its own:
    plain decoding from the highest temperature on, then the samplers as in ``KINDS``.

    Raises:
      ValueError: for a value outside its range, naming the entry.
    """
    made: dict[str, Sampler] = {}
    for name, settings in config.samplers.items():
        values = {k: v for k, v in settings.to_dict().items() if k not in OF_ENTRY}
        try:
            made[name] = KINDS[settings.kind](**values)
        except ValueError as error:
            raise ValueError(f"config.samplers.{name}: {error}") from error
    return dict(sorted(made.items(), key=lambda item: _place(*item)))


def _place(name: str, sampler: Sampler) -> tuple[Any, ...]:
    """What the table is ordered by."""
    kind = list(KINDS.values()).index(type(sampler))
    temperature = getattr(sampler, "temperature", 0.0)
    ramp = getattr(sampler, "ramp_tokens", 0)
    return kind, sampler.num_particles > 1 and kind == 0, -temperature, ramp, name


def target(config: ml_collections.ConfigDict, eos_ids: tuple[int, ...]) -> PowerTarget:
    """The target of every sampler.

    Raises:
      ValueError: for a value outside its range.
    """
    stop: StopRule | None = None
    if config.stop is not None:
        stop = StopBoxed() if config.stop == BOXED else StopString(config.stop)
    return PowerTarget(
        alpha=config.alpha,
        eos_ids=eos_ids,
        length=config.length,
        min_new_tokens=config.min_new_tokens,
        top_k=config.top_k,
        top_p=config.top_p,
        stop=stop,
    )


def label(name: str, settings: ml_collections.ConfigDict) -> str:
    """What the table calls an entry of ``config.samplers``: its label, or what it does.

    Args:
      name: of the entry.
      settings: the entry.
    """
    if settings.get("label") is not None:
        return settings.label
    if settings.kind == "ancestral":
        return _ancestral_label(settings.get("temperature", 1.0), settings.get("num_samples", 1))
    titles = {"mh": "Metropolis-Hastings", "smc": "Power-SMC", "swor": "without replacement"}
    ramp = settings.get("ramp_tokens", 0)
    return titles.get(settings.kind, name) + (f", ramp {ramp}" if ramp else "")


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
