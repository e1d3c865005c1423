"""Evaluates samplers side by side on the same problems.

    python -m launch.evaluate --config=configs/tiny_reasoner.py --workdir=DIR

DIR holds config.json, records.jsonl with all there is to know about every answer, a line each,
and summary.json, which the printed table is made of. The same command goes on with a job that was
stopped or killed; ``launch.report`` makes plots and a page.
"""

import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import jax
from absl import app, flags
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from jax_power_smc.evaluation import job, settings, store
from jax_power_smc.evaluation.readings import Reading, read
from jax_power_smc.evaluation.records import Record, item_of
from jax_power_smc.evaluation.summary import Run, summarize
from jax_power_smc.grading.open import open_grader
from jax_power_smc.launchers.common import launch, stop_on_signals
from jax_power_smc.launchers.evaluate_progress import Progress
from jax_power_smc.launchers.processes import define_flags, joined
from jax_power_smc.mesh import make_mesh
from jax_power_smc.models.dry_run import tiny_model
from jax_power_smc.models.load import LoadedModel, load
from jax_power_smc.processes import ALONE, Processes, Stop
from jax_power_smc.report import table
from jax_power_smc.tasks.base import Task
from jax_power_smc.tasks.load import load_task

# Fields that decide about no result.
_FREE = ("grading_processes", "mesh")


def evaluate(
    config: ConfigDict,
    workdir: str,
    until: Callable[[], bool] = lambda: False,
    processes: Processes = ALONE,
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
    settings.check(config)
    if config.dry_run:
        settings.shrink(config)
    labels = settings.labels(config)
    runs = [Run(name, labels[name], sampler) for name, sampler in settings.samplers(config).items()]
    root = _directory(workdir)
    sizes, held, lm = store.sizes(root), store.read_config(root), None
    if held is not None and not {"chat", "device"} <= held.keys():
        raise ValueError(f"{root / store.CONFIG} is not what a job wrote: no chat, or no device.")
    # Whether prompts are for a chat model is for the model to say, and is asked once.
    task = load_task(config, chat=held is not None and held["chat"])
    if held is None:
        lm = _model(config)
        if lm.is_chat:
            task = load_task(config, chat=True)
    done = [] if held is None else _finished(root, config, task, held)
    total = len(runs) * len(task.problems) * len(config.seeds)
    if processes.is_first:
        decided = lm.describe(config.chat) if lm else (held or {}).get("decided", "")
        _print_headline(config, task, runs, len(done), total, decided)
    processes.wait("all have read what is finished")  # before anyone writes
    # Another job may have ended between two of their looks; all must do the same.
    if processes.told("whether all is finished", str(len(done) == total)) == str(False):
        lm = lm or _model(config)
        done = _work(config, lm, task, runs, root, done, sizes, until, processes)
    processes.wait("all are done")
    if not processes.is_first:
        return {}
    if processes.count > 1:
        done = [read(record) for record in store.read_records(root)]
    return _conclude(config, task, runs, root, done, total)


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


def _finished(
    root: epath.Path, config: ConfigDict, task: Task, held: dict[str, Any]
) -> list[Reading]:
    """The readings of what an earlier start has done."""
    store.claim(root, _decides(config, task), {})
    return [_reading(root, record, held["hash"]) for record in store.read_records(root)]


def _reading(root: epath.Path, record: Record, digest: str) -> Reading:
    """What an earlier start has recorded; ValueError unless it is of this config and whole."""
    if record.get("config") != digest:
        raise ValueError(
            f"{root} holds a record of config {record.get('config')}, and is that of {digest}; "
            "choose another workdir."
        )
    try:
        return read(record)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        item = ", ".join(map(str, item_of(record)))
        raise ValueError(
            f"the record of {item} in {root} is damaged ({type(error).__name__}: {error})."
        ) from error


def _decides(config: ConfigDict, task: Task) -> dict[str, Any]:
    """All that decides about the results."""
    fields = {name: value for name, value in config.to_dict().items() if name not in _FREE}
    return fields | {"problems": store.fingerprint({"task": job.task_digest(task)})}


def _work(
    config: ConfigDict,
    lm: LoadedModel,
    task: Task,
    runs: Sequence[Run],
    root: epath.Path,
    done: Sequence[Reading],
    sizes: dict[str, int],
    until: Callable[[], bool],
    processes: Processes,
) -> list[Reading]:
    """Does what is left, or as much of it as ``until`` allows; of several processes a share.

    Args:
      config, lm, task, runs, root: the job.
      done: what was finished when the files of records had these ``sizes``.
      sizes: see ``store.sizes``.
      until: see ``job.evaluate``.
      processes: of the job.

    Returns:
      Readings of what was finished, and of what this process has done.
    """
    mesh = _mesh(config)
    todo = job.Job(
        lm,
        task,
        runs,
        settings.target(config, lm.eos_ids),
        config.max_new_tokens,
        tuple(config.seeds),
        store.fingerprint(_decides(config, task)),
        config.chat,
        config.slots,
        mesh,
        processes,
    )
    job.check(todo)
    grader = open_grader(
        task.kind,
        processes=config.grading_processes,
        seconds=config.grading_seconds,
        allow_code_execution=config.allow_code_execution,
    )
    with grader:
        if processes.is_first:
            store.claim(root, _decides(config, task), _about(config, lm, task, runs))
        processes.wait("the workdir is claimed")
        writer = store.open_writer(root, processes.index, processes.count)
        stop = Stop(processes, until, in_step=todo.decodes_together)
        with writer as file, Progress(processes) as progress:
            if file.torn:
                print(f"A torn last line of {file.torn} bytes was removed.", flush=True)
            processes.wait("all have opened their files")
            if store.sizes(root) != sizes:  # another job was writing when they were read
                held = store.read_config(root)
                assert held is not None
                done = _finished(root, config, task, held)
            _check_shared(root, done, processes)
            processes.wait("all know what is finished")
            done = [*done, *job.evaluate(todo, done, file, grader, progress.report, stop)]
            # Whoever has done its share can still be asked to stop, and passes it on.
            processes.wait("all have done their share", stop.pass_on)
            return done


def _check_shared(root: epath.Path, done: Sequence[Reading], processes: Processes) -> None:
    """Raises ValueError unless this process finds in the workdir what process 0 does."""
    items = sorted(list(reading.item) for reading in done)
    own = store.fingerprint({"claimed": store.read_config(root) is not None, "items": items})
    if processes.told("what is finished", own) != own:
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


def _about(config: ConfigDict, lm: LoadedModel, task: Task, runs: Sequence[Run]) -> dict[str, Any]:
    """What is written down beside the config when a job first starts."""
    return {
        "chat": lm.is_chat,
        "decided": lm.describe(config.chat),
        "num_problems": len(task.problems),
        "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "labels": {run.name: run.label for run in runs},
        "device": jax.devices()[0].device_kind,
        "versions": {name: metadata.version(name) for name in ("jax_power_smc", "jax", "flax")},
    }


def _print_headline(
    config: ConfigDict, task: Task, runs: Sequence[Run], done: int, total: int, decided: str
) -> None:
    dry = "DRY RUN with random weights, the figures mean nothing. " if config.dry_run else ""
    print(
        f"{dry}{config.model} on {len(task.problems)} problems of {task.name}, "
        f"{len(runs)} samplers, alpha {config.alpha:g}, at most {config.max_new_tokens} tokens, "
        f"seeds {', '.join(map(str, config.seeds))}; {decided}",
        flush=True,
    )
    if done:
        print(f"{done} of {total} items were finished by an earlier start.", flush=True)


def _conclude(
    config: ConfigDict,
    task: Task,
    runs: Sequence[Run],
    root: epath.Path,
    done: Sequence[Reading],
    total: int,
) -> dict[str, Any]:
    """Writes the summary and prints the table."""
    held = store.read_config(root)
    assert held is not None
    ids = [problem.id for problem in task.problems]
    summary = summarize(done, runs, ids, list(config.seeds), config.alpha, held["device"])
    store.write_json(root / "summary.json", summary)
    if summary["rows"]:
        table.show(summary)
    if len(done) < total:
        print(f"Stopped with {len(done)} of {total} items finished; the same command goes on.")
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
