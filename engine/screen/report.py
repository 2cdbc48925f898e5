"""A run's page: checkpoints/report.html, one file without scripts or links, drawn from metrics.jsonl alone.

It shows how loss and held-out figures went, what the latent core's objectives did, a passage with the difficulty that
the model expected at each token beside the one that came, and what happened on the way. Every text in it is escaped.
"""

import html
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import storage
from engine import events
from engine.screen.console import count, duration, printable

FILE_NAME = "report.html"
WIDTH, HEIGHT, MARGIN = 640, 200, 44  # of a drawing, in pixels
POINTS = 400  # of a curve; longer ones are averaged
COLOURS = ("#2458b3", "#c2571a", "#2b8a5c", "#8a3fa0")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 46em; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.4em } h2 { font-size: 1.1em; margin-top: 2em } td, th { padding: 0 1em 0 0; text-align: left }
svg { max-width: 100%; height: auto } svg text { font-size: 11px; fill: #555 } .small { color: #555; font-size: 13px }
.passage { font: 14px/2.2 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
.passage span { border-bottom: 4px solid; padding-bottom: 1px } pre { white-space: pre-wrap; background: #f5f5f5 }
"""

Curve = list[tuple[float, float]]  # tokens over all runs, and a figure


def write(folder: Path) -> None:
    """Draws the page anew. Raises OSError where it cannot be written."""
    storage.write_atomic(folder / FILE_NAME, page(events.read(folder)).encode())


def page(events: Sequence[dict[str, Any]]) -> str:
    """The page of a folder's events, in the order in which they were written."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        by_kind.setdefault(event["event"], []).append(event)
    runs, steps, evaluations = (by_kind.get(kind, []) for kind in ("run", "step", "evaluation"))
    name = runs[-1]["preset"]["name"] if runs else "a run"
    parts = [f"<h1>{_text(name)}</h1>", _summary(runs, steps)]
    parts += _figures(steps, evaluations)
    if passages := [event for event in evaluations if event.get("passage")]:
        parts.append(_passage(passages[-1]))
    if samples := [event for event in evaluations if event.get("sample")]:
        sample = samples[-1]["sample"]
        parts.append(f"<h2>A sample</h2><pre><b>{_text(sample['prompt'])}</b>{_text(sample['text'])}</pre>")
    parts.append(_incidents(events))
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>{_text(name)}</title><style>{STYLE}</style>'
    return f"<!doctype html>\n<html><head>{head}</head>\n<body>\n{body}\n</body></html>\n"


def _summary(runs: list[dict[str, Any]], steps: list[dict[str, Any]]) -> str:
    rows = []
    if runs:
        run, derived = runs[-1], runs[-1]["derived"]
        rows += [
            ("machine", run["machine"]),
            ("model", f"{count(derived['parameters'])} parameters, vocabulary {derived['vocab_size']:,}"),
            ("run", f"{derived['run']}; starts so far {len(runs):,}, the latest on {time.ctime(run['time'])}"),
        ]
    if steps:
        last = steps[-1]
        rows += [
            ("tokens", f"{last['tokens']:,} of this run ({last['share']:.1%}), {last['tokens_total']:,} in all"),
            ("speed", f"{count(last['tokens_per_second'])} tokens/s, to go {duration(last['eta_seconds'])}"),
        ]
    cells = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table>"


def _figures(steps: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> Iterable[str]:
    def curve(events: list[dict[str, Any]], *keys: str) -> Curve:
        found = []
        for event in events:
            value: Any = event
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, int | float) and event.get("tokens_total") is not None:
                found.append((event["tokens_total"], value))
        return found

    yield "<h2>Loss, nats a token</h2>"
    yield drawing({"training": curve(steps, "loss"), "held out": curve(evaluations, "ce")})
    if evaluations:
        last = evaluations[-1]
        yield (
            f"<p>Held out: CE {last['ce']:.4f}, perplexity {last['perplexity']:.2f}, "
            f"{last['bits_per_byte']:.4f} bits per byte.</p>"
        )
    for title, section in (("Loss by source, nats a token", "sources"), ("The latent core", "auxiliary")):
        names = list(dict.fromkeys(name for event in steps for name in event.get(section) or {}))
        if len(names) > (section == "sources"):  # of one source the loss is drawn above
            yield f"<h2>{title}</h2>"
            for first in range(0, len(names), len(COLOURS)):
                some = names[first : first + len(COLOURS)]
                yield drawing({name: curve(steps, section, name) for name in some})


def drawing(curves: dict[str, Curve]) -> str:
    """Curves over one scale of tokens and one of figures, as an SVG element."""
    curves = {name: _thinned(points) for name, points in curves.items() if points}
    every = [point for points in curves.values() for point in points]
    if not every:
        return '<p class="small">Nothing yet.</p>'
    right, low, high = max(x for x, _ in every), min(y for _, y in every), max(y for _, y in every)
    span = (high - low) or 1.0

    def place(x: float, y: float) -> str:
        across = MARGIN + (WIDTH - 2 * MARGIN) * x / max(right, 1)
        return f"{across:.1f},{HEIGHT - 24 - (HEIGHT - 48) * (y - low) / span:.1f}"

    parts = [
        f'<text x="2" y="28">{high:.3g}</text><text x="2" y="{HEIGHT - 24}">{low:.3g}</text>',
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 4}" text-anchor="end">{count(right)} tokens</text>',
        f'<path d="M{place(0, low)} H{WIDTH - MARGIN}" stroke="#bbb" fill="none"/>',
    ]
    for number, (name, points) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(place(x, y) for x, y in points)
        parts.append(f'<polyline points="{line}" stroke="{colour}" fill="none" stroke-width="1.5"/>')
        across = MARGIN + number * (WIDTH - MARGIN) // len(COLOURS)
        label = f"{_text(name[:18])} {points[-1][1]:.3g}"
        parts.append(f'<text x="{across}" y="12" style="fill: {colour}">{label}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">{"".join(parts)}</svg>'


def _thinned(points: Curve) -> Curve:
    """At most POINTS, each the mean of its neighbours."""
    width = math.ceil(len(points) / POINTS)
    groups = [points[first : first + width] for first in range(0, len(points), width)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _passage(event: dict[str, Any]) -> str:
    """Each token over the difficulty expected there (its shade) and the one that came (the line below it)."""
    passage = event["passage"]
    horizons = list(passage[0]["expected_nll"])
    horizon = horizons[min(1, len(horizons) - 1)] if horizons else None

    def places(at: int) -> Iterable[tuple[str, str, str]]:
        """What was expected 1, 2, ... tokens after one, and what came."""
        for place, guesses in enumerate(passage[at]["guesses"], 1):
            came = repr(passage[at + place]["token"]) if at + place < len(passage) else "?"
            yield f"{place} on", ", ".join(f"{token!r} {share:.0%}" for token, share in guesses), came

    every = [
        ahead[key][horizon] for ahead in passage for key in ("expected_nll", "realised_nll") if horizon in ahead[key]
    ]

    def shade(nll: float | None) -> str:
        """From white at the easiest place of the passage to orange at the hardest."""
        if nll is None:
            return "transparent"
        return f"rgba(230, 120, 20, {(nll - min(every)) / max(1e-9, max(every) - min(every)):.2f})"

    spans = []
    for at, ahead in enumerate(passage):
        expected, realised = (ahead[key].get(horizon) for key in ("expected_nll", "realised_nll"))
        told = [] if expected is None else [f"next {horizon} tokens: expected {expected:.2f} nats each"]
        told += [] if realised is None else [f"they cost {realised:.2f}"]
        told += [f"{place}: {guesses}; {came} came" for place, guesses, came in places(at)]
        style = f"background: {shade(expected)}; border-color: {shade(realised)}"
        spans.append(f'<span style="{style}" title="{_text(chr(10).join(told))}">{_text(ahead["token"])}</span>')
    legend = "What the model said at each token before it read on: point at one for its guesses and what came."
    if horizon is not None:
        legend += (
            f" The darker a token, the harder it expected the next {horizon} to be; the line below shows how hard they "
            "were."
        )
    middle = len(passage) // 2
    rows = "".join(f"<tr><td>{'</td><td>'.join(map(_text, row))}</td></tr>" for row in places(middle))
    before = "".join(ahead["token"] for ahead in passage[: middle + 1])[-60:]
    return (
        f'<h2>Looking ahead, at step {event["step"]:,}</h2><p class="small">{legend}</p>'
        f'<div class="passage">{"".join(spans)}</div><p>After {_text(repr(before))}:</p>'
        f"<table><tr><th></th><th>expected</th><th>came</th></tr>{rows}</table>"
    )


def _incidents(events: Sequence[dict[str, Any]]) -> str:
    kinds = Counter(event["event"] for event in events)
    words = {"save": "saves", "resume": "resumes", "skip": "skipped steps", "spike": "spikes", "rollback": "rollbacks"}
    told = ", ".join(f"{kinds[kind]:,} {word}" for kind, word in words.items())
    dropped = [event for event in events if event["event"] == "source" and event.get("what") == "dropped"]
    lines = "".join(f"<li>{_text(event['name'])}: {_text(event['message'])}</li>" for event in dropped)
    return f"<h2>On the way</h2><p>{told}.</p><ul>{lines}</ul>"


def _text(value: Any) -> str:
    """Any text as it may stand in HTML, in an attribute too."""
    return html.escape(printable(str(value)), quote=True)


class ReportPage:
    def __init__(self, folder: Path, warn):
        self.folder, self.warn = folder, warn

    def update(self, event: dict[str, Any]) -> None:
        if event["event"] == "evaluation":
            self.draw()

    def draw(self) -> None:
        try:
            write(self.folder)
        except Exception as error:
            why = storage.os_error_reason(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            self.warn(f"{FILE_NAME} could not be written ({why}); training goes on without it.")
