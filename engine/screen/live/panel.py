"""The panel: a run's state as lines of text that fit into so many columns and rows.

There are rules between its parts but no box: a name with characters of an unexpected width moves nothing else, and a
terminal that becomes narrower breaks no border. What matters most comes first and is the last to go.
"""

import io
import time

from rich.console import Console
from rich.spinner import Spinner
from rich.text import Text

from engine.formatting import about, brief, clock, count
from engine.screen.live import chart
from engine.screen.live.figures import LABEL, VALUE, auxiliary, flowing, heading, sources, table, training, validation
from engine.screen.live.lines import stage_name
from engine.screen.live.view import RunView, age, stage_now
from engine.screen.text import one_line

WIDE = 110  # columns from which the figures stand beside the chart
BESIDE = 46  # columns of the figures there
TRAINING, VALIDATION = "cyan", "yellow"
SMALL_ROWS = 12  # with fewer there is no chart
LEAST_CHART_ROWS, MOST_CHART_ROWS = 7, 18
SAMPLE_ROWS = 2
ENDINGS = {"finished": ("finished", "green"), "stopped": ("stopped", "yellow"), "failed": ("failed", "red")}
SPINNER = Spinner("dots")
_WRAPPING = Console(file=io.StringIO())  # what a text asks how to wrap itself


def panel(view: RunView, columns: int, rows: int) -> Text:
    """Return at most `rows` lines of at most `columns` cells."""
    now = time.time()
    head = [_title(view, columns), *_progress(view, columns, now)]
    body = _body(view, columns, rows - len(head), now)
    found = [*head, *body][:rows]
    for line in found:
        line.no_wrap = True
        line.truncate(columns, overflow="ellipsis")
    return Text("\n", no_wrap=True, overflow="crop").join(found)


def _title(view: RunView, columns: int) -> Text:
    """A rule with the run's name and size on the left, its step and state on the right."""
    state, style = ENDINGS.get(view.latest.get("end", {}).get("how", ""), ("", LABEL))
    left, right = Text.assemble(("── ", LABEL)), Text()
    if run := view.run:
        derived = run["derived"]
        left.append(one_line(run["preset"]["name"])[: columns // 2], VALUE)
        left.append(f" · run {derived['run']}", LABEL)
        if columns >= 60:
            left.append(f" · {count(derived['parameters'])} parameters", LABEL)
        if columns >= 100:
            left.append(f" · {one_line(run['machine'])}", LABEL)
    else:
        left.append("starting", VALUE)
    left.append(" ")
    if step := view.latest.get("step"):
        right.append(f" step {step['step']:,}")
    if state:
        right.append(" · " if right.plain else " ", LABEL).append(state, style)
    right.append(" ──" if right.plain else "", LABEL)
    return left.append("─" * max(0, columns - left.cell_len - right.cell_len), LABEL).append(right)


def _progress(view: RunView, columns: int, now: float) -> list[Text]:
    """The bar, and tokens, time left and finishing time below it; before the first step what is being done."""
    step = view.latest.get("step")
    if step is None:
        return _busy(view, now)
    share = f" {step['share']:6.1%}"
    width = max(4, columns - len(share))
    halves = round(step["share"] * 2 * width)
    done = "━" * (halves // 2) + ("╸" if halves % 2 else "")
    bar = Text.assemble((done, TRAINING), ("─" * (width - len(done)), LABEL), (share, VALUE))
    budget = view.run["derived"]["token_budget"] if view.run else round(step["tokens"] / max(step["share"], 1e-9))
    line = Text(f"{count(step['tokens'])} of {count(budget)} tokens")
    if "end" in view.latest:
        pass
    elif view.stage is not None:
        line.append("  ").append_text(*_busy(view, now))
    elif (seconds := view.remaining.seconds()) is None:
        line.append("  ·  time left: known after some more steps", LABEL)
    else:
        left = max(0.0, seconds - age(step, now))
        line.append(f"  ·  {about(left)} left", VALUE).append(f"  ·  done {clock(now + left, now)}")
    return [bar, line]


def _busy(view: RunView, now: float) -> list[Text]:
    """The stage that goes on, with a spinner and its time."""
    if (stage := stage_now(view)) is None:
        return []
    frame = SPINNER.frames[int(now * 1000 / SPINNER.interval) % len(SPINNER.frames)]
    line = Text.assemble((frame, TRAINING), " ", stage_name(stage))
    line.append(f"  {brief(age(stage, now))}", VALUE)
    expected = view.expected.get(stage["name"], 0.0)
    if expected >= 0.5:
        line.append(f" of about {brief(expected)}", LABEL)
    return [line]


def _body(view: RunView, columns: int, rows: int, now: float) -> list[Text]:
    if "step" not in view.latest and not view.curve.points():
        return [*_stages(view), Text()][-rows:] if rows > 0 else []
    if rows < SMALL_ROWS:
        return _small(view, columns, now)[: max(0, rows)]
    if columns >= WIDE:
        return _wide(view, columns, rows, now)
    return _narrow(view, columns, rows, now)


def _stages(view: RunView) -> list[Text]:
    """What was done so far of a start, with its seconds."""
    return [
        Text.assemble(("✓ ", "green"), (stage_name(stage), LABEL), (f"  {stage['seconds']:.1f} s", LABEL))
        for stage in view.stages
        if stage["seconds"] >= 0.05
    ]


def _small(view: RunView, columns: int, now: float) -> list[Text]:
    """The figures in as few lines as can be."""
    last = [(f"validation {label}" if label == "loss" else label, value) for label, value in validation(view, now)]
    return flowing([*training(view)[:4], *last], columns)


def _narrow(view: RunView, columns: int, rows: int, now: float) -> list[Text]:
    """The chart above; then training beside validation, auxiliary losses, sources, the sample."""
    half = columns // 2
    sample = _sample(view, columns, SAMPLE_ROWS)
    most = 6 if rows < 28 else 9
    figures = beside(
        table("training", training(view), half - 2, most),
        table("validation", validation(view, now), columns - half, most),
        half,
    )
    left = rows - len(sample) - len(figures) - LEAST_CHART_ROWS
    by_source = sources(view, columns, min(left, 8))
    more = _auxiliary(view, columns, left - len(by_source))
    parts = [figures, more, by_source, sample]
    height = min(MOST_CHART_ROWS, rows - sum(map(len, parts)))
    parts = [_chart(view, columns, height), *parts]
    return [line for part in parts for line in part]


def _wide(view: RunView, columns: int, rows: int, now: float) -> list[Text]:
    """The chart on the left, all figures on the right, and the sample below."""
    sample = _sample(view, columns, SAMPLE_ROWS)
    parts = [table("training", training(view), BESIDE, 9), table("validation", validation(view, now), BESIDE, 9)]
    left = rows - len(sample) - sum(len(part) + 1 for part in parts)
    parts.append(sources(view, BESIDE, min(left, 10)))
    parts.insert(2, _auxiliary(view, BESIDE, left - len(parts[-1]) - 1))
    figures = [line for part in parts if part for line in (*part, Text())][:-1]
    height = min(rows - len(sample) - 1, max(len(figures), columns // 5))
    start = columns - BESIDE
    return [*beside(_chart(view, start - 3, height), figures[:height], start), Text(), *sample]


def _auxiliary(view: RunView, columns: int, rows: int) -> list[Text]:
    """The auxiliary losses under a heading, if there is room for all."""
    found = flowing(auxiliary(view), columns)
    return [heading("auxiliary losses", columns), *found] if 0 < len(found) < rows else []


def _chart(view: RunView, columns: int, rows: int) -> list[Text]:
    """A legend and the curve."""
    if rows < 4:
        return []
    legend = Text.assemble(("━ ", TRAINING), ("training loss", LABEL))
    if view.marks:
        legend.append_text(Text.assemble((f"   {chart.MARK} ", VALIDATION), ("validation loss", LABEL)))
    begin = view.begins_at
    curve = [(tokens - begin, loss) for tokens, loss in view.curve.points() if tokens >= begin]
    marks = [(tokens - begin, loss) for tokens, loss in view.marks]
    return [legend, *chart.draw(curve, marks, columns, rows - 1, (TRAINING, VALIDATION))]


def beside(left: list[Text], right: list[Text], start: int) -> list[Text]:
    """Two columns of lines; the right one starts at column `start`."""
    found = []
    for row in range(max(len(left), len(right))):
        line = left[row].copy() if row < len(left) else Text()
        if row < len(right) and right[row].plain:
            line.truncate(start - 1, overflow="ellipsis")
            line.append(" " * (start - line.cell_len)).append_text(right[row])
        found.append(line)
    return found


def _sample(view: RunView, columns: int, rows: int) -> list[Text]:
    """The newest sample in at most `rows` lines."""
    sample = view.latest.get("evaluation", {}).get("sample")
    if not sample:
        return []
    prompt, text = one_line(sample["prompt"]).lstrip(), one_line(sample["text"])
    wrapped = Text.assemble("sample  ", (prompt, LABEL), (text, "italic")).wrap(_WRAPPING, columns)
    if len(wrapped) > rows:
        wrapped[rows - 1].append(" …")
    return wrapped[:rows]
