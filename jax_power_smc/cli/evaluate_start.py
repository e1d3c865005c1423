"""The start of an evaluation, before any work: what it does, and whether that is consistent.

All processes must have been started alike, and the workdir must not hold records of another job.
"""

import contextlib
import dataclasses
import datetime
import functools
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

import jax_power_smc
from jax_power_smc.cli.agreement import agree
from jax_power_smc.core import prng
from jax_power_smc.core.process_group import ProcessGroup
from jax_power_smc.evaluation import claim, conditions, job, store
from jax_power_smc.evaluation.conditions import Conditions, Scope
from jax_power_smc.evaluation.records import Record
from jax_power_smc.evaluation.scores import ItemScores, read
from jax_power_smc.evaluation.summary import Run
from jax_power_smc.grading import isolation
from jax_power_smc.models.checkpoints.fingerprint import file_digests
from jax_power_smc.models.checkpoints.load import local_directory
from jax_power_smc.models.checkpoints.loaded_model import LoadedModel
from jax_power_smc.tasks.base import Task

_PACKAGES = ("jax_power_smc", "jax", "jaxlib", "flax", "numpy", "transformers", "tokenizers")
_GRADING = ("math-verify", "latex2sympy2_extended")
_GRADING_FIELDS = ("grading_seconds", "allow_code_execution", "code_isolation")
# What config.json must contain beside the config.
_STORED = ("chat", "device", "date", "decided", "labels", "num_problems", "commit", "starts")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a start has to do, as far as it is known without the model.

    The config is checked, and shrunk if it is a dry run; runs are in the order of the table; the
    date is what prompts take as today's. ``stored`` is the content of config.json when this start
    began, None if the workdir was unclaimed, and ``sizes`` those of the files of records then.
    """

    config: ConfigDict
    root: epath.Path
    task: Task
    runs: Sequence[Run]
    scope: Scope
    date: datetime.date
    stored: Mapping[str, Any] | None
    sizes: Mapping[str, int]


def agree_on_start(processes: ProcessGroup, config: ConfigDict) -> None:
    """Raises ValueError in all processes if any two were started in different ways."""
    if processes.count == 1:
        return
    own = {name: x for name, x in config.to_dict().items() if name != "grading_processes"}
    settings = {
        "local_devices": jax.local_device_count(),
        "enable_x64": jax.config.values["jax_enable_x64"],
        "matmul_precision": jax.config.values["jax_default_matmul_precision"],
    }
    facts = {"config": own, "version": versions(), "device": device(), "keys": _keys()}
    agree(processes, "what each process was started with", facts | {"jax": settings})


def agree_on_work(processes: ProcessGroup, made: Conditions, scope: Scope) -> None:
    """The same for what they have loaded: the model, the problems and their prompts."""
    data = {"problems": made.problems, "prompts": made.renderings}
    digests = {name: conditions.digest(value) for name, value in data.items()}
    facts = {**made.common, "data": digests, "items": len(scope)}
    agree(processes, "what each process has loaded", facts)


def read_stored(root: epath.Path, config: ConfigDict) -> dict[str, Any] | None:
    """The content of the workdir's config.json; None if it has not been claimed.

    Raises:
      ValueError: if it is damaged, or belongs to another config.
    """
    stored = claim.read_config(root)
    if stored is None:
        return None
    conditions.check_version(stored, os.fspath(root))
    if missing := [name for name in _STORED if name not in stored]:
        raise ValueError(
            f"{root / claim.CONFIG} is not what a job wrote: it has no {' and no '.join(missing)}."
        )
    claim.check_same(root, {"config": config.to_dict()}, stored)
    return stored


def fixed_date(stored: Mapping[str, Any] | None, processes: ProcessGroup) -> datetime.date:
    """The date that prompts state: that of the first start in the workdir."""
    own = today().isoformat() if stored is None else str(stored["date"])
    return datetime.date.fromisoformat(processes.broadcast("the date", own))


def today() -> datetime.date:
    """Today's date by this machine's clock and time zone, as chat templates have it."""
    return datetime.date.today()


def common_conditions(config: ConfigDict, lm: LoadedModel, task: Task) -> dict[str, Any]:
    """What all items of the job depend on, by part."""
    model = {
        "files": lm.file_digests,
        "dtype": config.dtype or "float32",
        "max_positions": config.max_positions,
    }
    target = {name: config[name] for name in conditions.TARGET}
    grading = {name: config[name] for name in _GRADING_FIELDS}
    return {
        "algorithm": conditions.ALGORITHM,
        "model": model,
        "target": target | {"eos_ids": list(lm.eos_ids)},
        "grading": grading | {"kind": task.kind},
        "keys": _keys(),
    }


def expected(plan: Plan) -> Conditions:
    """The conditions of the items, as far as they are known without the model."""
    assert plan.stored is not None
    samplers = conditions.of_config(plan.config.to_dict())["samplers"]
    problems = job.problem_digests(plan.task)
    return Conditions(plan.stored["conditions"], samplers, problems, plan.stored["renderings"])


def finished(plan: Plan, made: Conditions) -> list[ItemScores]:
    """The scores of the records in the workdir; ValueError for records of other conditions."""
    workdir = os.fspath(plan.root)
    listed = conditions.checked(store.read_records(plan.root), made, plan.scope, workdir)
    return [read(record) for record in listed]


def set_aside(plan: Plan) -> None:
    """Moves lines that are not records of this job out of the way, so that they are done again."""
    made = expected(plan)

    def belongs(record: Record) -> bool:
        return isinstance(record.get("digest"), dict) and not made.differing(record)

    with claim.locked(plan.root):
        count, where = store.set_aside(plan.root, belongs)
    if count:
        print(f"{count} lines that are not records of this job were moved to {where}.", flush=True)


def check_files(plan: Plan) -> None:
    """For a job with no work left, which reads no model: ValueError if the model's files changed.

    Asks nothing of a hub; files that are no longer there have not changed.
    """
    config, stored = plan.config, plan.stored
    assert stored is not None
    directory = None if config.dry_run else local_directory(config.model)
    if directory is not None:
        model = stored["conditions"]["model"] | {"files": file_digests(directory)}
        _check_same(plan, stored["conditions"] | {"model": model}, stored["commit"])


def check_unchanged(
    plan: Plan, lm: LoadedModel, made: Conditions, done: Sequence[ItemScores]
) -> None:
    """Raises ValueError if model, config or prompts of finished items differ from the workdir's."""
    if plan.stored is None:
        return
    _check_same(plan, made.common, lm.commit)
    before = plan.stored["renderings"]
    ids = dict.fromkeys(scores.item[2] for scores in done)
    changed = [name for name in ids if made.renderings[name] != before.get(name)]
    if changed:
        raise ValueError(
            f"{plan.root} holds records of problem {changed[0]!r}, whose prompt now becomes other "
            f"tokens ({len(changed)} such problem(s)), perhaps because of another version of the "
            "tokenizers library; use the earlier version, or choose another workdir."
        )


def _check_same(plan: Plan, common: Mapping[str, Any], commit: str | None) -> None:
    assert plan.stored is not None
    wanted = {"config": plan.config.to_dict(), "conditions": common, "commit": commit}
    claim.check_same(plan.root, wanted, plan.stored)


def narrow(plan: Plan) -> None:
    """For a job with no work left because its scope shrank: writes the scope to config.json."""
    assert plan.stored is not None
    changes = {"config": plan.config.to_dict(), **_scope(plan)}
    if any(conditions.as_json(value) != plan.stored[name] for name, value in changes.items()):
        problems = job.problem_digests(plan.task)
        with claim.locked(plan.root):
            claim.claim(plan.root, {**plan.stored, **changes, "problems": problems})


def about(plan: Plan, lm: LoadedModel, made: Conditions, processes: ProcessGroup) -> dict[str, Any]:
    """The content of config.json, see ``claim.claim``."""
    started = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    now = {"started": started, "device": device(), "versions": versions()}
    return {
        "config": plan.config.to_dict(),
        "conditions": made.common,
        **_scope(plan),
        "chat": lm.is_chat if plan.config.chat is None else plan.config.chat,
        "decided": lm.describe(plan.config.chat),
        "date": plan.date.isoformat(),
        "commit": lm.commit,
        "fingerprint": lm.fingerprint,
        **now,
        "start": now | {"processes": processes.count},
        "problems": made.problems,
        "renderings": made.renderings,
    }


def _scope(plan: Plan) -> dict[str, Any]:
    return {
        "num_problems": len(plan.task.problems),
        "labels": {run.name: run.label for run in plan.runs},
    }


def headline(plan: Plan, lm: LoadedModel | None) -> str:
    """The first line that a job prints; without the model, config.json describes it."""
    config, task = plan.config, plan.task
    if lm is not None:
        described = lm.describe(config.chat)
    else:
        assert plan.stored is not None
        described = plan.stored["decided"]
    if task.kind == "code" and config.code_isolation == isolation.NONE:
        described += "; CODE THAT THE MODEL WRITES RUNS WITHOUT ISOLATION"
    dry = "DRY RUN with random weights, the figures mean nothing. " if config.dry_run else ""
    return (
        f"{dry}{config.model} on {len(task.problems)} problems of {task.name}, "
        f"{len(plan.runs)} samplers, alpha {config.alpha:g}, at most {config.max_new_tokens} "
        f"tokens, seeds {', '.join(map(str, config.seeds))}; {described}, date {plan.date}"
    )


def versions() -> dict[str, str]:
    """Package -> version, of those that a result may depend on."""
    found = {}
    for name in (*_PACKAGES, *_GRADING):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found | {"code": _code_digest()}


@functools.cache
def _code_digest() -> str:
    """Of the package's source, which may differ where the version does not."""
    root = pathlib.Path(jax_power_smc.__file__).parent
    files = sorted(root.rglob("*.py"))
    return conditions.digest(
        [[path.relative_to(root).as_posix(), path.read_text()] for path in files]
    )


def device() -> str:
    """The kind of device that JAX uses."""
    return jax.devices()[0].device_kind


def _keys() -> dict[str, Any]:
    """What the random numbers of a seed depend on."""
    return {
        "implementation": prng.KEY_IMPL,
        "partitionable": bool(jax.config.values["jax_threefry_partitionable"]),
    }
