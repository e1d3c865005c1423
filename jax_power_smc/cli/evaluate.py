"""Evaluates samplers side by side on the same problems.

    python -m launch.evaluate --config=configs/tiny_reasoner.py --workdir=DIR

DIR holds config.json, records.jsonl with all there is to know about every answer, a line each,
and summary.json, which the printed table is made of. The same command goes on with a job that was
stopped or killed; ``launch.report`` makes plots and a page.
"""

import contextlib
import datetime
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import app, flags
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from jax_power_smc.cli import evaluate_start as start
from jax_power_smc.cli.common import launch, stop_on_signals
from jax_power_smc.cli.distributed import define_flags, joined
from jax_power_smc.cli.evaluate_progress import Progress
from jax_power_smc.core.mesh import make_mesh
from jax_power_smc.core.process_group import SINGLE_PROCESS, ProcessGroup, Stop
from jax_power_smc.evaluation import claim, conditions, job, job_config, store
from jax_power_smc.evaluation.conditions import Conditions, Scope
from jax_power_smc.evaluation.scores import ItemScores
from jax_power_smc.evaluation.summary import Run, summarize
from jax_power_smc.grading.factory import open_grader
from jax_power_smc.models.checkpoints.load import LoadedModel, load
from jax_power_smc.models.checkpoints.tiny_random import tiny_model
from jax_power_smc.report import table
from jax_power_smc.tasks.base import Task
from jax_power_smc.tasks.load import load_task


def evaluate(
    config: ConfigDict,
    workdir: str,
    until: Callable[[], bool] = lambda: False,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Runs, or goes on with, the evaluation that ``config`` describes; see evaluation/settings.py.

    Args:
      config: see configs/.
      workdir: a directory, local or remote (gs://).
      until: asked now and then; once it says True, the job stops and can be gone on with.
      processes: those that run this job together; all of them see the same workdir.

    Returns:
      What is in summary.json; nothing if another process writes it.

    Raises:
      ValueError: for a field that is missing or has a value that cannot be, or if the workdir
        holds the records of another config.
      OSError: if the workdir cannot be written.
    """
    start.agree_on_start(processes, config)
    job_config.check(config)
    if config.dry_run:
        job_config.shrink(config)
    labels = job_config.labels(config)
    runs = [
        Run(name, labels[name], sampler) for name, sampler in job_config.samplers(config).items()
    ]
    root = _directory(workdir)
    sizes, held, lm = store.sizes(root), start.read_held(root, config), None
    date = start.fixed_date(held, processes)
    # Whether prompts are for a chat model is for the model to say, and is asked once.
    task = load_task(config, chat=held is not None and held["chat"])
    if held is None:
        lm = _model(config)
        if lm.is_chat:
            task = load_task(config, chat=True)
    scope = Scope(list(labels), config.seeds, [problem.id for problem in task.problems])
    done: list[ItemScores] = []
    if lm is not None:
        said = lm.describe(config.chat)
    else:
        assert held is not None
        said = held["decided"]
        done = start.finished(root, start.expected(held, config, task), scope)
    if processes.is_first:
        print(start.headline(config, task, runs, said, date), flush=True)
        if done:
            print(
                f"{len(done)} of {len(scope)} items were finished by an earlier start.", flush=True
            )
    processes.barrier("all have read what is finished")  # before anyone writes
    # Another job may have ended between two of their looks; all must do the same.
    is_finished = str(len(done) == len(scope))
    if processes.broadcast("whether all is finished", is_finished) == str(False):
        lm = lm or _model(config)
        done = _work(config, lm, task, runs, date, root, held, done, sizes, until, processes)
    elif held is not None:
        start.check_files(root, config, held)
        if processes.is_first:
            start.narrow(root, config, task, runs, held)
    processes.barrier("all are done")
    if not processes.is_first:
        return {}
    if processes.count > 1:
        now = claim.read_config(root)
        assert now is not None
        done = start.finished(root, conditions.conditions_of(now), scope)
    return _conclude(config, task, runs, root, done, len(scope))


def _directory(workdir: str) -> epath.Path:
    """The workdir as a path; ValueError for none, or one that nothing here can write to."""
    if not workdir:
        raise ValueError("workdir is empty; it must be a directory.")
    try:
        root = epath.Path(workdir).expanduser()
        root.exists()
    except (ImportError, KeyError) as error:  # no library for such places, or none is known
        raise ValueError(
            f"workdir is {workdir!r}, and nothing that is installed can write there ({error}); "
            "for gs:// pip install 'jax-power-smc[gcs]'."
        ) from error
    return root


def _work(
    config: ConfigDict,
    lm: LoadedModel,
    task: Task,
    runs: Sequence[Run],
    date: datetime.date,
    root: epath.Path,
    held: dict[str, Any] | None,
    done: Sequence[ItemScores],
    sizes: dict[str, int],
    until: Callable[[], bool],
    processes: ProcessGroup,
) -> list[ItemScores]:
    """Does what is left, or as much of it as ``until`` allows; of several processes a share.

    Args:
      config, lm, task, runs, date, root: the job.
      held: what config.json held when this start began.
      done: what was finished when the files of records had these ``sizes``.
      sizes: see ``store.sizes``.
      until: see ``job.evaluate``.
      processes: of the job.

    Returns:
      Readings of what was finished, and of what this process has done.
    """
    todo = _job(config, lm, task, runs, date, processes)
    made = todo.conditions
    scope = Scope([run.name for run in runs], todo.seeds, list(made.problems))
    start.agree_on_work(processes, made.common, made, scope)
    if held is not None:
        wanted = {"config": config.to_dict(), "conditions": made.common, "commit": lm.commit}
        claim.check_same(root, wanted, held)
        start.check_renderings(root, done, made, held)
    job.check(todo)
    grader = open_grader(
        task.kind,
        processes=config.grading_processes,
        seconds=config.grading_seconds,
        allow_code_execution=config.allow_code_execution,
    )
    with grader, claim.locked(root) if processes.is_first else contextlib.nullcontext():
        if processes.is_first:
            claim.claim(root, start.about(config, lm, task, runs, made, date, processes))
        processes.barrier("the workdir is claimed")
        writer = store.open_writer(root, processes.index, processes.count)
        stop = Stop(processes, until, in_step=todo.decodes_together)
        with writer as file, Progress(processes) as progress:
            if file.torn:
                print(f"A torn last line of {file.torn} bytes was removed.", flush=True)
            processes.barrier("all have opened their files")
            if store.sizes(root) != sizes:  # another job was writing when they were read
                done = start.finished(root, made, scope)
            _check_shared(root, done, processes)
            processes.barrier("all know what is finished")
            done = [*done, *job.evaluate(todo, done, file, grader, progress.report, stop)]
            # Whoever has done its share can still be asked to stop, and passes it on.
            processes.barrier("all have done their share", stop.pass_on)
            return done


def _job(
    config: ConfigDict,
    lm: LoadedModel,
    task: Task,
    runs: Sequence[Run],
    date: datetime.date,
    processes: ProcessGroup,
) -> job.Job:
    prompts = job.render(lm, task, config.chat, date)
    made = Conditions(
        start.common_conditions(config, lm, task),
        conditions.of_config(config.to_dict())["samplers"],
        job.problem_digests(task),
        job.rendering_digests(prompts),
    )
    return job.Job(
        lm,
        task,
        runs,
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
    """Raises ValueError unless this process finds in the workdir what process 0 does."""
    items = sorted(list(reading.item) for reading in done)
    own = conditions.digest([claim.read_config(root), items])
    if processes.broadcast("what is finished", own) != own:
        raise ValueError(
            f"process {processes.index} does not find in {root} what process 0 does; all "
            "processes must see the same directory."
        )


def _model(config: ConfigDict) -> LoadedModel:
    if config.dry_run:
        return tiny_model(config)
    return load(
        config.model,
        dtype=config.dtype or "float32",
        revision=config.revision,
        max_positions=config.max_positions,
        mesh=_mesh(config),
    )


def _mesh(config: ConfigDict) -> Mesh | None:
    """The devices that decode together; None if that is one."""
    of_all = config.mesh.scope == "global"
    devices = jax.devices() if of_all else jax.local_devices()
    if len(devices) == 1 and config.mesh.model == 1:
        return None
    return make_mesh(config.mesh.model, devices)


def _conclude(
    config: ConfigDict,
    task: Task,
    runs: Sequence[Run],
    root: epath.Path,
    done: Sequence[ItemScores],
    total: int,
) -> dict[str, Any]:
    """Writes the summary and prints the table."""
    held = claim.read_config(root)
    assert held is not None
    ids = [problem.id for problem in task.problems]
    summary = summarize(done, runs, ids, list(config.seeds), config.alpha, held["device"])
    store.write_json(root / "summary.json", summary)
    if summary["rows"]:
        table.show(summary)
    if len(done) < total:
        print(f"Stopped with {len(done)} of {total} items finished; the same command resumes it.")
    lines = "records/*.jsonl" if store.is_remote(root) else "records*.jsonl"
    print(f"Every answer: {root / lines}   the table: {root / 'summary.json'}")
    print(f"Plots and a page: python -m launch.report --workdir={root}")
    return summary


def main(argv: Sequence[str]) -> None:
    """Runs the launcher with the flags that ``run`` defined."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    values = flags.FLAGS
    with joined(values) as processes, stop_on_signals() as request:
        summary = evaluate(values.config, values.workdir, lambda: bool(request), processes)
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
    flags.DEFINE_integer(
        "stopped_exit_code",
        0,
        "What a job ends with that was asked to stop and has more to do; of several processes, the "
        "first one. For systems that start again only what has failed.",
        lower_bound=0,
        upper_bound=125,
    )
    flags.mark_flags_as_required(["config", "workdir"])
    define_flags()
    launch(main)
