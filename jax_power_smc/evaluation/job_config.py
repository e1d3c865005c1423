"""The fields of an evaluation with their defaults; every config in configs/ starts from here.

Values that several samplers share are references, so a flag may change all or one:

    --config.num_particles=8                    every sampler with particles
    --config.samplers.smc.num_particles=32      that one
"""

import dataclasses
from typing import Any

import ml_collections
from ml_collections import config_dict

from jax_power_smc.evaluation import job_config_checks
from jax_power_smc.evaluation.build import KINDS, labels, samplers, target

__all__ = [
    "KINDS",
    "check",
    "default",
    "entry",
    "labels",
    "paper",
    "paper_samplers",
    "samplers",
    "shared",
    "shrink",
    "target",
]

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

    # Several devices. "process": each process decodes prompts of its own, on its own devices;
    # "global": all processes decode together, for a model that one of them cannot hold.
    config.mesh = ml_collections.ConfigDict()
    config.mesh.scope = "process"
    config.mesh.model = 1  # devices that hold one copy of the parameters

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


def shrink(config: ml_collections.ConfigDict) -> None:
    """Makes a config that of a dry run: two problems, one seed, at most 16 tokens, 4 particles.

    Args:
      config: one that has been checked; it is changed.
    """
    with config.unlocked():
        config.dry_run = True
        config.limit = min(config.limit or _DRY["limit"], _DRY["limit"])
        for name in ("max_new_tokens", "num_particles", "ramp_tokens"):
            config[name] = min(config[name], _DRY[name])
        # Below the cap, so that there is a step at which a sequence may end.
        config.min_new_tokens = min(config.min_new_tokens, config.max_new_tokens - 1)
        config.seeds = tuple(config.seeds[:1])
        for sampler in config.samplers.values():
            for name, most in _DRY_SAMPLER.items():
                if sampler.get(name) is not None:
                    sampler[name] = min(sampler[name], most)
            if "num_blocks" in sampler:
                sampler.num_blocks = min(sampler.num_blocks, config.max_new_tokens)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError, one sentence that names the field, for a config that cannot be run.

    Neither a model nor a file is read.
    """
    fields = default()
    missing = [name for name in fields if name not in config]
    if missing:
        raise ValueError(f"the config lacks {', '.join(missing)}.")
    unknown = [name for name in config if name not in fields]
    if unknown:
        raise ValueError(f"the config has {', '.join(unknown)}; allowed are {', '.join(fields)}.")
    job_config_checks.check_values(config)
