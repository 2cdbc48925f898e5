"""The data sources as a table: what was asked for, what was read and what was skipped."""

from typing import Any

from engine.screen.report.history import History
from engine.screen.report.markup import named, section
from engine.screen.text import as_html

COLUMNS = ("Source", "Kind", "Tokens read", "Epoch", "Documents", "Skipped documents", "Loss", "State")
NAMES = ("type", "path", "dataset", "name")  # keys of a source in the preset, one of which events call it by
NOTE = (
    "Tokens and epochs are those of the lineage at the latest evaluation. Documents are counted block by block, and "
    "again where a restart reads a block again."
)


def as_section(history: History) -> str:
    """One row a source, those of which most was read first."""
    step, evaluation = history.latest.get("step", {}), history.latest.get("evaluation", {})
    read = evaluation.get("data") or {}
    lost = {one.event["name"]: one.event["message"] for one in history.moments.get("dropped", ())}
    names = dict.fromkeys([*read, *step.get("sources", {}), *evaluation.get("sources", {}), *lost])
    if not names:
        return ""
    kinds, documents = _kinds(history), history.documents()
    total = sum(source.get("tokens", 0) for source in read.values()) or 1
    rows = []
    for name in sorted(names, key=lambda name: -read.get(name, {}).get("tokens", 0)):
        source, counts = read.get(name, {}), dict(documents.get(name, {}))
        packed, tokens = counts.pop("documents", None), source.get("tokens")
        training = step.get("sources", {}).get(name)
        validation = evaluation.get("sources", {}).get(name, {}).get("ce")
        cells = (
            named(name),
            as_html(kinds.get(name, "")),
            "" if tokens is None else f"{tokens:,} ({tokens / total:.0%})",
            f"{source['epoch']:,}" if "epoch" in source else "",
            "" if packed is None else f"{packed:,}",
            _skipped(counts),
            _losses(training, validation),
            f'<span class="bad">lost: {as_html(lost[name])}</span>' if name in lost else "read",
        )
        pairs = zip(COLUMNS, cells, strict=True)
        row = "".join(f'<td data-label="{label}"><div>{cell or "&ndash;"}</div></td>' for label, cell in pairs)
        rows.append(f"<tr>{row}</tr>")
    head = "".join(f"<th>{label}</th>" for label in COLUMNS)
    body = f'<table class="sources"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return section("sources", "Data sources", f'{body}<p class="quiet">{NOTE}</p>')


def _kinds(history: History) -> dict[str, str]:
    """The type of each of the preset's sources, by what events call it."""
    specs: list[dict[str, Any]] = history.latest.get("run", {}).get("preset", {}).get("data", {}).get("sources", [])
    return {spec[key]: spec.get("type", "") for key in NAMES for spec in specs if isinstance(spec.get(key), str)}


def _losses(training: float | None, validation: float | None) -> str:
    pairs = ((training, "training"), (validation, "validation"))
    return "<br>".join(f"{loss:.3f} {word}" for loss, word in pairs if loss is not None)


def _skipped(reasons: dict[str, int]) -> str:
    """The number of documents that were filtered out, and how many for which reason."""
    if not reasons:
        return ""
    by_reason = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    lines = "".join(f"<li>{number:,} {as_html(reason)}</li>" for reason, number in by_reason)
    return f"{sum(reasons.values()):,}<ul>{lines}</ul>"
