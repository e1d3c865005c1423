"""The fields of an evaluation's config: each with its default, its check and what it is, once.

A check takes the field's full name and its value, and raises ValueError with one sentence. Some
values can only be checked together with others; for those the table names who does it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax_power_smc.core import checks
from jax_power_smc.core.deadline import MOST_SECONDS
from jax_power_smc.models.checkpoints.chat_template import TEMPLATE_SECONDS
from jax_power_smc.models.checkpoints.hub import HUB_SECONDS
from jax_power_smc.models.checkpoints.tokenizer import TOKENIZER_SECONDS
from jax_power_smc.models.transformer.families import FAMILIES
from jax_power_smc.models.transformer.transformer import DTYPES
from jax_power_smc.tasks.records import LARGEST

Check = Callable[[str, Any], object]


class Field(NamedTuple):
    """One field of a config: its default, check and description.

    For a field that may be None, ``kind`` is the type of its other values, which alone are checked.
    """

    default: Any
    check: Check
    doc: str
    kind: type | None = None


# --- Checks ---------------------------------------------------------------------------------------


def integer(at_least: int, at_most: int | None = checks.LARGEST_INTEGER) -> Check:
    """An integer within bounds, see ``checks.integer``."""
    return lambda name, value: checks.integer(name, value, at_least=at_least, at_most=at_most)


def number(**bounds: float) -> Check:
    """A finite number within bounds, see ``checks.number``."""
    return lambda name, value: checks.number(name, value, **bounds)


def one_of(*allowed: str) -> Check:
    """One of these names."""
    return lambda name, value: checks.one_of(name, value, allowed)


def each(check: Check) -> Check:
    """A tuple or a list, every value of which passes the check."""

    def check_all(name: str, values: Any) -> None:
        for value in checks.listed(name, values):
            check(name, value)

    return check_all


def text(allowed: str) -> Check:
    """A string that is not empty; ``allowed`` says in the error what it must be."""
    return _instance(str, allowed)


def boolean(allowed: str = "True or False") -> Check:
    """A bool."""
    return _instance(bool, allowed)


def _instance(kind: type, allowed: str) -> Check:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, kind) or value == "":
            raise ValueError(f"{name} is {value!r}; it must be {allowed}.")

    return check


def elsewhere(name: str, value: Any) -> None:
    """By ``tasks.load.check_task``, ``PowerTarget``, or ``job_config.check``."""


_SECONDS = number(above=0, at_most=MOST_SECONDS)


# --- The fields -----------------------------------------------------------------------------------

FIELDS: dict[str, Field | dict[str, Field]] = {
    # The model.
    "model": Field(
        "tiny-reasoner", text("a name or a directory"), "embedded, a directory, or owner/name"
    ),
    "architecture": Field(
        None, one_of(*FAMILIES), "family of a dry run's model, if config.json is missing", str
    ),
    "dtype": Field(None, one_of(*DTYPES), "of the parameters; None for float32", str),
    "revision": Field(None, text("a name, or None"), "branch, tag or commit on the hub", str),
    "max_positions": Field(None, integer(1), "longest sequence; None for the model's own", int),
    "chat": Field(
        None,
        boolean("True, False or None"),
        "whether prompts go through the chat template; None: decided by the model",
        bool,
    ),
    # The problems.
    "task": Field("tiny_reasoner", elsewhere, "a key of tasks.load.TASKS"),
    "data": Field(None, elsewhere, "file, or data set on the hub; None for the task's own", str),
    "data_name": Field(None, elsewhere, "which configuration of a data set on the hub", str),
    "split": Field("test", elsewhere, "which part of the data set"),
    "limit": Field(None, elsewhere, "evaluate only the first N problems; None for all", int),
    "problem_seed": Field(0, elsewhere, "of problems that are generated"),
    "few_shot": Field(0, elsewhere, "worked examples before each question"),
    "few_shot_data": Field(None, elsewhere, "file with them, in the data set's layout", str),
    "prompt_format": Field(
        None, elsewhere, "a text with {question} in it; None for the task's own", str
    ),
    # The user's own problems, task = "jsonl": the names of their fields, and how to grade them.
    "fields": {
        "id": Field("id", elsewhere, "None for an id made from the question", str),
        "question": Field("question", elsewhere, "of the question"),
        "answer": Field("answer", elsewhere, "of the reference answer"),
        "solution": Field(
            "solution", elsewhere, "of a worked solution; None if there is none", str
        ),
    },
    "grader": Field(None, elsewhere, "math, choice, code, string or reasoner", str),
    # Grading.
    "allow_code_execution": Field(
        False, boolean(), "whether code written by the model may run on this machine"
    ),
    "code_isolation": Field(
        "bubblewrap",
        one_of("bubblewrap", "none"),
        "what stands between that code and this machine, see ``grading.isolation``",
    ),
    "grading_seconds": Field(10.0, number(above=0, at_most=3600), "limit for one answer"),
    "grading_processes": Field(
        None, integer(1), "None for one less than the cores, at most 8", int
    ),
    # What files and answers of others may take; see SECURITY.md.
    "limits": {
        "data_megabytes": Field(
            LARGEST, integer(1, 10**6), "largest file of problems, in 10^6 bytes, unpacked"
        ),
        "hub_seconds": Field(
            HUB_SECONDS, _SECONDS, "without progress, after which a download is given up"
        ),
        "tokenizer_seconds": Field(
            TOKENIZER_SECONDS, _SECONDS, "for reading a tokenizer, and for each text"
        ),
        "template_seconds": Field(
            TEMPLATE_SECONDS, _SECONDS, "for rendering a prompt by the chat template"
        ),
    },
    # The target p^alpha, see ``PowerTarget``.
    "alpha": Field(4.0, elsewhere, "the exponent"),
    "length": Field("stopped", elsewhere, "what may end a sequence"),
    "min_new_tokens": Field(0, elsewhere, "shortest sequence"),
    "top_k": Field(None, elsewhere, "support of each step", int),
    "top_p": Field(None, elsewhere, "support of each step", float),
    "stop": Field(
        None,
        text("None, 'boxed' or a text"),
        'text that ends an answer, or "boxed" for the end of a \\boxed{...}',
        str,
    ),
    "max_new_tokens": Field(2048, integer(1), "T, the cap"),
    "seeds": Field((0,), checks.seeds, "scores are averaged over them within each problem"),
    # Values that samplers share by reference, and the samplers.
    "num_particles": Field(64, integer(1), "N"),
    "ramp_tokens": Field(100, integer(0), "tokens over which the exponent rises"),
    "ess_threshold": Field(0.5, number(at_least=0, at_most=1), "kappa"),
    "samplers": Field({}, elsewhere, "name -> entry, see ``job_config.entry``"),
    "slots": Field(None, integer(1), "prompts decoded together; None lets the engine choose", int),
    # Several devices.
    "mesh": {
        "scope": Field(
            "process",
            one_of("process", "global"),
            "process: each process decodes its own prompts on its own devices; global: all "
            "processes decode together, for a model too large for one of them",
        ),
        "model": Field(1, integer(1), "number of devices that share one copy of the parameters"),
    },
    "dry_run": Field(False, boolean(), "a tiny random model, two problems, a few tokens"),
}


def check_fields(config: Any, fields: Any = FIELDS, prefix: str = "config.") -> None:
    """Raises ValueError for a field whose value is invalid on its own."""
    for name, field in fields.items():
        value = config[name]
        if isinstance(field, dict):
            if not hasattr(value, "keys"):
                raise ValueError(f"{prefix}{name} is {value!r}; it must be a ConfigDict.")
            if set(value) != set(field):
                given, needed = ", ".join(value), ", ".join(field)
                raise ValueError(f"{prefix}{name} has {given}; it must have {needed}.")
            check_fields(value, field, f"{prefix}{name}.")
        elif field.kind is None or value is not None:
            field.check(f"{prefix}{name}", value)
