"""The gap of the estimates of log Z against the number of particles."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.lines import Line2D

from jax_power_smc.evaluation.intervals import mean_and_interval
from jax_power_smc.evaluation.job_config import TITLES
from jax_power_smc.report import style
from jax_power_smc.report.load import ReportData
from jax_power_smc.report.style import Plot

# An axis is logarithmic if the largest value is more than this many times the smallest.
_WIDE = 20.0
# Settings in which the runs of one line may differ.
_FREE = ("num_particles", "label")


class Evidence(NamedTuple):
    """log Z_hat [problems, seeds] of all runs on the problems that all of them have finished.

    For the problems that are left out, some run has no finite log Z_hat.
    """

    values: dict[str, np.ndarray]
    problems: int
    left_out: int

    def gaps(self) -> dict[str, np.ndarray]:
        """Run -> [problems, seeds]: the highest of all runs and seeds, minus this value."""
        highest = np.max([v.max(axis=1) for v in self.values.values()], axis=0)
        return {run: highest[:, None] - v for run, v in self.values.items()}

    def deviations(self) -> dict[str, np.ndarray]:
        """Run -> [problems]: the standard deviation over seeds; empty if there is one seed."""
        return {run: v.std(axis=1, ddof=1) for run, v in self.values.items() if v.shape[1] > 1}


def evidence(data: ReportData) -> Evidence | None:
    """Estimates of log Z, or None if no problem has one from all runs that estimate it.

    A run is included if it estimates log Z for any problem; a problem, if every such run has an
    estimate with every seed.
    """
    found = {
        item.scores.item: item.scores.log_evidence
        for item in data.items
        if item.scores.log_evidence is not None and not item.scores.failed
    }
    seeds = sorted({item.scores.item[1] for item in data.items})
    runs = [run for run in data.labels if any(run == own for own, _, _ in found)]
    names = list(dict.fromkeys(item.scores.item[2] for item in data.items if item.run in runs))
    shared = [
        name for name in names if all((run, seed, name) in found for run in runs for seed in seeds)
    ]
    if not shared:
        return None
    values = {
        run: np.array([[found[run, seed, name] for seed in seeds] for name in shared])
        for run in runs
    }
    return Evidence(values, len(shared), len(names) - len(shared))


def series(data: ReportData, runs: list[str]) -> dict[str, list[str]]:
    """Name of a line -> its runs, which differ only in N, in ascending order of N."""
    groups: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        groups[repr(_fixed(data, run))].append(run)
    made = {}
    for members in groups.values():
        members.sort(key=lambda run: style.num_particles(data, run))
        name = _series_name(data, members, list(groups.values()))
        made[name if name not in made else f"{name} ({members[0]})"] = members
    return made


def gap(data: ReportData) -> list[Plot]:
    """The gap against N and, with several seeds, the standard deviation over them."""
    known = evidence(data)
    # The gap of one run with one seed is 0.
    if known is None or sum(values.shape[1] for values in known.values.values()) < 2:
        return []
    lines = series(data, list(known.values))
    panels = {"mean gap of log Z_hat, nats": known.gaps()}
    if deviations := known.deviations():
        panels["sd of log Z_hat over seeds, nats"] = deviations
    sizes = {run: style.num_particles(data, run) for run in known.values}
    is_single = len(set(sizes.values())) == 1
    figure = style.new_figure((3.0 if is_single else 4.2) + style.legend_height(list(lines)))
    handles: list[Any] = []
    for place, (title, values) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        style.style_axes(axes)
        points = {
            run: mean_and_interval(each.reshape(known.problems, -1)) for run, each in values.items()
        }
        # Side by side, so that no interval hides another; far apart if there is only one N.
        room = (480.0 if is_single else 60.0) / len(panels) / len(lines)
        styles = style.run_styles(data)
        handles = []
        for number, runs in enumerate(lines.values()):
            shift = (number - (len(lines) - 1) / 2) * room
            shown = [(sizes[run], *points[run], styles[run]) for run in runs]
            handles.append(_line(axes, shown, style.beside(axes, shift), is_single))
        style.size_axis(axes, sizes.values(), "N, particles (logarithmic)")
        _height(axes, list(points.values()))
        axes.set_ylabel(title)
    style.legend_below(figure, handles, list(lines))
    caption = style.caption(
        "gap",
        problems=known.problems,
        joined=any(len(runs) > 1 for runs in lines.values()),
        deviations=bool(deviations),
        left_out=known.left_out,
    )
    return [style.finish("gap", "Gap of log Z against N", caption, figure)]


def _line(axes: Any, points: Sequence[Any], transform: Any, with_numbers: bool) -> Line2D:
    """Draws one series and returns its line for the legend.

    Points are (N, mean, low, high, style), in data coordinates of ``transform``.
    """
    first = points[0][-1]
    sizes, means = [point[0] for point in points], [point[1] for point in points]
    look = {"color": first.colour, "linestyle": first.line, "linewidth": 1.6}
    axes.plot(sizes, means, **look, transform=transform, zorder=3)
    for size, value, low, high, own in points:
        axes.vlines(size, low, high, color=own.colour, linewidth=1.1, transform=transform)
        mark = style.mark(own, markersize=7.5, transform=transform, zorder=4)
        axes.plot(size, value, **mark, clip_on=False)
        if with_numbers:
            style.note(axes, f"{value:.3g}", (size, value), xycoords=transform)
    return Line2D([], [], **look, marker=first.marker, markersize=7)


def _height(axes: Any, points: list[tuple[float, float, float]]) -> None:
    """A linear y axis from 0, or a logarithmic one where the values span a wide range."""
    means = [mean for mean, _, _ in points]
    if min(means) > 0 and max(means) > _WIDE * min(means):
        axes.set_yscale("log")
        axes.set_ylim(min(means) / 2, max(high for _, _, high in points) * 1.5)
        style.log_ticks(axes.yaxis, *axes.get_ylim())
    else:
        axes.set_ylim(0, max(1e-3, *(high for _, _, high in points)) * 1.08)


def _fixed(data: ReportData, run: str) -> dict[str, Any]:
    """The settings that are the same for all runs of a line."""
    return {k: v for k, v in style.run_config(data, run).items() if k not in _FREE}


def _series_name(data: ReportData, members: list[str], groups: list[list[str]]) -> str:
    """The label of a single run, or a name made from the shared settings."""
    if len(members) == 1:
        return style.printable(data.labels[members[0]])
    own = _fixed(data, members[0])
    name = TITLES.get(own["kind"], own["kind"])
    if own.get("ramp_tokens"):
        name += f", ramp {own['ramp_tokens']}"
    # Other settings that distinguish it from lines of the same kind.
    others = [_fixed(data, other[0]) for other in groups]
    others = [other for other in others if other["kind"] == own["kind"]]
    for key, value in own.items():
        if key != "ramp_tokens" and any(other.get(key) != value for other in others):
            name += f", {key} {value}"
    return style.printable(name)
