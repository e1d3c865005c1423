"""Names at points of a picture, such that none hides another or a point."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jax_power_smc.report import style

# Directions that are tried first are where a reader looks first: right, left, above, below.
_DIRECTIONS = (0, 180, 90, 270, 30, -30, 150, 210, 60, -60, 120, 240)
# Pixels at DPI: between a point and its name, and around every name.
_NEAREST, _FARTHEST, _RING, _AROUND = 9.0, 340.0, 11.0, 2.0
# Beyond this a line leads from the point to the name.
_LED = 16.0


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

    Call it when the layout is final: what is free depends on it.

    Args:
      figure, axes: where.
      names: what.
      obstacles: [x0, y0, x1, y1] in pixels of the axes' transform, that no name should hide.

    Returns:
      The annotations.
    """
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)
    inside = np.array([frame.x0, frame.y0, frame.x1, frame.y1])
    taken = [np.asarray(box, float) for box in obstacles]
    points = axes.transData.transform([(name.x, name.y) for name in names])
    made, leads = [], []
    # Where it is crowded there is least choice: those first.
    crowd = [np.sum(np.hypot(*(points - point).T) < 80) for point in points]
    for place in sorted(range(len(names)), key=lambda i: -crowd[i]):
        name, point = names[place], points[place]
        text = axes.annotate(
            name.text,
            (name.x, name.y),
            (0, 0),
            textcoords="offset pixels",
            fontsize=style.SMALL,
            color=style.dark(name.colour),
            parse_math=False,
            ha="left",
            va="bottom",
        )
        box = text.get_window_extent(renderer)
        size = np.array([box.width, box.height])
        corner = _free_corner(point, size, taken, leads, inside)
        own = np.concatenate([corner - _AROUND, corner + size + _AROUND])
        taken.append(own)
        # Pixels of an offset are those of the screen, but the stored picture has more of them.
        offset = (corner - point) * 72 / figure.dpi
        text.set_position(tuple(offset))
        text.set_anncoords("offset points")
        end = np.clip(point, corner, corner + size)
        if math.dist(point, end) > _LED:
            leads.append(np.concatenate([point, end]))
            made.append(_lead(axes, point, end, figure.dpi, name))
        made.append(text)
    return made


def _free_corner(
    point: np.ndarray,
    size: np.ndarray,
    taken: Sequence[np.ndarray],
    leads: Sequence[np.ndarray],
    inside: np.ndarray,
) -> np.ndarray:
    """Lower left corner of the nearest place that hides least."""
    best, least = point, math.inf
    for radius in np.arange(_NEAREST, _FARTHEST, _RING):
        for order, degrees in enumerate(_DIRECTIONS):
            angle = math.radians(degrees)
            way = np.array([math.cos(angle), math.sin(angle)])
            # The name's edge, not its middle, is at this distance.
            corner = point + way * radius + (way - 1) / 2 * size
            box = np.concatenate([corner, corner + size])
            cost = _cost(box, point, taken, leads, inside) + radius + 0.8 * order
            if cost < least:
                best, least = corner, cost
        if least < radius:  # farther away is worse
            break
    return best


def _cost(
    box: np.ndarray,
    point: np.ndarray,
    taken: Sequence[np.ndarray],
    leads: Sequence[np.ndarray],
    inside: np.ndarray,
) -> float:
    """How much is hidden, in pixels; large where it cannot be read."""
    cost = 0.0
    for other in taken:
        width = min(box[2], other[2]) - max(box[0], other[0])
        height = min(box[3], other[3]) - max(box[1], other[1])
        if width > 0 and height > 0:
            cost += 300 + width * height
    outside = np.maximum(0, inside[:2] - box[:2]).sum() + np.maximum(0, box[2:] - inside[2:]).sum()
    cost += 100 * outside
    end = np.clip(point, box[:2], box[2:])
    lead = np.concatenate([point, end])
    cost += 150 * sum(_meet(lead, other) for other in leads)
    cost += 150 * sum(_passes(other, box) for other in leads)
    if math.dist(point, end) > _LED:
        cost += 60 * sum(_passes(lead, other) for other in taken)
    return cost


def _passes(line: np.ndarray, box: np.ndarray) -> bool:
    """Whether a line [x0, y0, x1, y1] goes through a box, other than where it begins."""
    along = np.linspace(0.15, 1, 30)[:, None]
    spots = line[:2] + along * (line[2:] - line[:2])
    return bool(np.any(np.all((spots > box[:2]) & (spots < box[2:]), axis=1)))


def _meet(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two lines [x0, y0, x1, y1] cross."""

    def side(line: np.ndarray, spot: np.ndarray) -> float:
        (ax, ay), (bx, by) = line[2:] - line[:2], spot - line[:2]
        return float(ax * by - ay * bx)

    return (
        side(one, other[:2]) * side(one, other[2:]) < 0
        and side(other, one[:2]) * side(other, one[2:]) < 0
    )


def _lead(axes: Any, point: np.ndarray, end: np.ndarray, dpi: float, name: Name) -> Any:
    return axes.annotate(
        "",
        (name.x, name.y),
        tuple((end - point) * 72 / dpi),
        textcoords="offset points",
        arrowprops={
            "arrowstyle": "-",
            "color": name.colour,
            "linewidth": 0.7,
            "shrinkA": 0,
            "shrinkB": 4,
            "alpha": 0.8,
        },
    )
