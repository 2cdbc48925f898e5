"""The events that a reader should know: spikes, skipped steps, rollbacks, resumes, advice, how a run ended, what
happened to sources."""

from engine.formatting import count
from engine.screen.report.history import History, Moment
from engine.screen.report.markup import moment, named, section, text
from engine.screen.text import as_html, plural

SHOWN = 30  # at once; the others are folded
WORDS = {
    "spike": "spike",
    "skip": "skipped step",
    "rollback": "rollback",
    "resume": "resume",
    "advice": "advice",
    "end": "end",
    "dropped": "source lost",
    "retry": "retry",
    "next_pass": "epoch",
    "skipped": "blocks skipped",
    "notice": "notice",
}
COUNTS = {"run": "start", "save": "save", "resume": "resume", "spike": "spike"}
COUNTS |= {"skip": "skipped step", "rollback": "rollback"}


def as_section(history: History) -> str:
    """Counts of everything, and the latest of what matters, newest first."""
    counted = ", ".join(plural(history.counts[kind], word) for kind, word in COUNTS.items())
    body = f"<p>{counted}.</p>"
    if save := history.latest.get("save"):
        body += f'<p class="quiet">Last save: {as_html(save.get("path"))}, {moment(save.get("time"))} UTC.</p>'
    listed = [(one.event.get("time") or 0, _line(kind, one)) for kind in WORDS for one in history.moments.get(kind, ())]
    lines = [line for _, line in sorted(listed, reverse=True)]
    if lines:
        body += f'<ul class="moments">{"".join(lines[:SHOWN])}</ul>'
    if older := lines[SHOWN:]:
        body += f'<details><summary>{len(older)} earlier</summary><ul class="moments">{"".join(older)}</ul></details>'
    return section("events", "Events", body)


def _line(kind: str, one: Moment) -> str:
    event = one.event
    at = f"{moment(event.get('time'))} · {count(one.tokens)} tokens"
    return f'<li class="{kind}"><span class="badge">{WORDS[kind]}</span> {_words(kind, one)} <small>{at}</small></li>'


def _words(kind: str, one: Moment) -> str:
    event = one.event
    match kind:
        case "spike":
            return f"Step {event['step']:,}: loss {_loss(event['loss'])} is above {_loss(event['threshold'])}."
        case "skip":
            return f"Step {event['step']:,}: {text(event['reason'])}, loss {_loss(event['loss'])}."
        case "rollback":
            return f"{text(event['reason'])}. From step {event['step']:,} back to step {event['to_step']:,}."
        case "resume" | "advice":
            return text(event["message"])
        case "end":
            return text(event.get("message") or "The run is finished.")
    name, message = event["name"], event["message"]
    return text(message) if str(message).startswith(name) else f"{named(name)}: {text(message)}"


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
