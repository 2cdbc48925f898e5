"""What the menu shows when it is asked: a preset in all its figures (`d`), and where the report is (`r`)."""

import json
import os
import sys
import webbrowser
from datetime import datetime
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine.config import TrainConfig
from engine.config.deepspeed import engine_config
from engine.device import host
from engine.formatting import about, count
from engine.optim.schedule import CONTINUED_WARMUP, steps_of_a_run
from engine.screen.menu.entries import Menu
from engine.screen.menu.estimates import precision, size_of, stage_of
from engine.screen.menu.table import View, as_lines, seconds_of_a_run, shortage
from engine.screen.text import literal, plural, printable
from model.config.size import parameters_by_part
from sources.loading.shape import BatchShape

REPORT = "report.html"


def details(menu: Menu, index: int) -> RenderableType:
    """Everything that follows from a preset: parameters by part, the batch, steps, learning rates, DeepSpeed."""
    entry = menu.entries[index]
    preset = entry.preset
    if preset is None:
        return Text(printable(entry.broken))
    model, train = preset.model, preset.train
    size = size_of(model, preset.auxiliary, preset.data.tokenizer)
    rows, windows = train.per_gpu_batch_size // preset.windows, preset.windows
    shape = BatchShape(rows, train.accumulation_steps, model.seq_length, 0, host.processes_in_all(), windows)
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for part, number in parameters_by_part(model, size.vocab_size, preset.auxiliary).items():
        facts.add_row(part, f"{number:>14,}  {number / size.parameters:.1%}")
    facts.add_row("parameters", f"[bold]{size.parameters:>14,}[/]  with a vocabulary of {size.vocab_size:,}")
    if size.active_parameters < size.parameters:
        facts.add_row("active", f"{size.active_parameters:>14,}  read a token, the other experts do not")
    facts.add_row("model", f"{plural(model.num_layers, 'layer')} of {model.hidden_size:,}, {model.num_heads} heads")
    for name, text in _batch(train, shape, menu.tokens_per_run):
        facts.add_row(name, text)
    facts.add_row("a token costs", f"{count(size.flops_per_token)} FLOP")
    if short := shortage(menu, index):
        facts.add_row("time here", f"[yellow]too large here[/]: {short}")
    elif (seconds := seconds_of_a_run(menu, index)) is not None:
        facts.add_row("time here", about(seconds))
    facts.add_row("sources", literal(", ".join(preset.data.weights())))
    facts.add_row("tokenizer", literal(str(preset.data.tokenizer)))
    bf16 = menu.machine is not None and precision(train.precision, menu.machine) == "bf16"
    on_gpu = menu.machine is not None and menu.machine.kind == "cuda"
    train = train.model_copy(update={"zero_stage": stage_of(model, train, size, menu.machine)})
    deepspeed = json.dumps(engine_config(train, shape, bf16, on_gpu), indent=1)
    title = Text(printable(f"{entry.path}  {preset.description}"), style="bold")
    return Group(title, facts, Text("DeepSpeed's configuration:", style="dim"), Text(deepspeed))


def details_screen(menu: Menu, view: View, columns: int, rows: int) -> list[str]:
    """The details of the selected preset as the lines of a screen, from `view.detail_line` on."""
    lines = as_lines(details(menu, view.selected), columns)
    room = max(1, rows - 2)
    view.detail_line = min(view.detail_line or 0, max(0, len(lines) - room))
    foot = as_lines(Text("up and down scroll   d, Enter or Escape return", style="dim"), columns)
    return [*lines[view.detail_line :][:room], "", *foot][:rows]


def _batch(train: TrainConfig, shape: BatchShape, tokens_per_run: int) -> list[tuple[str, str]]:
    """The rows on the batch, the steps and the learning rates of a run."""
    tokens = shape.rows_per_step * shape.row_length
    steps = steps_of_a_run(train, tokens_per_run, tokens)
    micro = f"{plural(train.accumulation_steps, 'micro-batch')} of {plural(train.per_gpu_batch_size, 'row')}"
    doublings = ", ".join(f"{share:.0%}" for share in train.batch_doublings)
    doubling = f"; doubled at {doublings} of a run" if doublings else ""
    lengths = ", ".join(f"{length:,} from {share:.0%} on" for share, length in train.seq_length_schedule)
    doubling += f"; rows grow: {lengths}" if lengths else ""
    probing = "; the size of micro-batches is measured at the start" if train.probe_batch else ""
    warmup = max(1, round(train.warmup_fraction * tokens_per_run / tokens))
    floor = train.learning_rate * train.final_learning_rate_fraction
    continued = max(1, round(CONTINUED_WARMUP * train.warmup_fraction * tokens_per_run / tokens))
    return [
        ("tokens a step", f"{tokens:,}: {micro} of {shape.seq_length:,} tokens per process{probing}{doubling}"),
        ("steps of a run", f"{steps:,} for {tokens_per_run:,} tokens"),
        (
            "optimizer",
            f"{train.optimizer}, weight decay {train.weight_decay:g}, gradients clipped at {train.gradient_clipping:g}",
        ),
        (
            "learning rate",
            f"{train.learning_rate:.2e} after {plural(warmup, 'step')} ({continued:,} in a later run), "
            f"down to {floor:.2e}",
        ),
        ("evaluations", f"every {train.eval_interval_tokens:,} tokens, of {train.eval_tokens:,} tokens"),
        ("checkpoints", f"every {train.save_interval_minutes:g} min"),
    ]


def open_report(folder: Path) -> str:
    """Open the report of a checkpoint folder in a browser where there is a display; return what to say."""
    path = folder / REPORT
    try:
        found = path.stat()
    except OSError:
        return f"{path} does not exist yet: a run writes it at its first evaluation."
    written = datetime.fromtimestamp(found.st_mtime).strftime("%Y-%m-%d %H:%M")
    sentence = f"{path}: {found.st_size / 1000:,.0f} kB, written {written}"
    if _has_display() and webbrowser.open(path.resolve().as_uri()):
        return f"{sentence}; opened in the browser."
    return f"{sentence}; open it in a browser."


def _has_display() -> bool:
    """Whether a browser has a window: one in this terminal would take it from the menu."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
