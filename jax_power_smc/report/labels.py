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
# What it costs, in pixels of distance: to hide something or leave the axes, each pixel outside
# them, to cross a line that leads to another name, and to lead a line through something.
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
        np.array([frame.x0, frame.y0, frame.x1, frame.y1]) + _AROUND * np.array([1, 1, -1, -1]),
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
            leads = np.concatenate([points[others], _end(points[others], boxes[others])], axis=1)
            leads = leads[_length(leads) > _LED]
            corner = _free_corner(points[i], sizes[i], taken, leads, frame)
            boxes[i] = np.concatenate([corner, corner + sizes[i]])
    return boxes[:, :2]


def _free_corner(
    point: np.ndarray,
    size: np.ndarray,
    taken: np.ndarray,
    leads: np.ndarray,
    frame: np.ndarray,
) -> np.ndarray:
    """Lower left corner of the place, of all that are tried, that costs least."""
    radii = np.arange(_NEAREST, _FARTHEST, _RING)[:, None, None]
    angles = np.radians(_DIRECTIONS)
    ways = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # The name's edge, not its middle, is at this distance.
    corners = (point + ways * radii + (ways - 1) / 2 * size).reshape(-1, 2)
    cost = (radii[:, :, 0] + 0.8 * np.arange(len(angles))).ravel()
    cost = cost + _cost(
        np.concatenate([corners, corners + size], axis=1), point, taken, leads, frame
    )
    return corners[np.argmin(cost)]


def _cost(
    boxes: np.ndarray,
    point: np.ndarray,
    taken: np.ndarray,
    leads: np.ndarray,
    frame: np.ndarray,
) -> np.ndarray:
    """Of a name in each of these boxes [k, 4], but for its distance from the point."""
    common = np.minimum(boxes[:, None, 2:], taken[:, 2:]) - np.maximum(
        boxes[:, None, :2], taken[:, :2]
    )
    hidden = np.all(common > 0, axis=2)
    cost = np.sum(np.where(hidden, _HIDES + np.prod(common, axis=2), 0), axis=1)
    below = np.maximum(0, frame[:2] - boxes[:, :2])
    above = np.maximum(0, boxes[:, 2:] - frame[2:])
    outside = (below + above).sum(axis=1)
    cost += np.where(outside > 0, _HIDES + _OUTSIDE * outside, 0)
    own = np.concatenate([np.broadcast_to(point, (len(boxes), 2)), _end(point, boxes)], axis=1)
    is_led = _length(own) > _LED
    crosses = _pass(leads, boxes).T | (is_led[:, None] & _meet(own, leads))
    cost += _CROSSES * crosses.sum(axis=1)
    # Its own mark and interval are where a line begins.
    away = ~np.all((taken[:, :2] <= point) & (point <= taken[:, 2:]), axis=1)
    return cost + _THROUGH * np.where(is_led, _pass(own, taken[away]).sum(axis=1), 0)


def _end(point: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[..., 2], where a line from the point reaches the boxes [..., 4]."""
    return np.clip(point, boxes[..., :2], boxes[..., 2:])


def _length(lines: np.ndarray) -> np.ndarray:
    """[k], of lines [k, 4], x0 y0 x1 y1."""
    return np.hypot(*(lines[:, 2:] - lines[:, :2]).T)


def _pass(lines: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[k, m], whether each line [k, 4] goes through each box [m, 4]."""
    start, way = lines[:, None, :2], lines[:, None, 2:] - lines[:, None, :2]
    # Along a line, by 0 at its start and 1 at its end: when it is between the sides of a box.
    way = np.where(np.abs(way) < 1e-9, 1e-9, way)
    one, other = (boxes[:, :2] - start) / way, (boxes[:, 2:] - start) / way
    enters = np.minimum(one, other).max(axis=2)
    leaves = np.maximum(one, other).min(axis=2)
    return np.maximum(enters, 0) < np.minimum(leaves, 1)


def _meet(lines: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[k, m], whether lines [k, 4] cross others [m, 4]."""

    def side(line: np.ndarray, spot: np.ndarray) -> np.ndarray:
        way, to = line[..., 2:] - line[..., :2], spot - line[..., :2]
        return way[..., 0] * to[..., 1] - way[..., 1] * to[..., 0]

    one, other = lines[:, None], others[None]
    return (side(one, other[..., :2]) * side(one, other[..., 2:]) < 0) & (
        side(other, one[..., :2]) * side(other, one[..., 2:]) < 0
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
