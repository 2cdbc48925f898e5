"""Curves over tokens, drawn as one SVG element without scripts."""

import math

from engine.formatting import count
from engine.screen.text import as_html

WIDTH, HEIGHT, MARGIN = 640, 200, 44  # in pixels
MAX_POINTS = 400  # of a curve; longer ones are averaged
COLOURS = ("#2458b3", "#c2571a", "#2b8a5c", "#8a3fa0")

Curve = list[tuple[float, float]]  # tokens over all runs, and a figure


def chart(curves: dict[str, Curve]) -> str:
    """The named curves on common axes; a sentence where none has a point."""
    curves = {name: _average(points) for name, points in curves.items() if points}
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return '<p class="small">Nothing yet.</p>'
    right, low, high = max(x for x, _ in points), min(y for _, y in points), max(y for _, y in points)

    def place(x: float, y: float) -> str:
        across = MARGIN + (WIDTH - 2 * MARGIN) * x / max(right, 1)
        return f"{across:.1f},{HEIGHT - 24 - (HEIGHT - 48) * (y - low) / ((high - low) or 1.0):.1f}"

    parts = [
        f'<text x="2" y="28">{high:.3g}</text><text x="2" y="{HEIGHT - 24}">{low:.3g}</text>',
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 4}" text-anchor="end">{count(right)} tokens</text>',
        f'<path d="M{place(0, low)} H{WIDTH - MARGIN}" stroke="#bbb" fill="none"/>',
    ]
    for number, (name, curve) in enumerate(curves.items()):
        colour, across = COLOURS[number % len(COLOURS)], MARGIN + number * (WIDTH - MARGIN) // len(COLOURS)
        line = " ".join(place(x, y) for x, y in curve)
        parts += [
            f'<polyline points="{line}" stroke="{colour}" fill="none" stroke-width="1.5"/>',
            f'<text x="{across}" y="12" style="fill: {colour}">{as_html(name[:18])} {curve[-1][1]:.3g}</text>',
        ]
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">{"".join(parts)}</svg>'


def _average(points: Curve) -> Curve:
    """At most MAX_POINTS, each the mean of its neighbours."""
    width = math.ceil(len(points) / MAX_POINTS)
    groups = [points[first : first + width] for first in range(0, len(points), width)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
