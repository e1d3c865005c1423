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
from jax_power_smc.report.style import Plot

# Ends of the tree that are drawn, the heaviest ones: more cannot be told apart.
MOST_ENDS = 128
# Answers with a colour of their own besides the right one.
_OTHERS = 4
RIGHT = style.COLOURS[2]
_OTHER_COLOURS = ("#d55e00", "#0072b2", "#cc79a7", "#e69f00")
_RIGHT_MARKER, _OTHER_MARKERS, _REST_MARKER = "o", ("s", "^", "D", "v"), "x"
# Inches per end of the tree, and around it.
_ROW, _FRAME = 0.165, 0.75
# Weight from which on it is printed.
PRINTED = 0.01


class _Answers:
    """Which colour and marker every particle has: by its answer's place among the heaviest."""

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
        """0 for a right answer, then the others with a colour, then the rest."""
        answer = self._of[particle]
        if answer[0]:
            return 0
        return 1 + self.named.index(answer) if answer in self.named else 1 + len(self.named)

    def colour(self, rank: int) -> str:
        """Of a rank."""
        if rank == 0:
            return RIGHT
        return _OTHER_COLOURS[rank - 1] if rank <= len(self.named) else style.GREY

    def marker(self, rank: int) -> str:
        """Of a rank."""
        if rank == 0:
            return _RIGHT_MARKER
        return _OTHER_MARKERS[rank - 1] if rank <= len(self.named) else _REST_MARKER

    def legend(self) -> list[tuple[int, str]]:
        """(rank, text) of every entry."""
        entries = []
        if self.right:
            text = ", ".join(style.shown(answer, 30) for _, answer in self.right[:2])
            more = f" and {len(self.right) - 2} more" if len(self.right) > 2 else ""
            share = sum(self.mass[answer] for answer in self.right)
            entries.append((0, f"right: {text}{more} ({_percent(share)})"))
        for rank, answer in enumerate(self.named, start=1):
            entries.append((rank, f"{_said(answer[1])} ({_percent(self.mass[answer])})"))
        if self.rest:
            share = sum(self.mass[answer] for answer in self.rest)
            what = (
                f"{len(self.rest)} other answers" if len(self.rest) > 1 else _said(self.rest[0][1])
            )
            entries.append((1 + len(self.named), f"{what} ({_percent(share)})"))
        return entries


def genealogy(records: Sequence[Record], labels: Mapping[str, str]) -> list[Plot]:
    """One picture for each record with several particles: who descends from whom.

    Args:
      records: of one problem, or of several.
      labels: run -> what tables call it.
    """
    has_seeds = len({record["seed"] for record in records}) > 1
    plots = []
    for record in records:
        if record["failure"] is None and _has_ancestry(record):
            label = style.shown(labels.get(record["run"], record["run"]))
            seed = f", seed {record['seed']}" if has_seeds else ""
            plots.append(_picture(record, f"{label}{seed}: ancestry of the particles"))
    return plots


def _has_ancestry(record: Record) -> bool:
    alive = [p for p in record["particles"] if p["log_weight"] is not None]
    return bool(alive) and (len(alive) > 1 or bool(record["info"]["moves"]))


def _picture(record: Record, title: str) -> Plot:
    alive = [i for i, p in enumerate(record["particles"]) if p["log_weight"] is not None]
    raw = [math.exp(record["particles"][i]["log_weight"]) for i in alive]
    weight = dict(zip(alive, (w / math.fsum(raw) for w in raw), strict=True))
    answers = _Answers([record["particles"][i] for i in alive], [weight[i] for i in alive])
    rank = {i: answers.rank(place) for place, i in enumerate(alive)}
    chosen, left_out = _heaviest(record, weight)
    trees = _ordered(
        ancestry_tree.forest(ancestry_tree.paths(record, chosen)), chosen, weight, rank
    )

    ends = [end for tree in trees for end in tree.ends()]
    entries = answers.legend()
    texts = [text for _, text in entries]
    height = max(2.2, _FRAME + style.legend_height(texts) + _ROW * (len(ends) + 1))
    figure = style.new_figure(height, layout="constrained")
    axes = figure.add_subplot()
    tree_height = ancestry_tree.places(trees)
    _draw_lines(axes, trees, tree_height, weight, rank, answers)
    steps = max(end.end for end in ends)
    _draw_ends(axes, ends, tree_height, record, weight, rank, answers)
    style.tidy(axes, grid="x")
    axes.spines["left"].set_visible(False)
    axes.vlines(0, -0.5, len(ends) - 0.5, color=style.GREY, linewidth=1.0, zorder=1)
    # Room on the right for what is written at the longest one.
    axes.set_xlim(-0.008 * max(steps, 1), 1.13 * max(steps, 1))
    axes.set_ylim(len(ends) - 0.4, -0.6)
    axes.set_yticks([])
    style.whole_numbers(axes.xaxis)
    axes.set_xlabel("tokens")
    handles = [_sample(answers, rank) for rank, _ in entries]
    style.legend_below(figure, handles, texts)
    return style.plot(
        _name(record),
        title,
        _caption(record, weight, ends, len(trees), left_out),
        figure,
    )


def _heaviest(record: Record, weight: Mapping[int, float]) -> tuple[list[int], int]:
    """The particles of the heaviest ends, and how many ends are left out."""
    alive = list(weight)
    rows = ancestry_tree.paths(record, alive)
    by_end: dict[tuple[int, int], list[int]] = {}
    for particle, path in zip(alive, rows, strict=True):
        length = len(record["particles"][particle]["tokens"])
        by_end.setdefault((length, int(path[length - 1]) if length else 0), []).append(particle)
    ends = sorted(by_end.values(), key=lambda end: -math.fsum(weight[i] for i in end))
    return sorted(i for end in ends[:MOST_ENDS] for i in end), max(0, len(ends) - MOST_ENDS)


def _ordered(
    trees: list[Segment],
    chosen: Sequence[int],
    weight: Mapping[int, float],
    rank: Mapping[int, int],
) -> list[Segment]:
    """The trees, right answers and heavy branches on top, with the record's particles in them."""

    def rename(segment: Segment) -> None:
        segment.particles = [chosen[i] for i in segment.particles]
        for branch in segment.branches:
            rename(branch)

    def key(segment: Segment) -> tuple[float, ...]:
        mass: dict[int, float] = {}
        for i in segment.particles:
            mass[rank[i]] = mass.get(rank[i], 0.0) + weight[i]
        main = max(mass, key=lambda one: mass[one])
        return main, -math.fsum(mass.values())

    for tree in trees:
        rename(tree)
    return ancestry_tree.arrange(trees, key)


def _draw_lines(
    axes: Any,
    trees: Sequence[Segment],
    height: Mapping[int, float],
    weight: Mapping[int, float],
    rank: Mapping[int, int],
    answers: _Answers,
) -> None:
    """Along the steps one line per segment, and a line across from where it branched off."""
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


def _draw_ends(
    axes: Any,
    ends: Sequence[Segment],
    height: Mapping[int, float],
    record: Record,
    weight: Mapping[int, float],
    rank: Mapping[int, int],
    answers: _Answers,
) -> None:
    """A mark where each sequence ends, and beside it weight, copies and whether it was drawn."""
    for end in ends:
        x, y = end.end, height[id(end)]
        share = math.fsum(weight[i] for i in end.particles)
        first = end.particles[0]
        colour = answers.colour(rank[first])
        is_drawn = record["choice"] in end.particles
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
        if len(end.particles) > 1:
            words.append(f"{style.TIMES}{len(end.particles)}")
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


def _sample(answers: _Answers, rank: int) -> Line2D:
    """For the legend."""
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
    ends: Sequence[Segment],
    roots: int,
    left_out: int,
) -> str:
    copies = len(ends) + left_out < len(weight)
    text = (
        f"Every line is one particle's sequence, from the prompt on the left to where it ends; "
        f"{len(weight)} particles of positive weight go back to "
        f"{_count(roots, 'particle')} of the first step and end in "
        f"{_count(len(ends) + left_out, 'sequence')}. Where two lines meet, going left, the "
        "sequences are the same from there back to the prompt: one was copied, and the "
        "copies went on differently. What died out on the way is not drawn. A line is as thick as "
        "the weight behind it, which is printed where it is above 1 %"
    )
    text += f"; {style.TIMES}2 stands for two copies of one sequence. " if copies else ". "
    text += (
        "Colours and marks say which answer a sequence ends with; dark stretches lead to several "
        "answers. The ring is around the particle that was drawn. "
    )
    if any(not record["particles"][end.particles[0]]["finished"] for end in ends):
        text += "Open marks reached the limit of tokens. "
    if left_out:
        text += f"The {left_out} lightest sequences are left out. "
    return text.strip()


def _width(share: float) -> float:
    return 0.8 + 4.2 * math.sqrt(min(share, 1.0))


def _name(record: Record) -> str:
    """Fit for a file, and of this item alone."""
    item = repr((record["run"], record["seed"], record["id"])).encode(errors="backslashreplace")
    run = re.sub(r"[^A-Za-z0-9_-]+", "-", record["run"])[:40]
    return f"genealogy-{run}-{hashlib.blake2b(item, digest_size=5).hexdigest()}"


def _answer(particle: Record) -> tuple[bool, str | None]:
    return bool(particle["correct"]), particle["parsed"]


def _said(answer: str | None) -> str:
    return "no answer" if answer is None else style.shown(answer, 30) or "empty answer"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= PRINTED or share == 0 else "< 1 %"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
