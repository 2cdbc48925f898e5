"""Curves as SVG that stand still: for paper, and where the plotting library is missing. Colours come from style.css."""

import math

from engine.formatting import count
from engine.screen.report.history import Points
from engine.screen.text import as_html

WIDTH, HEIGHT = 520, 220  # in the drawing's own units
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 24  # margins
COLOURS = 8

Mark = tuple[float, str, str]  # tokens, kind, words


def drawing(title: str, curves: dict[str, Points], marks: list[Mark], last: float, percent: bool = False) -> str:
    """The named curves on common axes, from 0 to `last` tokens, with ticks; nothing where no curve has a point."""
    figures = [y for points in curves.values() for _, y in points]
    if not figures:
        return ""
    low, high = min(figures), max(figures)
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    low, high, last = low - margin, high + margin, last or 1.0

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * x / last

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low)

    parts = []
    for y in ticks(low, high):
        at = f"{down(y):.1f}"
        parts.append(f'<path class="grid" d="M{LEFT} {at}H{WIDTH - RIGHT}"/>')
        label = figure(y, percent)
        parts.append(f'<text x="{LEFT - 6}" y="{at}" dy="0.32em" text-anchor="end">{label}</text>')
    for x in ticks(0, last, 4):
        end = "end" if across(x) > WIDTH - 40 else "middle"
        parts.append(f'<text x="{across(x):.1f}" y="{HEIGHT - 6}" text-anchor="{end}">{count(x)}</text>')
    for x, kind, words in marks:
        if x <= last:
            line = f'<path class="mark {kind}" d="M{across(x):.1f} {TOP}V{HEIGHT - BOTTOM}">'
            parts.append(f"{line}<title>{as_html(words)}</title></path>")
    for number, (name, points) in enumerate(curves.items()):
        style = f'style="--curve: var(--curve-{number % COLOURS})"'
        where = [(across(x), down(y)) for x, y in points]
        words = f"<title>{as_html(name)}</title>"
        if len(points) > 1:
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in where)
            parts.append(f'<polyline class="curve" {style} points="{line}">{words}</polyline>')
        elif where:
            x, y = where[0]
            parts.append(f'<circle class="curve" {style} cx="{x:.1f}" cy="{y:.1f}" r="2.5">{words}</circle>')
    frame = f'class="still" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{as_html(title)}"'
    return f"<svg {frame}>{''.join(parts)}</svg>"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`, about `wanted` of them."""
    least = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if power * factor >= least)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def figure(value: float, percent: bool = False) -> str:
    """A figure beside a curve or an axis."""
    if percent:
        return f"{value:.3g}%" if abs(value := 100 * value) < 1000 else f"{value:.0f}%"
    if abs(value) >= 1000:
        return ("-" if value < 0 else "") + count(abs(value))
    if value and abs(value) < 1e-2:
        digits, power = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:.4g}"
