"""Makes the report of an evaluation: one HTML page, and its plots as files.

    python -m launch.report --workdir=DIR

DIR is the workdir of launch.evaluate, whether its job is finished or not. The page is one file and
needs no network.
"""

import contextlib
import dataclasses
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from etils import epath

from jax_power_smc.cli.common import launch
from jax_power_smc.evaluation import store
from jax_power_smc.report import job_status, outputs, page, plots, summary_tables
from jax_power_smc.report.load import ReportData, read_problems, read_report

PAGE = "index.html"
# Problems that a sentence about an unknown one names.
_NAMED = 3


def report(workdir: str, problems: Sequence[str] = (), output: str | None = None) -> epath.Path:
    """Writes the report of a workdir, local or remote (gs://), and prints the table.

    Shows the problems with these ids in full; if there are none, those that samplers disagree about
    most. ``output`` is a directory; None for "report" in the workdir. Returns where the page is.

    Raises:
      ValueError: if there is no finished item, a file is damaged, or no problem has such an id.
      OSError: if something cannot be read or written.
    """
    root = epath.Path(workdir).expanduser()
    target = root / "report" if output is None else epath.Path(output).expanduser()
    if target.exists() and not target.is_dir():
        raise ValueError(f"output is {os.fspath(target)}, a file; it must be a directory.")
    with _as_written(root, "config.json"):
        data = read_report(root)
    _check_problems(data, problems)
    with _as_written(root, "config.json or summary.json"):
        status = job_status.status_of(data)
        if status.summary is not None:
            summary_tables.show(status.summary)
        # Of an unfinished job, the plots are to show what the table shows.
        data = dataclasses.replace(data, summary=status.summary)

        chosen = list(dict.fromkeys(problems)) or outputs.most_contested(data)
        files: dict[str, bytes] = {}
        pictures = _draw(plots.figures(data), files)
        sections = []
        for records in read_problems(data, chosen).values():
            problem = outputs.problem_in_full(records, data.labels)
            drawn = _draw(plots.genealogy(problem.records, data.labels), files)
            sections.append(page.ProblemSection(problem, drawn))
        content = page.render(data, status, pictures, sections).encode()

    target.mkdir(parents=True, exist_ok=True)
    for name, png in files.items():
        store.write_bytes_whole(target / name, png)
    # Last, so that a page that is new has its plots beside it.
    store.write_bytes_whole(target / PAGE, content)
    print(f"{data.about['hash']}: {status.text}; {len(files)} plots beside the page")
    print(f"The page ({_size(content)}): {target / PAGE}")
    return target / PAGE


@contextlib.contextmanager
def _as_written(root: epath.Path, what: str) -> Iterator[None]:
    """Inside, a value of another type than this version writes is bad input."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, RecursionError, ArithmeticError) as error:
        raise ValueError(
            f"{what} in {os.fspath(root)} is not as this version of the package writes it "
            f"({type(error).__name__}: {error})."
        ) from error


def _check_problems(data: ReportData, problems: Sequence[str]) -> None:
    ids = list(dict.fromkeys(item.scores.item[2] for item in data.items))
    for name in problems:
        if name not in ids:
            near = difflib.get_close_matches(name, ids, _NAMED) or ids[:_NAMED]
            some = ", ".join(map(repr, near))
            more = "" if len(ids) == len(near) else f" and {len(ids) - len(near):,} more"
            raise ValueError(f"problem is {name!r}; finished ones are {some}{more}.")


def _draw(made: Sequence[plots.Plot], files: dict[str, bytes]) -> list[page.Picture]:
    """Draws plots one after another, and adds their files by name."""
    pictures = []
    for plot in made:
        picture = page.Picture(plot.title, plot.caption, plots.to_png(plot.figure))
        pictures.append(picture)
        files[f"{re.sub('[^A-Za-z0-9_.-]', '_', plot.name)}.png"] = picture.png
    return pictures


def _size(content: bytes) -> str:
    return f"{len(content) / 1e6:.1f} MB"


def main(values: Any) -> None:
    """Runs the launcher with the flags that ``run`` defined."""
    report(values.workdir, values.problem, values.output)


def run() -> None:
    """The command line."""
    flags.DEFINE_string("workdir", None, "Of launch.evaluate, local or remote (gs://bucket/dir).")
    flags.DEFINE_multi_string(
        "problem",
        [],
        "Id of a problem to show in full; may be repeated. Default: those "
        "that the samplers disagree about most.",
    )
    flags.DEFINE_string("output", None, "Directory for page and plots. Default: WORKDIR/report.")
    launch(main, required=["workdir"])
