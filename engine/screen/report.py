"""A run's page: checkpoints/report.html, one file without scripts or links, drawn from metrics.jsonl alone.

It shows the losses, the objectives of the lookahead core, a passage with the predicted and the actual loss at each
token, and counts of saves, spikes and other events. Every text in it is escaped.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import storage
from engine.formatting import count, duration
from engine.screen.console import run_sentences
from engine.screen.history import History, Points, read_history
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
COLOURS = ("#2458b3", "#c2571a", "#2b8a5c", "#8a3fa0")
INCIDENTS = {"save": "saves", "resume": "resumes", "skip": "skipped steps", "spike": "spikes", "rollback": "rollbacks"}


def listener(folder: Callable[[], Path], warn: Callable[[str], None]) -> Callable[[Event], None]:
    """What draws the page after each evaluation and save of a run, in the folder of that moment.

    metrics.jsonl is read once, then each event is added. A failure is a warning.
    """
    history: History | None = None

    def update(event: Event) -> None:
        nonlocal history
        draws = event["event"] in ("evaluation", "save")
        try:
            if history is not None:
                history.add(event)
            elif draws:
                history = read_history(folder())  # this event is in it
            if history is not None and draws:
                storage.write_atomic(folder() / FILE_NAME, _page(history).encode())
        except Exception as error:  # a full disk, or a line of metrics.jsonl with a flipped bit
            why = storage.os_error_reason(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            warn(f"{FILE_NAME} could not be written ({why}). Training goes on without it.")

    return update


def page(events: Iterable[Event]) -> str:
    """The page of a folder's events, in the order in which they were written."""
    history = History()
    for event in events:
        history.add(event)
    return _page(history)


def _page(history: History) -> str:
    run, evaluation = history.latest.get("run"), history.latest.get("evaluation")
    name = as_html(run["preset"]["name"] if run else "a run")
    parts = [f"<h1>{name}</h1>", _summary(history), *_losses(history)]
    if evaluation:
        if passage := evaluation.get("passage"):
            parts.append(_lookahead(evaluation["step"], passage))
        if sample := evaluation.get("sample"):
            parts.append(f"<h2>A sample</h2><pre><b>{as_html(sample['prompt'])}</b>{as_html(sample['text'])}</pre>")
    counts = ", ".join(f"{history.counts[kind]:,} {word}" for kind, word in INCIDENTS.items())
    lines = "".join(f"<li>{as_html(event['name'])}: {as_html(event['message'])}</li>" for event in history.dropped)
    parts.append(f"<h2>Events</h2><p>{counts}.</p><ul>{lines}</ul>")
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
    return f"<!doctype html>\n<html><head>{head}</head>\n<body>\n{body}\n</body></html>\n"


def _summary(history: History) -> str:
    sentences: list[str] = []
    if run := history.latest.get("run"):
        starts = f"Starts so far: {history.counts['run']:,}, the latest on {time.ctime(run['time'])}."
        sentences = [*run_sentences(run), starts]
    if last := history.latest.get("step"):
        tokens = f"{last['tokens']:,} of this run ({last['share']:.1%}), {last['tokens_total']:,} in all"
        speed = f"{count(last['tokens_per_second'])} tokens/s, ETA {duration(last['eta_seconds'])}"
        sentences.append(f"Tokens: {tokens}. Throughput: {speed}.")
    return "".join(f"<p>{as_html(sentence)}</p>" for sentence in sentences)


def _losses(history: History) -> Iterator[str]:
    yield "<h2>Loss, nats per token</h2>"
    yield _chart(history.points("loss"))
    if last := history.latest.get("evaluation"):
        loss = f"Validation loss {last['ce']:.4f}, perplexity {last['perplexity']:.2f}"
        yield f"<p>{loss}, {last['bits_per_byte']:.4f} bits per byte.</p>"
    for title, section in (("Loss by source, nats per token", "sources"), ("Lookahead core", "auxiliary")):
        curves = list(history.points(section).items())
        if len(curves) > (section == "sources"):  # the loss of a single source is drawn above
            yield f"<h2>{title}</h2>"
            for first in range(0, len(curves), len(COLOURS)):
                yield _chart(dict(curves[first : first + len(COLOURS)]))


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


def _chart(curves: dict[str, Points]) -> str:
    """The named curves on common axes; a sentence where none has a point."""
    curves = {name: points for name, points in curves.items() if points}
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
