"""A run's page: checkpoints/report.html, one file without scripts or links, drawn from metrics.jsonl alone.

It shows the losses, the objectives of the lookahead core, a passage with the predicted and the actual loss at each
token, and counts of saves, spikes and other events. Every text in it is escaped.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import storage
from engine import events
from engine.formatting import count, duration
from engine.screen.console import run_sentences
from engine.screen.text import Event, as_html, lookahead

FILE_NAME = "report.html"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 46em; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.4em } h2 { font-size: 1.1em; margin-top: 2em }
svg { max-width: 100%; height: auto } svg text { font-size: 11px; fill: #555 } .small { color: #555; font-size: 13px }
.passage { font: 14px/2.2 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
.passage span { border-bottom: 4px solid; padding-bottom: 1px } pre { white-space: pre-wrap; background: #f5f5f5 }
"""
WIDTH, HEIGHT, MARGIN = 640, 200, 44  # in pixels
MAX_POINTS = 400  # of a curve; longer ones are averaged
COLOURS = ("#2458b3", "#c2571a", "#2b8a5c", "#8a3fa0")
INCIDENTS = {"save": "saves", "resume": "resumes", "skip": "skipped steps", "spike": "spikes", "rollback": "rollbacks"}

Curve = list[tuple[float, float]]  # tokens over all runs, and a figure


def listener(folder: Callable[[], Path], warn: Callable[[str], None]) -> Callable[[Event], None]:
    """What draws the page after each evaluation and save of a run; a failure is a warning."""

    def update(event: Event) -> None:
        if event["event"] not in ("evaluation", "save"):
            return
        try:
            storage.write_atomic(folder() / FILE_NAME, page(events.read(folder())).encode())
        except Exception as error:  # a full disk, or a line of metrics.jsonl with a flipped bit
            why = storage.os_error_reason(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            warn(f"{FILE_NAME} could not be written ({why}). Training goes on without it.")

    return update


def page(events: Sequence[Event]) -> str:
    """The page of a folder's events, in the order in which they were written."""
    by_kind: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_kind[event["event"]].append(event)
    runs, steps, evaluations = by_kind["run"], by_kind["step"], by_kind["evaluation"]
    name = as_html(runs[-1]["preset"]["name"] if runs else "a run")
    parts = [f"<h1>{name}</h1>", _summary(runs, steps), *_losses(steps, evaluations)]
    for last in evaluations[-1:]:
        if passage := last.get("passage"):
            parts.append(_lookahead(last["step"], passage))
        if sample := last.get("sample"):
            parts.append(f"<h2>A sample</h2><pre><b>{as_html(sample['prompt'])}</b>{as_html(sample['text'])}</pre>")
    counts = ", ".join(f"{len(by_kind[kind]):,} {word}" for kind, word in INCIDENTS.items())
    dropped = [event for event in by_kind["source"] if event["what"] == "dropped"]
    lines = "".join(f"<li>{as_html(event['name'])}: {as_html(event['message'])}</li>" for event in dropped)
    parts.append(f"<h2>Events</h2><p>{counts}.</p><ul>{lines}</ul>")
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
    return f"<!doctype html>\n<html><head>{head}</head>\n<body>\n{body}\n</body></html>\n"


def _summary(runs: list[Event], steps: list[Event]) -> str:
    sentences: list[str] = []
    for run in runs[-1:]:
        sentences = [*run_sentences(run), f"Starts so far: {len(runs):,}, the latest on {time.ctime(run['time'])}."]
    for last in steps[-1:]:
        tokens = f"{last['tokens']:,} of this run ({last['share']:.1%}), {last['tokens_total']:,} in all"
        speed = f"{count(last['tokens_per_second'])} tokens/s, ETA {duration(last['eta_seconds'])}"
        sentences.append(f"Tokens: {tokens}. Throughput: {speed}.")
    return "".join(f"<p>{as_html(sentence)}</p>" for sentence in sentences)


def _losses(steps: list[Event], evaluations: list[Event]) -> Iterator[str]:
    def curve(events: list[Event], key: str) -> Curve:
        """A figure over the tokens of all runs, where both are known."""
        points = ((event.get("tokens_total"), event.get(key)) for event in events)
        return [(tokens, figure) for tokens, figure in points if tokens is not None and figure is not None]

    yield "<h2>Loss, nats per token</h2>"
    yield _chart({"training": curve(steps, "loss"), "validation": curve(evaluations, "ce")})
    for last in evaluations[-1:]:
        loss = f"Validation loss {last['ce']:.4f}, perplexity {last['perplexity']:.2f}"
        yield f"<p>{loss}, {last['bits_per_byte']:.4f} bits per byte.</p>"
    for title, section in (("Loss by source, nats per token", "sources"), ("Lookahead core", "auxiliary")):
        figures = [{**(step.get(section) or {}), "tokens_total": step.get("tokens_total")} for step in steps]
        names = list(dict.fromkeys(name for step in steps for name in step.get(section) or {}))
        if len(names) > (section == "sources"):  # the loss of a single source is drawn above
            yield f"<h2>{title}</h2>"
            for first in range(0, len(names), len(COLOURS)):
                yield _chart({name: curve(figures, name) for name in names[first : first + len(COLOURS)]})


def _lookahead(step: int, passage: list[dict[str, Any]]) -> str:
    """Each token over the loss predicted there (its shade) and the actual one (the line below it)."""
    horizons = list(passage[0]["expected_nll"])
    horizon = horizons[min(1, len(horizons) - 1)] if horizons else None
    nlls = [here[key][horizon] for here in passage for key in ("expected_nll", "realised_nll") if horizon in here[key]]

    def shade(nll: float | None) -> str:
        """From white at the passage's lowest loss to orange at its highest."""
        if nll is None:
            return "transparent"
        return f"rgba(230, 120, 20, {(nll - min(nlls)) / max(1e-9, max(nlls) - min(nlls)):.2f})"

    spans = []
    for at, here in enumerate(passage):
        expected, realised = (here[key].get(horizon) for key in ("expected_nll", "realised_nll"))
        lines = [] if expected is None else [f"loss of the next {horizon} tokens: predicted {expected:.2f}"]
        lines += [] if realised is None else [f"actual {realised:.2f}"]
        for place, guesses in enumerate(here["guesses"], 1):
            actual = repr(passage[at + place]["token"]) if at + place < len(passage) else "?"
            guessed = ", ".join(f"{token!r} {share:.0%}" for token, share in guesses)
            lines.append(f"+{place}: {guessed}; actual {actual}")
        style = f"background: {shade(expected)}; border-color: {shade(realised)}"
        title = as_html("\n".join(lines))
        spans.append(f'<span style="{style}" title="{title}">{as_html(here["token"])}</span>')
    legend = "What the model predicts at each token, before it reads on: point at one to see its guesses and the text."
    if horizon is not None:
        legend += f" The darker a token, the higher the predicted loss of the next {horizon} tokens; the line below it "
        legend += "shows the actual loss."
    return (
        f'<h2>Lookahead at step {step:,}</h2><p class="small">{legend}</p>'
        f'<div class="passage">{"".join(spans)}</div><p>For example, {as_html(lookahead(passage))}.</p>'
    )


def _chart(curves: dict[str, Curve]) -> str:
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
