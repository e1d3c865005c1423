"""The ancestry of one problem's particles as a picture."""

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from jax_power_smc.evaluation.records import Record, weights
from jax_power_smc.report import ancestry_tree, style
from jax_power_smc.report.ancestry_tree import Segment
from jax_power_smc.report.style import Plot

# Leaves that are drawn, the heaviest ones: more could not be distinguished.
MOST_LEAVES = 128
RIGHT = style.COLOURS[2]
# Of the heaviest wrong answers.
_OTHER_COLOURS = ("#d55e00", "#0072b2", "#cc79a7", "#e69f00")
_OTHER_MARKERS = ("s", "^", "D", "v")
# Inches per leaf, and around the tree.
_ROW, _FRAME = 0.165, 0.75
# The least weight that is printed.
PRINTED = 0.01


class _Answers(NamedTuple):
    """The answers of a record in groups: the right ones, the heaviest wrong ones, the others.

    ``rank`` is the group of each particle's answer; ``looks`` are (colour, marker) of every group,
    and ``texts`` the legend's, of the groups that have an answer.
    """

    rank: dict[int, int]
    looks: list[tuple[str, str]]
    texts: dict[int, str]


def _answers(record: Record, weight: Mapping[int, float]) -> _Answers:
    particles = record["particles"]
    answer = {i: (bool(particles[i]["correct"]), particles[i]["parsed"]) for i in weight}
    mass: dict[tuple[bool, str | None], float] = defaultdict(float)
    for i, share in weight.items():
        mass[answer[i]] += share
    by_weight = sorted(mass, key=mass.__getitem__, reverse=True)
    wrong = [each for each in by_weight if not each[0]]
    named = [each for each in wrong if mass[each] > 0][: len(_OTHER_COLOURS)]
    groups = [
        [each for each in by_weight if each[0]],
        *([each] for each in named),
        [each for each in wrong if each not in named],
    ]
    rank_of = {each: rank for rank, group in enumerate(groups) for each in group}
    texts = {}
    for rank, group in enumerate(groups):
        names = [
            "no answer" if text is None else style.printable(text, 30) or "empty answer"
            for _, text in group
        ]
        if rank == 0 and names:
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            names = [f"right: {', '.join(names[:2])}{more}"]
        if names:
            what = names[0] if len(names) == 1 else f"{len(names)} other answers"
            texts[rank] = f"{what} ({_percent(sum(mass[each] for each in group))})"
    looks = [(RIGHT, "o"), *zip(_OTHER_COLOURS, _OTHER_MARKERS, strict=True)]
    looks = [*looks[: len(named) + 1], (style.GREY, "x")]
    return _Answers({i: rank_of[each] for i, each in answer.items()}, looks, texts)


def genealogy(records: Sequence[Record], labels: Mapping[str, str]) -> list[Plot]:
    """One picture for each record with several particles: which descends from which."""
    has_seeds = len({record["seed"] for record in records}) > 1
    plots = []
    for record in records:
        alive = sum(p["log_weight"] is not None for p in record["particles"])
        has_ancestry = alive > 1 or (alive and record["info"]["moves"])
        if record["failure"] is None and has_ancestry:
            label = style.printable(labels.get(record["run"], record["run"]))
            seed = f", seed {record['seed']}" if has_seeds else ""
            plots.append(_picture(record, f"{label}{seed}: ancestry of the particles"))
    return plots


def _picture(record: Record, title: str) -> Plot:
    particles = zip(record["particles"], weights(record), strict=True)
    weight = {i: w for i, (p, w) in enumerate(particles) if p["log_weight"] is not None}
    answers = _answers(record, weight)

    def share(segment: Segment) -> float:
        return math.fsum(weight[i] for i in segment.particles)

    def order(segment: Segment) -> tuple[float, ...]:
        """Correct answers and heavy branches first."""
        mass: dict[int, float] = defaultdict(float)
        for i in segment.particles:
            mass[answers.rank[i]] += weight[i]
        return max(mass, key=mass.__getitem__), -share(segment)

    rows = ancestry_tree.paths(record)
    trees = ancestry_tree.forest(rows, weight)
    by_share = sorted(ancestry_tree.leaves(trees), key=share, reverse=True)
    left_out = len(by_share[MOST_LEAVES:])
    if left_out:
        chosen = sorted(i for leaf in by_share[:MOST_LEAVES] for i in leaf.particles)
        trees = ancestry_tree.forest(rows, chosen)
    ancestry_tree.sort_branches(trees, order)
    ancestry_tree.set_heights(trees)
    leaves = ancestry_tree.leaves(trees)

    texts = list(answers.texts.values())
    least = 2.2 - style.legend_height(texts)
    figure, axes = style.new_axes(max(least, _FRAME + _ROW * (len(leaves) + 1)), texts, grid="x")
    shares = {id(segment): share(segment) for segment in ancestry_tree.segments(trees)}
    _draw_lines(axes, trees, shares, answers)
    for leaf in leaves:
        _draw_leaf(axes, leaf, share(leaf), record, answers)
    axes.spines["left"].set_visible(False)
    axes.vlines(0, -0.5, len(leaves) - 0.5, color=style.GREY, linewidth=1.0, zorder=1)
    # Room on the right for the text at the longest sequence.
    steps = max(1, *(leaf.end for leaf in leaves))
    axes.set_xlim(-0.008 * steps, 1.13 * steps)
    axes.set_ylim(len(leaves) - 0.4, -0.6)
    axes.set_yticks([])
    style.integer_ticks(axes.xaxis)
    axes.set_xlabel("tokens")
    looks = [answers.looks[rank] for rank in answers.texts]
    handles = [
        Line2D([], [], color=c, marker=m, markersize=6.5, markeredgewidth=1.2, linewidth=2.5)
        for c, m in looks
    ]
    style.legend_below(figure, handles, texts)
    caption = style.caption(
        "genealogy",
        alive=len(weight),
        roots=len(trees),
        sequences=len(leaves) + left_out,
        times=style.TIMES,
        open=any(not record["particles"][leaf.particles[0]]["finished"] for leaf in leaves),
        left_out=left_out,
    )
    return style.finish(_name(record), title, caption, figure)


def _draw_lines(
    axes: Any, trees: Sequence[Segment], shares: Mapping[int, float], answers: _Answers
) -> None:
    """A line along the steps of every segment, and one across from where it branched off."""
    lines = [(tree, [(0.0, tree.height), (float(tree.end), tree.height)]) for tree in trees]
    lines += [
        (branch, [(branch.start, y), (branch.start, branch.height), (branch.end, branch.height)])
        for y, branch in (
            (segment.height, branch)
            for segment in ancestry_tree.segments(trees)
            for branch in segment.branches
        )
    ]
    lines.sort(key=lambda line: shares[id(line[0])])
    ranks = [{answers.rank[i] for i in segment.particles} for segment, _ in lines]
    axes.add_collection(
        LineCollection(
            [line for _, line in lines],
            linewidths=[0.8 + 4.2 * math.sqrt(min(shares[id(each)], 1.0)) for each, _ in lines],
            colors=[answers.looks[min(r)][0] if len(r) == 1 else style.INK for r in ranks],
            capstyle="round",
            joinstyle="round",
            zorder=2,
        )
    )


def _draw_leaf(axes: Any, leaf: Segment, share: float, record: Record, answers: _Answers) -> None:
    """A mark at the end of a sequence, with its weight, its copies and whether it was drawn."""
    first, point = leaf.particles[0], (leaf.end, leaf.height)
    colour, marker = answers.looks[answers.rank[first]]
    look = {"linestyle": "none", "clip_on": False}
    axes.plot(
        *point,
        marker=marker,
        markersize=4.5 + 4 * math.sqrt(share),
        color=colour,
        markerfacecolor=colour if record["particles"][first]["finished"] else "white",
        markeredgewidth=1.2,
        zorder=4,
        **look,
    )
    is_drawn = record["choice"] in leaf.particles
    if is_drawn:
        ring = {"marker": "o", "markersize": 13, "markerfacecolor": "none", "markeredgewidth": 1.3}
        axes.plot(*point, color="black", zorder=5, **ring, **look)
    words = [_percent(share)] if share > PRINTED else []
    if len(leaf.particles) > 1:
        words.append(f"{style.TIMES}{len(leaf.particles)}")
    words += ["drawn"] * is_drawn
    style.note(axes, "  ".join(words), point, fontweight="bold" if is_drawn else "normal")


def _name(record: Record) -> str:
    """A valid file name that is unique to the item."""
    item = repr((record["run"], record["seed"], record["id"])).encode(errors="backslashreplace")
    run = re.sub(r"[^A-Za-z0-9_-]+", "-", record["run"])[:40]
    return f"genealogy-{run}-{hashlib.blake2b(item, digest_size=5).hexdigest()}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= PRINTED or share == 0 else "< 1 %"
