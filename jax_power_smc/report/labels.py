"""Names at points of a picture, such that none hides another or a point."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure

from jax_power_smc.report import style

# Directions from a point, in the order in which a reader looks: right, left, above, below, ...
_DIRECTIONS = (0, 180, 90, 270, 30, -30, 150, 210, 60, -60, 120, 240, 15, -15, 165, 195)
# Pixels: between a point and its name, between two distances that are tried, around every name.
_NEAREST, _FARTHEST, _RING, _AROUND = 9.0, 300.0, 10.0, 3.0
# Beyond this a line leads from the point to the name.
_LED = 16.0
# What it costs, in pixels of distance, to hide something, to leave the axes by a pixel, to cross a
# line that leads to another name, and to lead a line through something.
_HIDES, _OUTSIDE, _CROSSES, _THROUGH = 300.0, 100.0, 200.0, 100.0
# Every name is placed anew so often, now that the others are where they are.
_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Name:
    """What is written at a point.

    Attributes:
      x, y: the point, in the units of the axes.
      text: fit to be drawn.
      colour: of the letters and of the line that leads to them.
    """

    x: float
    y: float
    text: str
    colour: str


def write_names(
    figure: Figure, axes: Any, names: Sequence[Name], obstacles: Sequence[Sequence[float]]
) -> list[Any]:
    """Writes every name as near to its point as it can stand free.

    Call it when nothing moves any more: what is free depends on it.

    Args:
      figure, axes: where.
      names: what.
      obstacles: [x0, y0, x1, y1] each, in pixels, that no name should hide.

    Returns:
      The texts, in the order of the names.
    """
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)
    points = axes.transData.transform([(name.x, name.y) for name in names])
    texts = [_text(axes, name) for name in names]
    extents = [text.get_window_extent(renderer) for text in texts]
    sizes = np.array([(extent.width, extent.height) for extent in extents])
    corners = arrange(
        points,
        sizes,
        np.reshape(np.asarray(obstacles, float), (-1, 4)),
        np.array([frame.x0, frame.y0, frame.x1, frame.y1]),
    )
    for name, text, point, corner, size in zip(names, texts, points, corners, sizes, strict=True):
        # In points: the stored picture has more pixels than this one.
        text.set_position(tuple((corner - point) * 72 / figure.dpi))
        end = _end(point, np.concatenate([corner, corner + size]))
        if math.dist(point, end) > _LED:
            _lead(axes, name, (end - point) * 72 / figure.dpi)
    return texts


def arrange(
    points: np.ndarray, sizes: np.ndarray, obstacles: np.ndarray, frame: np.ndarray
) -> np.ndarray:
    """Where names stand; everything is in pixels.

    Args:
      points: [n, 2].
      sizes: [n, 2] of the names.
      obstacles: [m, 4], x0 y0 x1 y1, that no name should hide.
      frame: [4], that all should be in.

    Returns:
      [n, 2], the lower left corner of each.
    """
    count = len(points)
    boxes = np.full((count, 4), np.nan)
    # Where it is crowded there is least choice: those first.
    distances = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1))
    order = np.argsort(-(distances < 80).sum(axis=1), kind="stable")
    for _ in range(_ROUNDS):
        for i in order.tolist():
            others = [j for j in range(count) if j != i and not np.isnan(boxes[j, 0])]
            taken = np.concatenate([obstacles, boxes[others] + _AROUND * np.array([-1, -1, 1, 1])])
            leads = [np.concatenate([points[j], _end(points[j], boxes[j])]) for j in others]
            leads = [lead for lead in leads if math.dist(lead[:2], lead[2:]) > _LED]
            corner = _free_corner(points[i], sizes[i], taken, leads, frame)
            boxes[i] = np.concatenate([corner, corner + sizes[i]])
    return boxes[:, :2]


def _free_corner(
    point: np.ndarray,
    size: np.ndarray,
    taken: np.ndarray,
    leads: Sequence[np.ndarray],
    frame: np.ndarray,
) -> np.ndarray:
    """Lower left corner of the nearest place that hides least."""
    best, least = point, math.inf
    for radius in np.arange(_NEAREST, _FARTHEST, _RING):
        for place, degrees in enumerate(_DIRECTIONS):
            angle = math.radians(degrees)
            way = np.array([math.cos(angle), math.sin(angle)])
            # The name's edge, not its middle, is at this distance.
            corner = point + way * radius + (way - 1) / 2 * size
            box = np.concatenate([corner, corner + size])
            cost = radius + 0.8 * place + _cost(box, point, taken, leads, frame)
            if cost < least:
                best, least = corner, cost
        if least < radius:  # farther away is worse
            break
    return best


def _cost(
    box: np.ndarray,
    point: np.ndarray,
    taken: np.ndarray,
    leads: Sequence[np.ndarray],
    frame: np.ndarray,
) -> float:
    """Of a name in this box, but for its distance."""
    common = np.minimum(box[2:], taken[:, 2:]) - np.maximum(box[:2], taken[:, :2])
    hidden = np.all(common > 0, axis=1)
    cost = _HIDES * hidden.sum() + np.prod(common[hidden], axis=1).sum()
    outside = np.maximum(0, frame[:2] - box[:2]).sum() + np.maximum(0, box[2:] - frame[2:]).sum()
    cost += _OUTSIDE * outside
    lead = np.concatenate([point, _end(point, box)])
    is_led = math.dist(lead[:2], lead[2:]) > _LED
    for other in leads:
        cost += _CROSSES * (_passes(other, box[None])[0] or (is_led and _meet(lead, other)))
    if is_led:
        # Its own mark and interval are at its beginning.
        away = ~np.all((taken[:, :2] <= point) & (point <= taken[:, 2:]), axis=1)
        cost += _THROUGH * _passes(lead, taken[away]).sum()
    return float(cost)


def _end(point: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Where a line from the point reaches the box."""
    return np.clip(point, box[:2], box[2:])


def _passes(line: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[boxes], whether a line [x0, y0, x1, y1] goes through each [x0, y0, x1, y1]."""
    along = np.linspace(0, 1, 40)[:, None, None]
    spots = line[:2] + along * (line[2:] - line[:2])
    return np.any(np.all((spots > boxes[:, :2]) & (spots < boxes[:, 2:]), axis=2), axis=0)


def _meet(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two lines [x0, y0, x1, y1] cross."""

    def side(line: np.ndarray, spot: np.ndarray) -> float:
        (ax, ay), (bx, by) = line[2:] - line[:2], spot - line[:2]
        return float(ax * by - ay * bx)

    return (
        side(one, other[:2]) * side(one, other[2:]) < 0
        and side(other, one[:2]) * side(other, one[2:]) < 0
    )


def _text(axes: Any, name: Name) -> Any:
    return axes.annotate(
        name.text,
        (name.x, name.y),
        (0, 0),
        textcoords="offset points",
        fontsize=style.SMALL,
        color=style.dark(name.colour),
        parse_math=False,
        ha="left",
        va="bottom",
        zorder=7,
        path_effects=[patheffects.withStroke(linewidth=2.5, foreground="white")],
    )


def _lead(axes: Any, name: Name, offset: np.ndarray) -> None:
    axes.annotate(
        "",
        (name.x, name.y),
        tuple(offset),
        textcoords="offset points",
        arrowprops={
            "arrowstyle": "-",
            "color": name.colour,
            "linewidth": 0.8,
            "shrinkA": 0,
            "shrinkB": 4,
        },
    )
