"""Names at points: none hides another, a point or an obstacle, and all are in the frame."""

import numpy as np
import pytest

from jax_power_smc.report import labels, style

FRAME = np.array([0.0, 0.0, 900.0, 500.0])


def overlaps(one, other):
    return bool(np.all(np.minimum(one[2:], other[2:]) > np.maximum(one[:2], other[:2])))


def place(points, sizes, obstacles):
    corners = labels.arrange(points, sizes, obstacles, FRAME)
    return np.concatenate([corners, corners + sizes], axis=1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [[250.0], [20.0, 480.0], None])
def test_nothing_is_hidden(seed, levels):
    """Twelve long names, many at the same height, such as 0 % or 100 %."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(40, 860, 12)
    y = rng.uniform(10, 490, 12) if levels is None else rng.choice(levels, 12)
    points = np.stack([x, y], axis=1)
    sizes = np.stack([rng.uniform(60, 200, 12), np.full(12, 13.0)], axis=1)
    obstacles = np.concatenate([points - 7, points + 7], axis=1)
    boxes = place(points, sizes, obstacles)
    for i in range(12):
        assert not any(overlaps(boxes[i], boxes[j]) for j in range(i))
        assert not any(overlaps(boxes[i], obstacle) for obstacle in obstacles)
    assert np.all(boxes[:, :2] >= FRAME[:2]) and np.all(boxes[:, 2:] <= FRAME[2:])


def test_a_name_alone_is_right_of_its_point():
    ((x0, y0, _, y1),) = place(
        np.array([[400.0, 250.0]]), np.array([[80.0, 13.0]]), np.zeros((0, 4))
    )
    assert 0 < x0 - 400 < 20 and y0 < 250 < y1


def test_at_the_right_edge_it_is_left_of_it():
    ((_, _, x1, _),) = place(np.array([[880.0, 250.0]]), np.array([[80.0, 13.0]]), np.zeros((0, 4)))
    assert x1 < 880


def test_names_at_the_same_point_stand_around_it():
    boxes = place(np.full((4, 2), 250.0), np.tile([90.0, 13.0], (4, 1)), np.zeros((0, 4)))
    assert not any(overlaps(boxes[i], boxes[j]) for i in range(4) for j in range(i))


def test_what_passes_through_a_box_and_what_does_not():
    box = np.array([[10.0, 10.0, 20.0, 20.0]])
    lines = np.array(
        [[0, 15, 30, 15], [0, 0, 30, 30], [0, 0, 5, 30], [12, 12, 13, 13], [0, 0, 9, 9.0]]
    )
    assert labels._pass(lines, box)[:, 0].tolist() == [True, True, False, True, False]


def test_lines_that_cross():
    one = np.array([[0.0, 0.0, 10.0, 10.0]])
    others = np.array([[0, 10, 10, 0], [0, 1, 10, 11], [20, 30, 30, 20.0]])
    assert labels._meet(one, others).tolist() == [[True, False, False]]


def test_written_names_are_where_they_were_measured():
    figure = style.new_figure(4.0)
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    names = [labels.Name(5, 5, f"name $number {i}", "#d55e00") for i in range(6)]
    mark = axes.transData.transform((5, 5))
    texts = labels.write_names(figure, axes, names, [[*(mark - 7), *(mark + 7)]])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in texts]
    assert [text.get_text() for text in texts] == [name.text for name in names]
    assert not any(boxes[i].overlaps(boxes[j]) for i in range(6) for j in range(i))
    # Six do not fit next to the point: lines lead to some.
    assert len([a for a in axes.texts if a.get_text() == ""]) > 0
