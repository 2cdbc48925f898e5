"""The curve of the panel, read back from its braille dots."""

import math
from itertools import pairwise

import pytest

from engine.screen.live.chart import DOTS, MARK, draw, smooth, y_range

STYLES = ("cyan", "yellow")
FALLING = [(1000.0 * x, 3 + 7 * math.exp(-x / 20)) for x in range(200)]


def dots(lines: list) -> list[tuple[int, int]]:
    """The dots of a chart, from the left and from the top, without its axes."""
    found = []
    for row, line in enumerate(lines[:-1]):
        text = line.plain.split("│")[-1].split("┤")[-1]
        for column, character in enumerate(text):
            if 0x2800 < ord(character) < 0x2900:
                bits = ord(character) - 0x2800
                found += [(2 * column + x, 4 * row + y) for x in (0, 1) for y in range(4) if bits & DOTS[x][y]]
    return found


@pytest.mark.parametrize(("width", "height"), [(30, 4), (78, 8), (150, 40)])
def test_a_falling_curve_falls_from_left_to_right(width: int, height: int):
    lines = draw(FALLING, [], width, height, STYLES)
    assert len(lines) == height and all(line.cell_len <= width for line in lines)
    heights = {}
    for x, y in dots(lines):
        heights.setdefault(x, []).append(y)
    means = [sum(ys) / len(ys) for _, ys in sorted(heights.items())]
    assert len(means) > width and all(one <= other for one, other in pairwise(means))
    assert max(max(ys) for ys in heights.values()) >= 0.9 * 4 * (height - 1) - 1, "it ends near the bottom"


def test_the_axes_name_losses_and_tokens():
    lines = [line.plain for line in draw(FALLING, [], 78, 10, STYLES)]
    labels = [float(line.split("┤")[0]) for line in lines if "┤" in line]
    assert labels == sorted(labels, reverse=True) and labels[-1] < 3.1 and 4 < labels[0] < 7
    assert lines[-1].split() == ["0", "99.5k", "199k"]


def test_evaluations_are_marks_where_they_belong():
    inside, outside = (100_000.0, 3.2), (900_000.0, 3.0)
    lines = draw(FALLING, [inside, outside], 80, 10, STYLES)
    ((row, column),) = [(row, line.plain.index(MARK)) for row, line in enumerate(lines) if MARK in line.plain]
    assert 40 <= column <= 46 and row >= 6
    assert any(span.style == "yellow" for span in lines[row].spans)


@pytest.mark.parametrize("curve", [[], [(5.0, 2.0)], [(0.0, 2.0), (0.0, 2.0)], [(0.0, 1e-9), (10.0, 1e9)]])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (5, 3), (20, 2), (40, 6)])
def test_any_curve_in_any_size_has_its_lines(curve, width: int, height: int):
    lines = draw(curve, [(5.0, 2.0)], width, height, STYLES)
    assert len(lines) == height and all(line.cell_len <= max(width, 0) for line in lines)


def test_smoothing_lags_behind_no_slope_and_softens_a_jump():
    slope = [(float(x), 2.0 * x) for x in range(300)]
    assert smooth(slope)[:-5] == slope[:-5] and smooth([(0.0, 2.0)]) == [(0.0, 2.0)]
    jump = [(float(x), float(x >= 150)) for x in range(300)]
    assert 0.3 < smooth(jump)[150][1] < 0.7
    low, high = y_range([3.0, 3.0])
    assert low < 3.0 < high


def test_many_evaluations_leave_the_curve_to_be_seen():
    lines = draw(FALLING, [(1000.0 * x, 3.5) for x in range(200)], 80, 10, STYLES)
    marks = sum(line.plain.count(MARK) for line in lines)
    assert 10 <= marks <= 16 and MARK in lines[7].plain[-4:] + lines[6].plain[-4:] + lines[5].plain[-4:]
