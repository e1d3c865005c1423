"""The ancestry of one problem's particles as a picture."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from jax_power_smc.evaluation.records import Record
from jax_power_smc.report import ancestry_tree, style
from jax_power_smc.report.ancestry_tree import Segment
from jax_power_smc.report.load import particle_weights
from jax_power_smc.report.style import Plot

# Leaves that are drawn, the heaviest ones: more could not be distinguished.
MOST_LEAVES = 128
# Wrong answers that have their own colour.
_OTHERS = 4
RIGHT = style.COLOURS[2]
_OTHER_COLOURS = ("#d55e00", "#0072b2", "#cc79a7", "#e69f00")
_RIGHT_MARKER, _OTHER_MARKERS, _REST_MARKER = "o", ("s", "^", "D", "v"), "x"
# Inches per leaf, and around the tree.
_ROW, _FRAME = 0.165, 0.75
# The least weight that is printed.
PRINTED = 0.01


class _AnswerStyles:
    """Colour and marker of every particle, by the rank of its answer among the heaviest."""

    def __init__(self, particles: Sequence[Record], weights: Sequence[float]) -> None:
        self._of = [_answer(p) for p in particles]
        self.mass: dict[tuple[bool, str | None], float] = {}
        for answer, weight in zip(self._of, weights, strict=True):
            self.mass[answer] = self.mass.get(answer, 0.0) + weight
        by_weight = sorted(self.mass, key=lambda answer: -self.mass[answer])
        self.right = [answer for answer in by_weight if answer[0]]
        wrong = [answer for answer in by_weight if not answer[0]]
        self.named = [answer for answer in wrong if self.mass[answer] > 0][:_OTHERS]
        self.rest = [answer for answer in wrong if answer not in self.named]

    def rank(self, particle: int) -> int:
        """0 for a correct answer, then the wrong ones with their own colour, then the rest."""
        answer = self._of[particle]
        if answer[0]:
            return 0
        return 1 + self.named.index(answer) if answer in self.named else 1 + len(self.named)

    def colour(self, rank: int) -> str:
        if rank == 0:
            return RIGHT
        return _OTHER_COLOURS[rank - 1] if rank <= len(self.named) else style.GREY

    def marker(self, rank: int) -> str:
        if rank == 0:
            return _RIGHT_MARKER
        return _OTHER_MARKERS[rank - 1] if rank <= len(self.named) else _REST_MARKER

    def legend(self) -> list[tuple[int, str]]:
        """(rank, text) of every entry."""
        entries = []
        if self.right:
            text = ", ".join(style.printable(answer, 30) for _, answer in self.right[:2])
            more = f" and {len(self.right) - 2} more" if len(self.right) > 2 else ""
            share = sum(self.mass[answer] for answer in self.right)
            entries.append((0, f"right: {text}{more} ({_percent(share)})"))
        for rank, answer in enumerate(self.named, start=1):
            entries.append((rank, f"{_answer_text(answer[1])} ({_percent(self.mass[answer])})"))
        if self.rest:
            share = sum(self.mass[answer] for answer in self.rest)
            what = (
                f"{len(self.rest)} other answers"
                if len(self.rest) > 1
                else _answer_text(self.rest[0][1])
            )
            entries.append((1 + len(self.named), f"{what} ({_percent(share)})"))
        return entries


def genealogy(records: Sequence[Record], labels: Mapping[str, str]) -> list[Plot]:
    """One picture for each record with several particles: which descends from which.

    Args:
      records: of one problem, or of several.
      labels: run -> its name in tables.
    """
    has_seeds = len({record["seed"] for record in records}) > 1
    plots = []
    for record in records:
        if record["failure"] is None and _has_ancestry(record):
            label = style.printable(labels.get(record["run"], record["run"]))
            seed = f", seed {record['seed']}" if has_seeds else ""
            plots.append(_picture(record, f"{label}{seed}: ancestry of the particles"))
    return plots


def _has_ancestry(record: Record) -> bool:
    alive = [p for p in record["particles"] if p["log_weight"] is not None]
    return bool(alive) and (len(alive) > 1 or bool(record["info"]["moves"]))


def _picture(record: Record, title: str) -> Plot:
    alive = [i for i, p in enumerate(record["particles"]) if p["log_weight"] is not None]
    weights = particle_weights(record)
    weight = {i: weights[i] for i in alive}
    answers = _AnswerStyles([record["particles"][i] for i in alive], [weight[i] for i in alive])
    rank = {i: answers.rank(place) for place, i in enumerate(alive)}
    chosen, left_out = _heaviest(record, weight)
    trees = _ordered(
        ancestry_tree.forest(ancestry_tree.paths(record, chosen)), chosen, weight, rank
    )

    leaves = [leaf for tree in trees for leaf in tree.leaves()]
    entries = answers.legend()
    texts = [text for _, text in entries]
    height = max(2.2, _FRAME + style.legend_height(texts) + _ROW * (len(leaves) + 1))
    figure = style.new_figure(height, layout="constrained")
    axes = figure.add_subplot()
    tree_height = ancestry_tree.heights(trees)
    _draw_lines(axes, trees, tree_height, weight, rank, answers)
    steps = max(leaf.end for leaf in leaves)
    _draw_leaves(axes, leaves, tree_height, record, weight, rank, answers)
    style.style_axes(axes, grid="x")
    axes.spines["left"].set_visible(False)
    axes.vlines(0, -0.5, len(leaves) - 0.5, color=style.GREY, linewidth=1.0, zorder=1)
    # Room on the right for the text at the longest sequence.
    axes.set_xlim(-0.008 * max(steps, 1), 1.13 * max(steps, 1))
    axes.set_ylim(len(leaves) - 0.4, -0.6)
    axes.set_yticks([])
    style.integer_ticks(axes.xaxis)
    axes.set_xlabel("tokens")
    handles = [_legend_line(answers, rank) for rank, _ in entries]
    style.legend_below(figure, handles, texts)
    return style.finish(
        _name(record),
        title,
        _caption(record, weight, leaves, len(trees), left_out),
        figure,
    )


def _heaviest(record: Record, weight: Mapping[int, float]) -> tuple[list[int], int]:
    """The particles of the heaviest leaves, and the number of leaves that are left out."""
    alive = list(weight)
    rows = ancestry_tree.paths(record, alive)
    by_leaf: dict[tuple[int, int], list[int]] = {}
    for particle, path in zip(alive, rows, strict=True):
        length = len(record["particles"][particle]["tokens"])
        by_leaf.setdefault((length, int(path[length - 1]) if length else 0), []).append(particle)
    leaves = sorted(by_leaf.values(), key=lambda leaf: -math.fsum(weight[i] for i in leaf))
    chosen = sorted(i for leaf in leaves[:MOST_LEAVES] for i in leaf)
    return chosen, max(0, len(leaves) - MOST_LEAVES)


def _ordered(
    trees: list[Segment],
    chosen: Sequence[int],
    weight: Mapping[int, float],
    rank: Mapping[int, int],
) -> list[Segment]:
    """The trees with correct answers and heavy branches on top, particles numbered as recorded."""

    def rename(segment: Segment) -> None:
        segment.particles = [chosen[i] for i in segment.particles]
        for branch in segment.branches:
            rename(branch)

    def key(segment: Segment) -> tuple[float, ...]:
        mass: dict[int, float] = {}
        for i in segment.particles:
            mass[rank[i]] = mass.get(rank[i], 0.0) + weight[i]
        main = max(mass, key=mass.__getitem__)
        return main, -math.fsum(mass.values())

    for tree in trees:
        rename(tree)
    return ancestry_tree.sort_branches(trees, key)


def _draw_lines(
    axes: Any,
    trees: Sequence[Segment],
    height: Mapping[int, float],
    weight: Mapping[int, float],
    rank: Mapping[int, int],
    answers: _AnswerStyles,
) -> None:
    """A line along the steps of every segment, and one across from where it branched off."""
    lines: list[tuple[float, list[tuple[float, float]], str]] = []

    def draw(segment: Segment, source: float | None) -> None:
        share = math.fsum(weight[i] for i in segment.particles)
        ranks = {rank[i] for i in segment.particles}
        colour = answers.colour(ranks.pop()) if len(ranks) == 1 else style.INK
        y = height[id(segment)]
        line = [(float(segment.start), y), (float(segment.end), y)]
        if source is not None:
            line.insert(0, (float(segment.start), source))
        lines.append((_width(share), line, colour))
        for branch in segment.branches:
            draw(branch, y)

    for tree in trees:
        draw(tree, None)
    lines.sort(key=lambda line: line[0])
    axes.add_collection(
        LineCollection(
            [line for _, line, _ in lines],
            linewidths=[width for width, _, _ in lines],
            colors=[colour for _, _, colour in lines],
            capstyle="round",
            joinstyle="round",
            zorder=2,
        )
    )


def _draw_leaves(
    axes: Any,
    leaves: Sequence[Segment],
    height: Mapping[int, float],
    record: Record,
    weight: Mapping[int, float],
    rank: Mapping[int, int],
    answers: _AnswerStyles,
) -> None:
    """A mark at the end of each sequence, with its weight, its copies and whether it was drawn."""
    for leaf in leaves:
        x, y = leaf.end, height[id(leaf)]
        share = math.fsum(weight[i] for i in leaf.particles)
        first = leaf.particles[0]
        colour = answers.colour(rank[first])
        is_drawn = record["choice"] in leaf.particles
        finished = record["particles"][first]["finished"]
        axes.plot(
            x,
            y,
            marker=answers.marker(rank[first]),
            markersize=4.5 + 4 * math.sqrt(share),
            color=colour,
            markerfacecolor=colour if finished else "white",
            markeredgewidth=1.2,
            linestyle="none",
            clip_on=False,
            zorder=4,
        )
        words = [_percent(share)] if share > PRINTED else []
        if len(leaf.particles) > 1:
            words.append(f"{style.TIMES}{len(leaf.particles)}")
        if is_drawn:
            words.append("drawn")
            axes.plot(
                x,
                y,
                marker="o",
                markersize=13,
                markerfacecolor="none",
                color="black",
                markeredgewidth=1.3,
                linestyle="none",
                clip_on=False,
                zorder=5,
            )
        axes.annotate(
            "  ".join(words),
            (x, y),
            (9, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=style.SMALL,
            color=style.INK,
            fontweight="bold" if is_drawn else "normal",
        )


def _legend_line(answers: _AnswerStyles, rank: int) -> Line2D:
    return Line2D(
        [],
        [],
        color=answers.colour(rank),
        marker=answers.marker(rank),
        markersize=6.5,
        markeredgewidth=1.2,
        linewidth=2.5,
    )


def _caption(
    record: Record,
    weight: Mapping[int, float],
    leaves: Sequence[Segment],
    roots: int,
    left_out: int,
) -> str:
    copies = len(leaves) + left_out < len(weight)
    text = (
        f"Every line is one particle's sequence, from the prompt on the left to where it ends; "
        f"{len(weight)} particles of positive weight descend from "
        f"{_count(roots, 'particle')} of the first step and end in "
        f"{_count(len(leaves) + left_out, 'sequence')}. To the left of the point "
        "where two lines meet, the sequences are the same: one was copied, and the copies then "
        "diverged. What died out on the way is not drawn. The thickness of a line shows the weight "
        "of its descendants, which is printed where it is above 1 %"
    )
    text += f"; {style.TIMES}2 means two copies of one sequence. " if copies else ". "
    text += (
        "Colours and marks show the answer of a sequence; dark segments lead to several answers. "
        "The ring marks the particle that was drawn. "
    )
    if any(not record["particles"][leaf.particles[0]]["finished"] for leaf in leaves):
        text += "Open marks are sequences that reached the token limit. "
    if left_out:
        text += f"The {left_out} lightest sequences are left out. "
    return text.strip()


def _width(share: float) -> float:
    return 0.8 + 4.2 * math.sqrt(min(share, 1.0))


def _name(record: Record) -> str:
    """A valid file name that is unique to the item."""
    item = repr((record["run"], record["seed"], record["id"])).encode(errors="backslashreplace")
    run = re.sub(r"[^A-Za-z0-9_-]+", "-", record["run"])[:40]
    return f"genealogy-{run}-{hashlib.blake2b(item, digest_size=5).hexdigest()}"


def _answer(particle: Record) -> tuple[bool, str | None]:
    return bool(particle["correct"]), particle["parsed"]


def _answer_text(answer: str | None) -> str:
    return "no answer" if answer is None else style.printable(answer, 30) or "empty answer"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= PRINTED or share == 0 else "< 1 %"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
