"""What evaluations show of the model: texts that it wrote over time, and a passage with what it foresaw."""

from typing import Any

from engine.formatting import count
from engine.screen.report.history import History
from engine.screen.report.markup import section, text
from engine.screen.text import Event, as_html, lookahead

OPEN = 2  # samples that are shown at once


def samples(history: History) -> str:
    """Samples, the newest first."""
    items = [_sample(event) for event in reversed(list(history.samples))]
    if not items:
        return ""
    body = '<p class="quiet">The prompt, in bold, is validation text; the model writes on. The newest comes first.</p>'
    body += "".join(items[:OPEN])
    if older := items[OPEN:]:
        words = f"{len(older)} earlier {'sample' if len(older) == 1 else 'samples'}"
        body += f"<details><summary>{words}</summary>{''.join(older)}</details>"
    return section("samples", "What it writes", body)


def _sample(event: Event) -> str:
    sample = event["sample"]
    tokens, loss = event["tokens_total"], event["ce"]
    at = f"{count(tokens or 0)} tokens" + (f", validation loss {loss:.3f}" if isinstance(loss, float) else "")
    written = f"<b>{text(sample['prompt'])}</b>{text(sample['text'])}"
    return f'<article class="sample"><h3>{at}</h3><p class="text">{written}</p></article>'


def passage(history: History) -> str:
    """Each token over the loss expected there (its shade) and the realised one (the line below it)."""
    event = history.latest.get("evaluation", {})
    places = event.get("passage")
    if not places:
        return ""
    horizons = list(places[0]["expected_nll"])
    horizon = horizons[min(1, len(horizons) - 1)] if horizons else None
    keys = ("expected_nll", "realised_nll")
    nlls = [here[key][horizon] for here in places for key in keys if here[key].get(horizon) is not None]
    low, high = (min(nlls), max(nlls)) if nlls else (0.0, 1.0)

    def shade(nll: float | None) -> str:
        """From 0 at the passage's lowest loss to 1 at its highest."""
        return "0" if nll is None else f"{(nll - low) / max(1e-9, high - low):.2f}"

    spans = []
    for at, here in enumerate(places):
        expected, realised = (here[key].get(horizon) for key in keys)
        words = as_html("\n".join(_words(places, at, horizon, expected, realised)))
        style = f"--expected: {shade(expected)}; --realised: {shade(realised)}"
        spans.append(f'<span style="{style}" title="{words}" tabindex="0">{as_html(here["token"])}</span>')
    legend = "What the model foresees at each token, before it reads on: point at one to see its guesses and the text."
    scale = ""
    if horizon is not None:
        legend += (
            f" The shade is the loss that it expects of the next {horizon} tokens (the value); the line below is the "
            "realised loss. Where both have one colour, it knew how hard the text would be."
        )
        ends = f"<span>{low:.2f} nats</span><i></i><span>{high:.2f} nats</span>"
        scale = f'<p class="scale" aria-hidden="true">{ends}</p>'
    body = (
        f'<p class="quiet">{legend}</p>{scale}<p class="passage">{"".join(spans)}</p>'
        f'<p class="quiet" id="foreseen" aria-live="polite">For example, {as_html(lookahead(places))}.</p>'
    )
    return section("passage", f"What it foresees, at step {event['step']:,}", body)


def _words(
    places: list[dict[str, Any]], at: int, horizon: str | None, expected: float | None, realised: float | None
) -> list[str]:
    """What pointing at a token says, in lines."""
    lines = [] if expected is None else [f"loss of the next {horizon} tokens: expected {expected:.2f}"]
    lines += [] if realised is None else [f"realised {realised:.2f}"]
    for ahead, guesses in enumerate(places[at]["guesses"], 1):
        actual = repr(places[at + ahead]["token"]) if at + ahead < len(places) else "?"
        guessed = ", ".join(f"{token!r} {share:.0%}" for token, share in guesses)
        lines.append(f"+{ahead}: {guessed}; the text has {actual}")
    return lines
