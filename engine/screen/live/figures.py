"""The figures of a run's latest events, as names and texts for the panel."""

from rich.text import Text

from engine.formatting import brief, count
from engine.screen.live.view import RunView, age
from engine.screen.text import Event, one_line, plural

Figure = tuple[str, str]  # a name, and a text that is empty where it is not known

LABEL, VALUE = "dim", "bold"
MOST_NAME = 28  # cells of a source's name
BAR = 12  # cells of a source's share
INCIDENTS = {"spike": "spike", "skip": "skipped step", "rollback": "rollback"}


def training(view: RunView) -> list[Figure]:
    """What the latest steps show, the most important first."""
    step = view.latest.get("step")
    if step is None:
        return []
    incidents = [plural(view.counts[kind], word) for kind, word in INCIDENTS.items() if view.counts[kind]]
    return [
        ("loss", _number(step["loss"], "{:.4f}")),
        ("tokens/s", count(step["tokens_per_second"])),
        ("memory", _memory(step, view.run)),
        ("data stall", f"{step['data_wait']:.1%}"),
        ("incidents", ", ".join(incidents)),
        ("slow rank", _slow_rank(step.get("slow_rank"))),
        ("MFU", _number(step["mfu"], "{:.1%}")),
        ("learning rate", f"{step['lr']:.2e}"),
        ("gradient norm", _number(step["grad_norm"], "{:.2f}")),
    ]


def validation(view: RunView, now: float) -> list[Figure]:
    """What the last evaluation found, and the last checkpoint."""
    figures: list[Figure] = []
    if evaluation := view.latest.get("evaluation"):
        before = view.marks[-2][1] if len(view.marks) > 1 else None
        change = "" if before is None or evaluation["ce"] is None else f"  ({evaluation['ce'] - before:+.4f})"
        at = evaluation["tokens_total"] - view.begins_at
        figures = [
            ("loss", _number(evaluation["ce"], "{:.4f}") + change),
            ("perplexity", _number(evaluation["perplexity"], "{:.2f}")),
            ("bits per byte", _number(evaluation["bits_per_byte"], "{:.4f}")),
            ("evaluated", f"at {count(at)} tokens" if at > 0 else ""),
        ]
    if save := view.latest.get("save"):
        at = save["tokens_total"] - view.begins_at
        figures.append(("checkpoint", f"{brief(age(save, now))} ago" + (f", at {count(at)}" if at > 0 else "")))
    return figures


def auxiliary(view: RunView) -> list[Figure]:
    """The lookahead core's losses, where it is trained."""
    values = view.latest.get("step", {}).get("auxiliary", {})
    return [(one_line(name).replace("_", " "), _number(value, "{:.4g}")) for name, value in values.items()]


def sources(view: RunView, columns: int, rows: int) -> list[Text]:
    """Loss and share of each source in at most `rows` lines; nothing where there is only one."""
    step = view.latest.get("step", {})
    losses, shares = step.get("sources", {}), step.get("source_shares", {})
    if len(losses) < 2 or rows < 2:
        return []
    names = short_names([one_line(name) for name in losses], min(MOST_NAME, columns - BAR - 16))
    width = max(14, *(Text(name).cell_len for name in names))
    bar = max(0, min(BAR, columns - width - 18))
    found = [heading("sources", columns, f"{'sources':<{width}} {'loss':>7} {'share':>6}")]
    by_share = sorted(zip(names, losses, strict=True), key=lambda pair: -shares.get(pair[1], 0.0))
    for name, key in by_share:
        line = Text.assemble((name, LABEL))
        line.append(" " * (width - line.cell_len + 1)).append(f"{_number(losses[key], '{:.3f}'):>7}", VALUE)
        if key in shares:
            line.append(f" {shares[key]:6.1%} ").append("▪" * round(bar * shares[key]), "cyan")
        found.append(line)
    if len(found) > rows:
        found = [*found[: rows - 1], Text(f"and {len(found) - rows + 1} more", LABEL)]
    return found


def short_names(names: list[str], width: int) -> list[str]:
    """Names in at most `width` characters, by their ends where they begin alike, as paths do."""
    if all(len(name) <= width for name in names):
        return names
    starts = {name[: width - 1] for name in names}
    if len(starts) == len(names):
        return [name if len(name) <= width else f"{name[: width - 1]}…" for name in names]
    return [name if len(name) <= width else f"…{name[1 - width :]}" for name in names]


def table(title: str, figures: list[Figure], columns: int, rows: int) -> list[Text]:
    """A heading, and below it at most `rows` - 1 lines, one for each of the figures that are known."""
    known = [Text.assemble((f"{label:<14} ", LABEL), (value, VALUE)) for label, value in figures if value]
    return [heading(title, columns), *known][:rows] if known and rows > 1 else []


def flowing(figures: list[Figure], columns: int) -> list[Text]:
    """The figures that are known, as many on a line as fit."""
    found = [Text()]
    for label, value in figures:
        part = Text.assemble((f"{label} ", LABEL), (value, VALUE))
        if found[-1].plain and found[-1].cell_len + 3 + part.cell_len > columns:
            found.append(Text())
        if value:
            found[-1].append("   " if found[-1].plain else "").append_text(part)
    return found if found[0].plain else []


def heading(title: str, columns: int, text: str = "") -> Text:
    text = text or title
    return Text.assemble((text, ""), " ", ("─" * max(0, columns - len(text) - 1), LABEL))


def _number(value: float | None, template: str) -> str:
    return "" if value is None else template.format(value)


def _slow_rank(found: Event | None) -> str:
    if not found:
        return ""
    where = f" on {one_line(found['host'])}" if found["host"] else ""
    return f"{found['rank']}{where}, {found['times_median']:.1f} times the median"


def _memory(step: Event, run: Event | None) -> str:
    used, total = step.get("memory_bytes"), run["derived"].get("memory_bytes") if run else None
    if not used:
        return ""
    return f"{used / 2**30:.1f}" + (f" of {total / 2**30:.0f} GiB" if total else " GiB")
