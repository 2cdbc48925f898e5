"""A curve in braille characters, each of two columns and four rows of dots, with marks in place of whole characters.

plotext draws more kinds of charts than this one. It keeps one figure for the whole process, which a drawing thread
would share with whoever else plots; it writes colours whatever NO_COLOR says; and its functions had other names from
version 5 to 6.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from rich.text import Text

from engine.formatting import count

Point = tuple[float, float]

DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of U+2800, by column and row
MARK = "◆"
AXIS = "dim"
CELLS_OF_A_MARK = 5  # there is no more than one mark in so many columns
SKIPPED = 0.1  # of a curve's points, the first ones, which may leave the chart at its top
SMOOTHED = 60  # of a curve's points, one in so many is averaged on either side of a point


def draw(
    curve: Sequence[Point], marks: Iterable[Point], width: int, height: int, styles: tuple[str, str]
) -> list[Text]:
    """Return `height` lines of `width` characters: a smoothed curve over tokens, and marks; `styles` are theirs.

    The last line has the ticks of the x axis. A chart of fewer than three lines, or without points, is empty.
    """
    marks = [mark for mark in marks if curve and curve[0][0] <= mark[0] <= curve[-1][0]]
    rows, labels = height - 1, max(2, min(7, (height - 1) // 4 + 1))
    if not curve or rows < 2:
        return [Text() for _ in range(height)]
    curve = smooth(curve)
    low, high = y_range([y for _, y in curve[int(SKIPPED * len(curve)) :]] + [y for _, y in marks[-1:]])
    ticks = {round(i * (rows - 1) / (labels - 1)): high - (high - low) * i / (labels - 1) for i in range(labels)}
    decimals = 2 if high - low < 20 else 1
    margin = max(len(f"{tick:.{decimals}f}") for tick in ticks.values())
    columns = width - margin - 2
    if columns < 8:
        return [Text() for _ in range(height)]
    begin, end = curve[0][0], max(curve[-1][0], curve[0][0] + 1)

    def place(point: Point) -> tuple[int, int]:
        """A point's dot, counted from the left and from the top."""
        x, y = (point[0] - begin) / (end - begin), (high - point[1]) / (high - low)
        return round(x * (2 * columns - 1)), round(y * (4 * rows - 1))

    marks = marks[:: -1 - len(marks) * CELLS_OF_A_MARK // columns]  # not so many that they hide the curve
    cells = [[0] * columns for _ in range(rows)]
    dots = [place(point) for point in curve]
    for x, y in dots if len(dots) == 1 else (dot for pair in pairwise(dots) for dot in _line(*pair)):
        if 0 <= y < 4 * rows:
            cells[y // 4][x // 2] |= DOTS[x % 2][y % 4]
    marked = {(x // 2, y // 4) for x, y in map(place, marks)}
    lines = []
    for row in range(rows):
        label = f"{ticks[row]:.{decimals}f}" if row in ticks else ""
        line = Text.assemble((f"{label:>{margin}} {'┤' if label else '│'}", AXIS))
        dotted = [chr(0x2800 + cell) if cell else " " for cell in cells[row]]
        here = [column for column in range(columns) if (column, row) in marked]
        for column in here:
            dotted[column] = MARK
        line.append("".join(dotted).rstrip(), styles[0])
        for column in here:
            line.stylize(styles[1], margin + 2 + column, margin + 3 + column)
        lines.append(line)
    return [*lines, _tokens_axis(begin, end, margin, columns)]


def smooth(curve: Sequence[Point]) -> list[Point]:
    """The means of each point and as many neighbours on either side, which lag behind no slope but at the end."""
    smoothed, most = [], len(curve) // SMOOTHED
    for i, (x, _) in enumerate(curve):
        side = min(most, i)
        around = curve[i - side : i + side + 1]
        smoothed.append((x, sum(y for _, y in around) / len(around)))
    return smoothed


def y_range(values: Sequence[float]) -> tuple[float, float]:
    """Where the y axis begins and ends for these values; never the same twice."""
    low, high = min(values), max(values)
    room = max(0.04 * (high - low), 0.005 * abs(high), 1e-3)
    return low - room, high + room


def _line(start: tuple[int, int], end: tuple[int, int]) -> Iterable[tuple[int, int]]:
    """The dots from one dot to another."""
    (x, y), (to_x, to_y) = start, end
    steps = max(abs(to_x - x), abs(to_y - y), 1)
    for step in range(steps + 1):
        yield x + round((to_x - x) * step / steps), y + round((to_y - y) * step / steps)


def _tokens_axis(begin: float, end: float, margin: int, columns: int) -> Text:
    """Tokens below the left end, the middle and the right end."""
    left, middle, right = (count(x) for x in (begin, (begin + end) / 2, end))
    axis = f"{left}{middle:^{columns - len(left) - len(right)}}{right}"
    return Text(" " * (margin + 2) + axis[:columns], AXIS)
