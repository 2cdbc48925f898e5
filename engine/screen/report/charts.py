"""Which curves the page shows: the history's sections as charts of a few curves, and what the script gets of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from engine.screen.report import stills
from engine.screen.report.history import History, Points
from engine.screen.report.markup import as_json, named, section
from engine.screen.text import as_html, printable

COLOURS = 8  # of style.css, --curve-0 and so on; also the curves of a chart
FEW = 40  # points; so few are drawn as dots too
MAX_MARKS = 100
LOSSES = ("training", "validation")

HELP = """<p class="quiet live-only">
<span class="fine">Drag to zoom, in all curves at once; double-click to see all again. Point at a place to read all
curves there.</span>
<span class="coarse">Tap a place to read all curves there; the tools beside a curve zoom.</span>
Press a name to hide its curve.</p>
<p class="live-only"><button type="button" id="all">Show all</button>
<button type="button" id="log-x" aria-pressed="false">Log tokens</button></p>"""
STILL = (
    "These curves stand still: the package bokeh, which makes them interactive, was not installed where this page was "
    "written (python -m pip install -r requirements.txt)."
)


@dataclass(frozen=True)
class Chart:
    """Curves on common axes."""

    key: str
    title: str
    unit: str
    curves: dict[str, Points]
    log: bool = False  # at first
    percent: bool = False


def charts(history: History) -> list[Chart]:
    """All charts that have a point, in the order of the page."""
    one = history.points
    sources = one("sources")
    several = len(sources) > 1 or len(one("validation")) > 1  # the curves of a single source are those of all text
    made = [Chart("loss", "Loss", "nats per token", {name: one("loss").get(name, []) for name in LOSSES})]
    if several:
        made += _split(Chart("sources", "Training loss by source", "nats per token", sources))
        made += _split(Chart("validation", "Validation loss by source", "nats per token", one("validation")))
        if one("weights"):
            made += _split(
                Chart("weights", "Weight by source", "share of tokens to come", one("weights"), percent=True)
            )
        made += _split(Chart("shares", "Tokens by source", "share of tokens read", one("shares"), percent=True))
    made.append(Chart("lr", "Learning rate", "", one("lr")))
    made.append(Chart("grad-norm", "Gradient norm", "before clipping", one("grad_norm"), log=True))
    made.append(Chart("rate", "Throughput", "tokens/s", one("rate")))
    made.append(Chart("waits", "Use of the machine", "share of peak FLOP/s and of time", one("waits"), percent=True))
    made += _split(Chart("auxiliary", "Auxiliary losses of the lookahead core", "means per step", one("auxiliary")))
    return [chart for chart in map(_drawn, made) if chart.curves]


def _drawn(chart: Chart) -> Chart:
    """The chart without curves that have no point."""
    return replace(chart, curves={name: points for name, points in chart.curves.items() if points})


def _split(chart: Chart) -> Iterator[Chart]:
    """A chart of many curves as several with COLOURS each."""
    curves = list(_drawn(chart).curves.items())
    parts = [dict(curves[first : first + COLOURS]) for first in range(0, len(curves), COLOURS)]
    for number, part in enumerate(parts):
        again = f" ({number + 1} of {len(parts)})" if len(parts) > 1 else ""
        key = f"{chart.key}-{number + 1}" if number else chart.key
        yield replace(chart, key=key, title=chart.title + again, curves=part)


def marks(history: History) -> list[tuple[float, str, str]]:
    """What stands as a line across a chart: its place in tokens, its kind and what it says, the latest MAX_MARKS."""
    found = [(tokens, "run", f"run {number}") for number, tokens in history.runs if number != 1]
    for kind in ("spike", "skip", "rollback"):
        found += [
            (one.tokens, kind, f"{kind} at step {one.event.get('step')}") for one in history.moments.get(kind, ())
        ]
    return sorted(found)[-MAX_MARKS:]


def as_section(history: History, interactive: bool) -> str:
    """The charts as HTML: still drawings, which the script replaces by interactive ones."""
    shown, lines = charts(history), marks(history)
    if not shown:
        return section("curves", "Curves", '<p class="quiet">Nothing yet.</p>')
    last = max(x for chart in shown for points in chart.curves.values() for x, _ in points)
    figures = "\n".join(_figure(chart, lines, last) for chart in shown)
    kinds = {kind for _, kind, _ in lines}
    words = {"run": "a run's start", "spike": "a spike", "skip": "a skipped step", "rollback": "a rollback"}
    key = ", ".join(f'<span class="mark {kind}">{word}</span>' for kind, word in words.items() if kind in kinds)
    text = "Over the tokens of all runs of this lineage." + (f" Lines across: {key}." if key else "")
    help = HELP if interactive else f'<p class="quiet" id="still">{STILL}</p>'
    return section("curves", "Curves", f'<p class="quiet">{text}</p>{help}<div class="charts">{figures}</div>')


def as_script_data(history: History) -> str:
    """What script.js draws, as JSON."""
    data: dict[str, Any] = {
        "charts": [
            {
                "key": chart.key,
                "log": chart.log,
                "percent": chart.percent,
                "curves": [
                    {
                        "name": printable(name),
                        "x": [round(x) for x, _ in points],
                        "y": [float(f"{y:.6g}") for _, y in points],
                        "dots": len(points) <= FEW,
                    }
                    for name, points in chart.curves.items()
                ],
            }
            for chart in charts(history)
        ],
        "marks": [{"x": round(x), "kind": kind} for x, kind, _ in marks(history)],
    }
    return as_json(data)


def _figure(chart: Chart, lines: list[tuple[float, str, str]], last: float) -> str:
    def entry(number: int, name: str, points: Points) -> str:
        value = stills.figure(points[-1][1], chart.percent)
        return (
            f'<li><button type="button" aria-pressed="true" style="--curve: var(--curve-{number % COLOURS})">'
            f'<span class="name">{named(name)}</span> <output>{value}</output></button></li>'
        )

    legend = "".join(entry(number, name, points) for number, (name, points) in enumerate(chart.curves.items()))
    unit = f' <span class="quiet">{as_html(chart.unit)}</span>' if chart.unit else ""
    pressed = str(chart.log).lower()
    button = f'<button type="button" class="log live-only" aria-pressed="{pressed}">Log</button>'
    return (
        f'<figure class="chart" id="chart-{chart.key}">'
        f"<figcaption><span><b>{as_html(chart.title)}</b>{unit}</span>{button}</figcaption>"
        f'<div class="plot" aria-hidden="true"></div>'
        f"{stills.drawing(chart.title, chart.curves, lines, last, chart.percent)}"
        f'<ul class="legend">{legend}</ul></figure>'
    )
