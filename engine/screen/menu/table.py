"""The menu as a table, for a picker that marks a line, and for a terminal that only prints."""

import sys
from dataclasses import dataclass
from io import StringIO

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine.config import CONFIGS
from engine.formatting import about, count
from engine.screen.live.watch import can_watch
from engine.screen.menu import estimates
from engine.screen.menu.entries import Menu, MenuEntry
from engine.screen.text import literal, printable

WIDE = 118  # columns from which a picker's line names its sources
ROOMY = 100  # columns from which there is room for "about"
# The columns of the table, each with the width of a terminal from which it is shown.
COLUMNS = {"preset": 0, "size": 36, "seq": 64, "data": 64, "memory": 78, "a run here": 48}

KEYS = "d details  n new  g generate  e export  r report  q quit"


@dataclass
class View:
    """What a picker shows of a menu."""

    selected: int
    typed: str = ""
    message: str = ""
    waits: bool = False  # Enter was pressed before it was known which data can be reached
    detail_line: int | None = None  # the first line that is shown of the details; None: the menu is shown


def picker_screen(menu: Menu, view: View, columns: int, rows: int) -> list[str]:
    """The lines of the whole screen, with colours as escape sequences."""
    machine = menu.machine.description if menu.machine else ""
    title = as_lines(Text.assemble(("Forethought", "bold"), f"   {printable(machine)}"), columns)[:1]
    below = [line for part in about_selected(menu, view.selected) for line in as_lines(part, columns)]
    last: list[RenderableType] = []
    if view.message:
        last.append(Text(printable(view.message), style="yellow"))
    elif view.typed:
        last.append(Text(f"Preset: {printable(view.typed)}"))
    elif view.waits:
        last.append(Text("Looking which data can be reached ...", style="dim"))
    last.append(Text(f"{_arrows()} move  Enter {_verb(menu, view.selected)}  {KEYS}", style="dim"))
    foot = [line for part in last for line in as_lines(part, columns)]
    room = max(2, rows - len(title) - len(foot) - 3)  # for the table with its heading, and what is below it
    below = below[: max(0, room - 1 - min(len(menu.entries), room - 1 - min(len(below), room // 3)))]
    shown = _window(view.selected, len(menu.entries), max(1, room - 1 - len(below)))
    table = as_lines(presets_table(menu, selected=view.selected, shown=shown, width=columns), columns)
    return [*title, "", *table, "", *below, "", *foot][:rows]


def as_lines(content: RenderableType, columns: int) -> list[str]:
    """Lines of at most `columns`, with colours as escape sequences, of which the terminal gets those that it has."""
    text = StringIO()
    RichConsole(file=text, width=columns, force_terminal=True, color_system="standard").print(content)
    return text.getvalue().rstrip("\n").split("\n")


def _verb(menu: Menu, selected: int) -> str:
    """What Enter does."""
    if menu.in_use and can_watch():
        return "watches"
    resumes = menu.lineage is not None and not menu.lineage.finished and selected == menu.lineage_entry
    return "resumes" if resumes else "trains"


def _window(selected: int, number: int, room: int) -> range:
    """Which of `number` entries are shown where there is room for some of them, the selected one among them."""
    first = min(max(0, selected - room // 2), max(0, number - room))
    return range(first, min(number, first + room))


def _arrows() -> str:
    return "\N{UPWARDS ARROW}\N{DOWNWARDS ARROW}" if "utf" in (sys.stdout.encoding or "").lower() else "up, down"


def presets_table(menu: Menu, *, selected: int | None = None, shown: range | None = None, width: int = WIDE) -> Table:
    """The entries in lines: parameters, sequence length, data, memory, the time of a run, and what the folder holds.

    With `selected` each entry has one line, and that one is marked; else a line says why data cannot be reached.
    `shown` are the entries that there is room for.
    """
    picking = selected is not None
    columns = {name: least for name, least in COLUMNS.items() if width >= least}
    table = Table(box=None, pad_edge=False, expand=picking, header_style="dim" if picking else "bold")
    for heading in columns:
        table.add_column(
            f"  {heading}" if picking and heading == "preset" else heading,
            justify="right" if heading in ("size", "seq") else "left",
            no_wrap=picking or heading == "preset",  # its name is what is typed
            overflow="ellipsis" if picking else "fold",
            ratio=1 if picking and heading == "data" else None,
        )
    for index in shown or range(len(menu.entries)):
        cells = _cells(menu, index, picking, width)
        if picking:
            cells["preset"] = f"{'>' if index == selected else ' '} {cells['preset']}"
        table.add_row(*(cells.get(heading, "") for heading in columns), style="reverse" if index == selected else "")
    return table


def about_selected(menu: Menu, index: int) -> list[RenderableType]:
    """Lines below the picker's table: what the selected preset resumes, what it is, its sources with their state."""
    entry = menu.entries[index]
    lines: list[RenderableType] = []
    if sentence := lineage_sentence(menu, index):
        lines.append(Text.from_markup(f"[green]{literal(sentence)}[/]"))
    if entry.preset is None:
        return [*lines, Text.from_markup(f"[red]cannot be used[/]: {literal(entry.broken)}")]
    if entry.preset.description:
        lines.append(Text(printable(entry.preset.description), style="dim"))
    lines.append(Text.assemble("sources: ", *_sources(entry)))
    if short := shortage(menu, index):
        lines.append(Text.from_markup(f"[yellow]too large here[/]: {literal(short)}"))
    if entry.checked and entry.problem:
        lines.append(Text.from_markup(f"[yellow]not reachable[/]: {literal(entry.problem)}"))
    return lines


def lineage_sentence(menu: Menu, index: int | None) -> str:
    """What the checkpoint folder holds, and what Enter does with it at the entry `index`: "run 2, 41%, loss 4.02: Enter
    resumes"; empty where it holds nothing."""
    lineage = menu.lineage
    if menu.in_use:
        what = f" ({lineage.preset or 'a model'}, {lineage.sentence(menu.tokens_per_run)})" if lineage else ""
        return f"A run trains in {menu.folder}/ now{what}" + (": Enter watches it" if can_watch() else "")
    if lineage is None:
        return ""
    sentence = lineage.sentence(menu.tokens_per_run)
    if menu.lineage_entry is None:
        named = f" of preset {lineage.preset}, which is not in {CONFIGS}/" if lineage.preset else ""
        return f"{menu.folder}/ holds {sentence}{named}."
    if index == menu.lineage_entry:
        return f"{sentence}: Enter {lineage.verb}"
    return (
        f"{menu.folder}/ holds {sentence} of {lineage.preset}. This preset goes on with that model if it has the same "
        "shape and tokenizer, and else asks first."
    )


def shortage(menu: Menu, index: int) -> str:
    """Why an entry's model cannot fit into this machine's memory, in words; empty where it may."""
    preset = menu.entries[index].preset
    if preset is None:
        return ""
    size_here = estimates.size_of(preset.model, preset.auxiliary, preset.data.tokenizer)
    return estimates.shortage(preset.model, preset.train, size_here, menu.machine)


def seconds_of_a_run(menu: Menu, index: int) -> float | None:
    """How long the run that Enter starts or resumes takes; None where nothing is known of this machine."""
    preset, machine = menu.entries[index].preset, menu.machine
    if preset is None or machine is None:
        return None
    size_here = estimates.size_of(preset.model, preset.auxiliary, preset.data.tokenizer)
    rate = estimates.tokens_per_second(preset.name, preset.train, size_here, machine, menu.runs)
    return (menu.tokens_per_run - _tokens_done(menu, index)) / rate if rate else None


def plain_screen(menu: Menu) -> RenderableType:
    """The whole menu for a terminal that only prints."""
    machine = f"  ({menu.machine.description})" if menu.machine else ""
    parts: list[RenderableType] = [Text(f"Presets in {CONFIGS}/{machine}"), presets_table(menu)]
    if sentence := lineage_sentence(menu, menu.lineage_entry):
        own = menu.lineage_entry
        of = "" if own is None or menu.in_use else f"{menu.entries[own].path.stem}: "
        parts.append(Text(printable(of + sentence)))
    return Group(*parts)


def _cells(menu: Menu, index: int, picking: bool, width: int) -> dict[str, str | Text]:
    """What stands in each column."""
    entry = menu.entries[index]
    name, preset = literal(entry.path.stem), entry.preset
    if preset is None:
        problem = "" if picking else f": {literal(entry.broken)}"
        return {"preset": name, "data": f"[red]cannot be used[/]{problem}"}
    size_here = estimates.size_of(preset.model, preset.auxiliary, preset.data.tokenizer)
    size = count(size_here.parameters)
    if preset.model.num_experts:
        size += f", {count(size_here.active_parameters)} active"
    return {
        "preset": name,
        "size": size,
        "seq": "-".join(str(n) for n in (preset.train.shortest_rows, preset.model.seq_length) if n),
        "data": _state(entry, width) if picking else _sentence(entry),
        "memory": _memory(menu, index),
        "a run here": _time(menu, index, picking, width),
    }


def _state(entry: MenuEntry, width: int) -> Text:
    """The sources by name or, on a narrow screen, how many can be read."""
    if width >= WIDE:
        return Text.assemble(*_sources(entry))
    if not entry.checked:
        return Text("checking ...", style="dim")
    if entry.problem:
        return Text("not reachable", style="yellow")
    reasons = [reason for name, reason in entry.reasons.items() if name is not None]
    readable = sum(not reason for reason in reasons)
    return Text("reachable" if readable == len(reasons) else f"{readable} of {len(reasons)} reachable", style="green")


def _sources(entry: MenuEntry) -> list[Text]:
    """Each source's name with a sign: + can be read, - cannot, ? is being checked."""
    assert entry.preset is not None
    found = []
    for name in entry.preset.data.weights():
        reason = entry.reasons.get(name)
        sign, style = ("?", "dim") if reason is None else ("-", "yellow") if reason else ("+", "green")
        shown = printable(name.rstrip("/").rpartition("/")[2] or name)
        found.append(Text(f"{sign}{shown} ", style=style))
    return found


def _sentence(entry: MenuEntry) -> str:
    if entry.problem:
        return f"[yellow]not reachable[/]: {literal(entry.problem)}"
    return "[green]reachable[/]" if entry.checked else "not known yet"


def _memory(menu: Menu, index: int) -> Text:
    """What one process needs of what it may have."""
    preset, machine = menu.entries[index].preset, menu.machine
    if preset is None or machine is None:
        return Text("measuring ...", style="dim")
    size_here = estimates.size_of(preset.model, preset.auxiliary, preset.data.tokenizer)
    needed = estimates.memory_needed(preset.model, preset.train, size_here, machine)
    there = estimates.memory_each(machine)
    return Text(f"{needed / 2**30:.1f} of {there / 2**30:.0f} GiB", style="red" if needed > there else "")


def _time(menu: Menu, index: int, picking: bool, width: int) -> Text:
    if short := shortage(menu, index):
        return Text("too large here" if picking else f"too large here: {printable(short)}", style="yellow")
    seconds = seconds_of_a_run(menu, index)
    if seconds is None:
        return Text("measuring ..." if not menu.is_measured else "?", style="dim")
    time = about(seconds) if width >= ROOMY else about(seconds).replace("about ", "~")
    return Text(time + (" left" if _tokens_done(menu, index) else ""))


def _tokens_done(menu: Menu, index: int) -> int:
    """Tokens of the run that this entry would resume."""
    lineage = menu.lineage
    if lineage is None or lineage.finished or index != menu.lineage_entry:
        return 0
    return min(lineage.tokens_in_run, menu.tokens_per_run)
