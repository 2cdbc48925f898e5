"""The page as a whole: what stands in it, in which order, and what the browser may do with it.

A content security policy names each script by its SHA-256 and allows no request at all. So a name that became a tag
would still run nothing, and the plotting library loads nothing.
"""

import base64
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from engine.formatting import about, count
from engine.screen.report import charts, evaluations, library, moments, preset, sources
from engine.screen.report.history import History
from engine.screen.report.markup import moment
from engine.screen.text import Event, as_html

PARTS = (
    ("curves", "Curves"),
    ("samples", "Samples"),
    ("passage", "Foresight"),
    ("sources", "Sources"),
    ("preset", "Preset"),
    ("events", "Events"),
)


def page_of_events(events: Iterable[Event]) -> str:
    """The page of a folder's events, in the order in which they were written."""
    history = History()
    for event in events:
        history.add(event)
    return page(history)


def page(history: History) -> str:
    """The page of what a history holds; with the plotting library in it where that is installed."""
    run = history.latest.get("run", {})
    name = as_html(run.get("preset", {}).get("name", "a run"))
    plotting = library.javascript()
    parts = [
        charts.as_section(history, interactive=plotting is not None),
        evaluations.samples(history),
        evaluations.passage(history),
        sources.as_section(history),
        preset.as_section(history),
        moments.as_section(history),
    ]
    links = "".join(f'<a href="#{key}">{word}</a>' for (key, word), part in zip(PARTS, parts, strict=True) if part)
    body = "\n".join([_header(history, name), f"<nav>{links}</nav>", "<main>", *filter(None, parts), "</main>"])
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(plotting)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{name} · Forethought</title><style>{_own('style.css')}</style></head>",
            f"<body>\n{body}\n{_footer(history, plotting)}",
            f'<script type="application/json" id="data">{charts.as_script_data(history)}</script>',
            f"<script>{plotting}</script>" if plotting is not None else "",
            f"<script>{_own('script.js')}</script></body></html>\n",
        ]
    )


def _header(history: History, name: str) -> str:
    run, step, evaluation = (history.latest.get(kind) for kind in ("run", "step", "evaluation"))
    number = run.get("derived", {}).get("run") if run else None
    lines = [f"Run {number} of the lineage" if number else "", f"on {as_html(run.get('machine'))}" if run else ""]
    tiles = []
    if evaluation:
        tiles += [
            (f"{evaluation['ce']:.4f}", "validation loss, nats per token"),
            (f"{evaluation['perplexity']:.2f}", "perplexity"),
            (f"{evaluation['bits_per_byte']:.4f}", "bits per byte"),
        ]
        if memory := evaluation.get("memory"):
            tiles.append((f"{memory['ce_without'] - memory['ce']:.4f}", "nats per token that memory saves behind it"))
    bar = ""
    if step:
        share = min(1.0, max(0.0, step["share"]))
        if not evaluation and step.get("loss") is not None:
            tiles.append((f"{step['loss']:.4f}", "training loss, nats per token"))
        tiles += [
            (count(step["tokens_total"]), "tokens in all"),
            (count(step["tokens_per_second"]), "tokens/s"),
        ]
        if step.get("mfu") is not None:
            tiles.append((f"{step['mfu']:.1%}", "of peak FLOP/s (MFU)"))
        bar = (
            f'<div class="progress"><i style="width: {share:.1%}"></i></div>'
            f'<p class="quiet">{step["tokens"]:,} tokens of this run ({share:.1%}), step {step["step"]:,}. '
            f"{_state(history, share)}</p>"
        )
    shown = "".join(f"<div><dt>{word}</dt><dd>{figure}</dd></div>" for figure, word in tiles)
    origin = f'<p class="quiet">{" ".join(filter(None, lines))}</p>'
    return f'<header><h1>{name}</h1>{origin}{bar}<dl class="tiles">{shown}</dl></header>'


def _state(history: History, share: float) -> str:
    """How a run ended, or how long it still takes."""
    end = history.latest.get("end")
    if share >= 1:
        return "Finished."
    if end is None:
        return f"{about(history.latest['step']['eta_seconds']).capitalize()} left."
    message = as_html(end.get("message") or "")
    return f'<span class="bad">Failed: {message}</span>' if end.get("how") == "failed" else message


def _footer(history: History, plotting: str | None) -> str:
    times = [event.get("time") or 0 for event in history.latest.values()]
    when = f"The latest event is of {moment(max(times))} UTC. " if any(times) else ""
    size = "" if plotting is None else f"{len(plotting) / 1e6:.1f} MB of this file are the plotting library BokehJS. "
    return f"<footer>{when}{size}Written by Forethought from metrics.jsonl; it asks no network for anything.</footer>"


def _policy(plotting: str | None) -> str:
    scripts = [_own("script.js")] + ([plotting] if plotting is not None else [])
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"


@functools.lru_cache(maxsize=4)
def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@functools.cache
def _own(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
