"""Evaluates plain decoding, its remedies and the samplers on the same problems.

    python -m launch.evaluate --config=configs/tiny_reasoner.py --workdir=DIR

Prints one table. DIR holds records.jsonl, a line per answer, and summary.json, the table.
"""

import json
import pathlib
import sys
import time
from collections.abc import Sequence

from absl import app, flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as LiveProgress
from rich.table import Table

from jax_power_smc.evaluation import job
from jax_power_smc.evaluation.intervals import paired_bootstrap, wilson
from jax_power_smc.evaluation.methods import standard_runs
from jax_power_smc.launchers.common import launch
from jax_power_smc.models.load import LoadedModel, load
from jax_power_smc.reasoner import problems
from jax_power_smc.samplers import PowerSMC, WithoutReplacement, checks
from jax_power_smc.target import PowerTarget

FIELDS = (
    "model",
    "split",
    "limit",
    "problem_seed",
    "seeds",
    "alpha",
    "num_particles",
    "ramp_tokens",
    "max_new_tokens",
)
# The smallest value of each field that is an integer.
_SMALLEST = {
    "limit": 1,
    "problem_seed": 0,
    "num_particles": 1,
    "ramp_tokens": 0,
    "max_new_tokens": 1,
}
_SECONDS_BETWEEN_LINES = 10


def evaluate(config: ConfigDict, workdir: str) -> list[job.Scores]:
    """Runs the evaluation that ``config`` describes; see configs/tiny_reasoner.py.

    Raises:
      ValueError: for a field that is missing or has a value that cannot be.
      OSError: if the workdir cannot be written.
    """
    _check(config)
    runs = standard_runs(
        config.alpha, config.num_particles, config.ramp_tokens, config.max_new_tokens
    )
    lm = load(config.model)
    target = PowerTarget(alpha=config.alpha, eos_ids=lm.eos_ids)
    listed = list(problems.problems(config.split, config.limit, config.problem_seed))
    task = job.Task(
        ids=[problem.key for problem in listed],
        prompts=[problem.question for problem in listed],
        answers=[problem.answer for problem in listed],
        parse=problems.parse_answer,
    )
    print(_headline(config, lm), flush=True)
    root = pathlib.Path(workdir).expanduser()
    began = time.monotonic()
    with _Progress() as progress:
        scores = job.evaluate(
            lm,
            task,
            runs,
            target,
            config.max_new_tokens,
            list(config.seeds),
            root,
            progress.report,
        )
    comparisons = compare(scores)
    summary = job.summarize(scores, config.alpha, comparisons)
    (root / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    _print_table(scores, comparisons, time.monotonic() - began, summary["compile_seconds"])
    print(f"Every answer: {root / 'records.jsonl'}   the table: {root / 'summary.json'}")
    return scores


def _check(config: ConfigDict) -> None:
    """Raises ValueError for a field that is missing or cannot be, before the model is read."""
    missing = [name for name in FIELDS if name not in config]
    if missing:
        raise ValueError(f"the config lacks {', '.join(missing)}.")
    if not isinstance(config.model, str):
        raise ValueError(f"config.model is {config.model!r}; it must be a name or a directory.")
    checks.one_of("config.split", config.split, problems.SPLITS)
    for name, smallest in _SMALLEST.items():
        checks.integer(f"config.{name}", config[name], at_least=smallest)
    PowerTarget(alpha=config.alpha)
    if not isinstance(config.seeds, list | tuple):
        raise ValueError(f"config.seeds is {config.seeds!r}; it must be a tuple of integers.")
    job.check_seeds(config.seeds)


def compare(scores: Sequence[job.Scores]) -> list[dict[str, object]]:
    """Paired differences of every sampler with particles over every other method."""

    def has_particles(s: job.Scores) -> bool:
        return isinstance(s.run.sampler, PowerSMC | WithoutReplacement)

    pairs = []
    for ours in scores:
        if not has_particles(ours):
            continue
        for theirs in scores:
            if has_particles(theirs):
                continue
            difference, low, high = paired_bootstrap(ours.correct, theirs.correct)
            pairs.append(
                {
                    "method": ours.row.name,
                    "against": theirs.row.name,
                    "difference": difference,
                    "ci95": [low, high],
                }
            )
    return pairs


def _headline(config: ConfigDict, lm: LoadedModel) -> str:
    return (
        f"{config.model}: {config.limit} problems of the {config.split} split, "
        f"alpha {config.alpha:g}, N = {config.num_particles}, "
        f"at most {config.max_new_tokens} tokens, seeds {', '.join(map(str, config.seeds))}"
    )


class _Progress:
    """A live line on a terminal, a plain line now and then elsewhere."""

    def __init__(self) -> None:
        self._last = 0.0
        self._task: tuple[str, TaskID] | None = None
        self._live: LiveProgress | None = None
        if sys.stdout.isatty():
            self._live = LiveProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(file=sys.stdout),
            )

    def __enter__(self) -> "_Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self._live:
            self._live.stop()

    def report(self, name: str, done: int, total: int, accuracy: float, left: float) -> None:
        """Shows the state of one method; see ``job.Report``."""
        text = f"accuracy so far {accuracy:.3f}, {left:.0f} s left"
        if self._live:
            if self._task is None or self._task[0] != name:
                self._task = (name, self._live.add_task(name, total=total, text=text))
            self._live.update(self._task[1], completed=done, text=text)
            return
        now = time.monotonic()
        if done == total or now - self._last > _SECONDS_BETWEEN_LINES:
            self._last = now
            print(f"{name}: {done}/{total} problems, {text}", flush=True)


def _print_table(
    scores: Sequence[job.Scores],
    comparisons: Sequence[dict[str, object]],
    seconds: float,
    compile_seconds: float,
) -> None:
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 110)
    table = Table()
    table.add_column("method")
    headings = ("N", "accuracy", "95% interval", "mean log p", "tokens", "s/problem", "multiple")
    for heading in headings:
        table.add_column(heading, justify="right")
    base = scores[0].seconds
    for s in scores:
        low, high = wilson(s.accuracy, len(s.correct))
        table.add_row(
            s.row.name,
            str(s.run.sampler.num_particles),
            f"{100 * s.accuracy:.1f}%",
            f"{100 * low:.1f} to {100 * high:.1f}",
            f"{s.log_prob:.2f}",
            f"{s.tokens:.0f}",
            f"{s.seconds:.3f}",
            f"{s.seconds / base:.1f}x",
        )
    console.print(table)
    print("Paired difference in accuracy, points (95% bootstrap interval over problems):")
    for pair in comparisons:
        low, high = pair["ci95"]  # type: ignore[misc]
        print(
            f"  {pair['method']} over {pair['against']}: {100 * pair['difference']:+.1f} "  # type: ignore[operator]
            f"({100 * low:+.1f} to {100 * high:+.1f})"
        )
    print(f"{seconds:.0f} s in all, {compile_seconds:.0f} s of it compilation (not in s/problem).")


def main(argv: Sequence[str]) -> None:
    """Runs the launcher with the flags that ``run`` defined."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    evaluate(flags.FLAGS.config, flags.FLAGS.workdir)


def run() -> None:
    """The command line."""
    config_flags.DEFINE_config_file(
        "config", None, "An evaluation config, such as configs/tiny_reasoner.py."
    )
    flags.DEFINE_string("workdir", None, "Directory for records.jsonl and summary.json.")
    flags.mark_flags_as_required(["config", "workdir"])
    launch(main)
