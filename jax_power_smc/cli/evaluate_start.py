"""What is settled when an evaluation starts, before any work: what it goes by, and who agrees."""

import contextlib
import datetime
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from jax_power_smc.cli.agreement import agree
from jax_power_smc.core.process_group import ProcessGroup
from jax_power_smc.evaluation import claim, conditions, job, store
from jax_power_smc.evaluation.conditions import Conditions, Scope
from jax_power_smc.evaluation.records import Record, item_of
from jax_power_smc.evaluation.scores import ItemScores, read
from jax_power_smc.evaluation.summary import Run
from jax_power_smc.models.checkpoints.fingerprint import file_digests
from jax_power_smc.models.checkpoints.load import local_directory
from jax_power_smc.models.checkpoints.loaded_model import LoadedModel
from jax_power_smc.tasks.base import Task

_PACKAGES = ("jax_power_smc", "jax", "jaxlib", "flax", "numpy", "transformers", "tokenizers")
_GRADING = ("math-verify", "latex2sympy2_extended")
# What config.json holds beside the config.
_HELD = ("chat", "device", "date", "decided", "labels", "num_problems", "commit", "starts")


def agree_on_start(processes: ProcessGroup, config: ConfigDict) -> None:
    """Raises ValueError in all processes if any was started in another way; before all else."""
    if processes.count == 1:
        return
    own = {name: x for name, x in config.to_dict().items() if name != "grading_processes"}
    facts = {"config": own, "version": versions(), "device": device(), "keys": _keys()}
    agree(processes, "what each process was started with", facts)


def agree_on_work(
    processes: ProcessGroup, common: Mapping[str, Any], made: Conditions, scope: Scope
) -> None:
    """The same for what they have loaded: the model, the problems and their prompts."""
    data = {"problems": made.problems, "prompts": made.renderings}
    facts = {name: conditions.digest(x) for name, x in data.items()}
    agree(processes, "what each process has loaded", {**common, "data": facts, "items": len(scope)})


def read_held(root: epath.Path, config: ConfigDict) -> dict[str, Any] | None:
    """What config.json of the workdir holds; None if nobody has claimed it.

    Raises:
      ValueError: if it is damaged, or of another config.
    """
    held = claim.read_config(root)
    if held is None:
        return None
    conditions.check_version(held, os.fspath(root))
    if missing := [name for name in _HELD if name not in held]:
        raise ValueError(
            f"{root / claim.CONFIG} is not what a job wrote: it has no {' and no '.join(missing)}."
        )
    claim.check_same(root, {"config": config.to_dict()}, held)
    return held


def fixed_date(held: Mapping[str, Any] | None, processes: ProcessGroup) -> datetime.date:
    """The date that prompts tell: that of the first start in the workdir."""
    own = today().isoformat() if held is None else str(held["date"])
    return datetime.date.fromisoformat(processes.broadcast("the date", own))


def today() -> datetime.date:
    """By this machine's clock and time zone, as the templates' own function tells it."""
    return datetime.date.today()


def common_conditions(config: ConfigDict, lm: LoadedModel, task: Task) -> dict[str, Any]:
    """What every item of the job follows from, by part."""
    model = {
        "files": lm.file_digests,
        "dtype": config.dtype or "float32",
        "max_positions": config.max_positions,
    }
    target = {name: config[name] for name in conditions.TARGET}
    grading = {name: config[name] for name in ("grading_seconds", "allow_code_execution")}
    return {
        "algorithm": conditions.ALGORITHM,
        "model": model,
        "target": target | {"eos_ids": list(lm.eos_ids)},
        "grading": grading | {"kind": task.kind},
        "keys": _keys(),
    }


def expected(held: Mapping[str, Any], config: ConfigDict, task: Task) -> Conditions:
    """The conditions of the items, as far as they are known without the model."""
    samplers = conditions.of_config(config.to_dict())["samplers"]
    problems = job.problem_digests(task)
    return Conditions(held["conditions"], samplers, problems, held["renderings"])


def finished(root: epath.Path, made: Conditions, scope: Scope) -> list[ItemScores]:
    """The readings of what earlier starts have done; ValueError for records of other conditions."""
    listed = store.read_records(root)
    return [
        _reading(root, record)
        for record in conditions.checked(listed, made, scope, os.fspath(root))
    ]


def _reading(root: epath.Path, record: Record) -> ItemScores:
    try:
        return read(record)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        item = ", ".join(map(str, item_of(record)))
        raise ValueError(
            f"the record of {item} in {root} is damaged ({type(error).__name__}: {error})."
        ) from error


def check_files(root: epath.Path, config: ConfigDict, held: Mapping[str, Any]) -> None:
    """For a job that needs no model any more: ValueError if the model's files have changed.

    Nothing is asked of a hub, and files that are no longer there have not changed.
    """
    directory = None if config.dry_run else local_directory(config.model)
    if directory is not None:
        model = held["conditions"]["model"] | {"files": file_digests(directory)}
        claim.check_same(
            root,
            {
                "config": config.to_dict(),
                "conditions": held["conditions"] | {"model": model},
                "commit": held["commit"],
            },
            held,
        )


def narrow(
    root: epath.Path,
    config: ConfigDict,
    task: Task,
    runs: Sequence[Run],
    held: Mapping[str, Any],
) -> None:
    """For a job that has nothing to do because its scope shrank: config.json gets the scope."""
    scope = {"config": config.to_dict(), **_scope(task, runs)}
    if any(conditions.as_json(value) != held[name] for name, value in scope.items()):
        with claim.locked(root):
            claim.claim(root, {**held, **scope, "problems": job.problem_digests(task)})


def _scope(task: Task, runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "num_problems": len(task.problems),
        "labels": {run.name: run.label for run in runs},
    }


def check_renderings(
    root: epath.Path, done: Iterable[ItemScores], made: Conditions, held: Mapping[str, Any]
) -> None:
    """Raises ValueError if a prompt of a finished item is rendered in another way now."""
    ids = dict.fromkeys(reading.item[2] for reading in done)
    changed = [name for name in ids if made.renderings[name] != held["renderings"].get(name)]
    if changed:
        raise ValueError(
            f"{root} holds records of problem {changed[0]!r}, whose prompt now becomes other tokens"
            f" ({len(changed)} such problem(s)), as another version of the tokenizers library may "
            "do; go on with that version, or choose another workdir."
        )


def about(
    config: ConfigDict,
    lm: LoadedModel,
    task: Task,
    runs: Sequence[Run],
    made: Conditions,
    date: datetime.date,
    processes: ProcessGroup,
) -> dict[str, Any]:
    """What config.json is to hold, see ``claim.claim``."""
    started = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    now = {"started": started, "device": device(), "versions": versions()}
    return {
        "config": config.to_dict(),
        "conditions": made.common,
        **_scope(task, runs),
        "chat": lm.is_chat,
        "decided": lm.describe(config.chat),
        "date": date.isoformat(),
        "commit": lm.commit,
        "fingerprint": lm.fingerprint,
        **now,
        "start": now | {"processes": processes.count},
        "problems": made.problems,
        "renderings": made.renderings,
    }


def headline(
    config: ConfigDict, task: Task, runs: Sequence[Run], said: str, date: datetime.date
) -> str:
    """The first line that a job prints."""
    dry = "DRY RUN with random weights, the figures mean nothing. " if config.dry_run else ""
    return (
        f"{dry}{config.model} on {len(task.problems)} problems of {task.name}, "
        f"{len(runs)} samplers, alpha {config.alpha:g}, at most {config.max_new_tokens} tokens, "
        f"seeds {', '.join(map(str, config.seeds))}; {said}, date {date}"
    )


def versions() -> dict[str, str]:
    """Of the packages that a result may depend on."""
    found = {}
    for name in (*_PACKAGES, *_GRADING):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def device() -> str:
    """The kind of the devices."""
    return jax.devices()[0].device_kind


def _keys() -> dict[str, Any]:
    """What the numbers that a seed stands for depend on."""
    return {
        "implementation": str(jax.random.key_impl(jax.random.key(0))),
        "partitionable": bool(jax.config.values["jax_threefry_partitionable"]),
    }
