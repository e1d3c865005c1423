"""Evaluates samplers side by side on the same problems.

    python -m launch.evaluate --config=configs/tiny_reasoner.py --workdir=DIR

DIR then holds config.json, records.jsonl with everything about every answer, one line each, and
summary.json, from which the table is printed. The same command resumes a job that was stopped or
killed; ``launch.report`` makes plots and a page.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags, logging
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from jax_power_smc.cli import evaluate_start as start
from jax_power_smc.cli.common import launch, sentence, stop_on_signals
from jax_power_smc.cli.distributed import define_flags, joined
from jax_power_smc.cli.evaluate_start import Plan
from jax_power_smc.cli.progress import EvaluationProgress
from jax_power_smc.core.mesh import make_mesh
from jax_power_smc.core.process_group import SINGLE_PROCESS, ProcessGroup, Stop
from jax_power_smc.core.sanitize import on_one_line
from jax_power_smc.evaluation import claim, conditions, job, job_config, store
from jax_power_smc.evaluation.conditions import Conditions, Scope
from jax_power_smc.evaluation.scores import ItemScores
from jax_power_smc.evaluation.summary import Run, summarize
from jax_power_smc.grading import isolation
from jax_power_smc.grading.factory import open_grader
from jax_power_smc.models.checkpoints.load import load
from jax_power_smc.models.checkpoints.loaded_model import LoadedModel
from jax_power_smc.models.checkpoints.tiny_random import tiny_model
from jax_power_smc.report import summary_tables
from jax_power_smc.tasks.load import load_task


def evaluate(
    config: ConfigDict,
    workdir: str,
    until: Callable[[], bool] = lambda: False,
    processes: ProcessGroup = SINGLE_PROCESS,
    redo_damaged: bool = False,
) -> dict[str, Any]:
    """Runs or resumes the evaluation that ``config`` describes.

    Args:
      config: see ``evaluation.config_fields``.
      workdir: a directory, local or remote (gs://).
      until: called now and then; once it returns True, the job stops and can be resumed later.
      processes: those that share this job; all of them see the same workdir.
      redo_damaged: whether lines of the records that cannot be used are kept aside, and their items
        done again; otherwise they are refused.

    Returns:
      The content of summary.json; nothing if another process writes it.

    Raises:
      ValueError: for a field that is missing or invalid, or if the workdir holds the records of
        another config.
      OSError: if the workdir cannot be written.
    """
    start.agree_on_start(processes, config)
    job_config.check(config)
    if config.dry_run:
        job_config.shrink(config)
    plan, lm = _plan(config, workdir, processes)
    if redo_damaged and processes.is_first and plan.stored is not None:
        start.set_aside(plan)
    processes.barrier("damaged lines are kept aside")
    done = [] if plan.stored is None else start.finished(plan, start.expected(plan))
    missing = plan.scope.missing(each.item for each in done)
    if processes.is_first:
        print(on_one_line(start.headline(plan, lm)), flush=True)
        if done:
            total = len(plan.scope)
            print(f"{len(done)} of {total} items were finished by an earlier start.", flush=True)
    processes.barrier("all have read what is finished")  # before anyone writes
    # Another job may have ended after some of them had looked; all must decide alike.
    if processes.broadcast("whether all is finished", str(not missing)) == str(False):
        plan, done = _work(plan, lm or _load(config), done, until, processes)
    elif plan.stored is not None:
        start.check_files(plan)
        if processes.is_first:
            _if_writable(plan.root, lambda: start.narrow(plan))
    processes.barrier("all are done")
    return _conclude(plan, done, processes, may_fail=not missing) if processes.is_first else {}


def _plan(
    config: ConfigDict, workdir: str, processes: ProcessGroup
) -> tuple[Plan, LoadedModel | None]:
    """What there is to do; and the model, if this had to ask it.

    Whether prompts are for a chat model is for the model to say. The workdir knows the answer of
    the first start, so a job that is resumed reads its model only if there is work left.
    """
    root = _directory(workdir)
    labels = job_config.labels(config)
    runs = [Run(name, labels[name], made) for name, made in job_config.samplers(config).items()]
    sizes, stored, lm = store.sizes(root), start.read_stored(root, config), None
    date = start.fixed_date(stored, processes)
    task = load_task(config, chat=stored is not None and stored["chat"])
    if stored is None:
        lm = _load(config)
        if config.chat is None and lm.is_chat:
            task = load_task(config, chat=True)
    scope = Scope(list(labels), config.seeds, [problem.id for problem in task.problems])
    return Plan(config, root, task, runs, scope, date, stored, sizes), lm


def _directory(workdir: str) -> epath.Path:
    """The workdir as a path; ValueError if it is empty, or nothing installed can write there."""
    if not workdir:
        raise ValueError("workdir is empty; it must be a directory.")
    try:
        root = epath.Path(workdir).expanduser()
        root.exists()
    except (ImportError, KeyError) as error:  # there is no library for such paths
        raise ValueError(
            f"workdir is {workdir!r}, and nothing that is installed can write there ({error}); "
            "for gs:// pip install 'jax-power-smc[gcs]'."
        ) from error
    return root


def _work(
    plan: Plan,
    lm: LoadedModel,
    done: Sequence[ItemScores],
    until: Callable[[], bool],
    processes: ProcessGroup,
) -> tuple[Plan, list[ItemScores]]:
    """Does what is left, or as much of it as ``until`` allows; of several processes, each a share.

    Returns the scores of what was finished, and of what this process has done; and the plan with
    what config.json holds now, and where the workdir is.
    """
    config, root = plan.config, plan.root
    todo = _job(plan, lm, processes)
    start.agree_on_work(processes, todo.conditions, plan.scope)
    start.check_unchanged(plan, lm, todo.conditions, done)
    job.check(todo)
    grader = open_grader(
        plan.task.kind,
        processes=config.grading_processes,
        seconds=config.grading_seconds,
        allow_code_execution=config.allow_code_execution,
        code_isolation=config.code_isolation,
    )
    with grader, claim.locked(root) if processes.is_first else contextlib.nullcontext():
        if processes.is_first:
            about = claim.claim(root, start.about(plan, lm, todo.conditions, processes))
            plan = dataclasses.replace(plan, stored=about)
        processes.barrier("the workdir is claimed")
        opened = store.open_writer(root, processes.index, processes.count)
        with opened as writer, EvaluationProgress(processes) as progress:
            if writer.torn:
                print(f"A torn last line of {writer.torn} bytes was removed.", flush=True)
            processes.barrier("all have opened their files")
            if store.sizes(root) != plan.sizes:  # another job was writing when they were read
                done = start.finished(plan, todo.conditions)
            _check_shared(root, done, processes)
            processes.barrier("all know what is finished")
            stop = Stop(processes, until, in_step=todo.decodes_together)
            new = job.evaluate(todo, done, writer, grader, progress.report, stop)
            # A process that has done its share can still be asked to stop, and passes it on.
            processes.barrier("all have done their share", stop.pass_on)
        plan = dataclasses.replace(plan, root=writer.workdir)
        if writer.rescued and processes.count == 1:  # not all may be there
            return plan, start.finished(plan, todo.conditions)
        return plan, [*done, *new]


def _job(plan: Plan, lm: LoadedModel, processes: ProcessGroup) -> job.Job:
    config, task = plan.config, plan.task
    prompts = job.tokenize(lm, task, config.chat, plan.date)
    made = Conditions(
        start.common_conditions(config, lm, task),
        conditions.of_config(config.to_dict())["samplers"],
        job.problem_digests(task),
        job.rendering_digests(prompts),
    )
    return job.Job(
        lm,
        task,
        plan.runs,
        job_config.target(config, lm.eos_ids),
        config.max_new_tokens,
        tuple(config.seeds),
        prompts,
        made,
        config.slots,
        _mesh(config),
        processes,
    )


def _check_shared(root: epath.Path, done: Sequence[ItemScores], processes: ProcessGroup) -> None:
    """Raises ValueError unless this process finds the same in the workdir as process 0."""
    items = sorted(list(scores.item) for scores in done)
    own = conditions.digest([claim.read_config(root), items])
    if processes.broadcast("what is finished", own) != own:
        raise ValueError(
            f"process {processes.index} does not find in {root} what process 0 does; all "
            "processes must see the same directory."
        )


def _load(config: ConfigDict) -> LoadedModel:
    """The model, which only a job with work left needs; ValueError if it could not be graded."""
    if job_config.kind_of(config) == "code":
        isolation.check(config.code_isolation)
    if config.dry_run:
        return tiny_model(config)
    return load(
        config.model,
        dtype=config.dtype or "float32",
        revision=config.revision,
        max_positions=config.max_positions,
        hub_seconds=config.limits.hub_seconds,
        tokenizer_seconds=config.limits.tokenizer_seconds,
        template_seconds=config.limits.template_seconds,
        mesh=_mesh(config),
    )


def _mesh(config: ConfigDict) -> Mesh | None:
    """The devices that decode together; None if there is only one."""
    of_all = config.mesh.scope == "global"
    devices = jax.devices() if of_all else jax.local_devices()
    if len(devices) == 1 and config.mesh.model == 1:
        return None
    return make_mesh(config.mesh.model, devices)


def _conclude(
    plan: Plan, done: Sequence[ItemScores], processes: ProcessGroup, may_fail: bool
) -> dict[str, Any]:
    """Prints the table, and writes the summary, which ``may_fail`` if there was nothing to do."""
    config, root, scope, stored = plan.config, plan.root, plan.scope, plan.stored
    assert stored is not None
    if not store.is_remote(root) and not (root / claim.CONFIG).exists():
        logging.warning("%s was removed while the job ran; it is written again.", claim.CONFIG)
        store.write_json(root / claim.CONFIG, stored)
    if processes.count > 1:  # the others have written records too
        done = start.finished(plan, conditions.conditions_of(stored))
    seeds, total = list(config.seeds), len(scope)
    summary = summarize(done, plan.runs, scope.problems, seeds, config.alpha, stored["device"])
    if summary["rows"]:
        summary_tables.show(summary)
    if missing := scope.missing(each.item for each in done):
        print(
            f"Stopped with {total - missing} of {total} items finished; the same command resumes "
            "it."
        )
    lines = "records/*.jsonl" if store.is_remote(root) else "records*.jsonl"
    print(f"Every answer: {root / lines}   the table: {root / 'summary.json'}")
    print(f"Plots and a page: python -m launch.report --workdir={root}", flush=True)
    write = functools.partial(store.write_json, root / "summary.json", summary)
    if may_fail:
        _if_writable(root, write)
    else:
        write()
    return summary


def _if_writable(root: epath.Path, write: Callable[[], object]) -> None:
    """Writes to the workdir of a finished job, which may have become read-only."""
    try:
        write()
    except OSError as error:
        print(f"{root} stays as it is ({sentence(error).removesuffix('.')}).", flush=True)


def main(values: Any) -> None:
    """Runs the evaluation that the flags name."""
    with joined(values) as processes, stop_on_signals() as request:
        summary = evaluate(
            values.config, values.workdir, lambda: bool(request), processes, values.redo_damaged
        )
    if not summary.get("complete", True):
        raise SystemExit(values.stopped_exit_code)


def run() -> None:
    """The command line."""
    config_flags.DEFINE_config_file(
        "config", None, "An evaluation config, such as configs/tiny_reasoner.py."
    )
    flags.DEFINE_string(
        "workdir", None, "Directory for records and summary, local or remote (gs://bucket/dir)."
    )
    flags.DEFINE_boolean(
        "redo_damaged",
        False,
        "Keep lines of the records that were damaged or edited, or belong to another job, in a "
        "file of their own, and do their items again.",
    )
    flags.DEFINE_integer(
        "stopped_exit_code",
        0,
        "The exit code of a job that was asked to stop before it was finished; with several "
        "processes, that of process 0. For systems that restart only what has failed.",
        lower_bound=0,
        upper_bound=125,
    )
    define_flags()
    launch(main, required=["config", "workdir"])
