"""What the menu knows: presets, whether each can be trained now, what the folder holds, how fast this machine is."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import storage
from engine.config import Preset, load_preset
from engine.device import host
from engine.errors import PresetError
from engine.screen import machines
from engine.screen.machines import Machine
from engine.screen.menu import speed
from engine.screen.menu.lineage import Lineage, Throughput, measured, read_lineage


@dataclass
class MenuEntry:
    """One preset. `preset` is None where its file cannot be parsed, and then `broken` says why.

    `reasons` says of each source, and of the tokenizer under the key None, why it cannot be read; "" where it can, and
    nothing while it is being checked (states.py).
    """

    path: Path
    preset: Preset | None
    broken: str = ""
    reasons: dict[str | None, str] = field(default_factory=dict)

    @property
    def checked(self) -> bool:
        """Whether everything is known that decides whether it can be trained."""
        return self.preset is None or self.reasons.keys() >= {None, *self.preset.data.weights()}

    @property
    def problem(self) -> str:
        """Why it cannot be trained now; empty where it can, or where that is not known yet. One readable source is
        enough."""
        if self.preset is None:
            return self.broken
        if reason := self.reasons.get(None):
            return f"tokenizer {self.preset.data.tokenizer}: {reason}"
        reasons = {name: self.reasons.get(name) for name in self.preset.data.weights()}
        if not all(reasons.values()):
            return ""
        return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


@dataclass
class Menu:
    """Everything that is shown. `machine` is None until it is measured, where there may be a GPU."""

    entries: list[MenuEntry]
    folder: Path  # of checkpoints
    tokens_per_run: int
    lineage: Lineage | None
    machine: Machine | None
    runs: Throughput

    @classmethod
    def read(cls, files: Iterable[Path], folder: Path, tokens_per_run: int) -> "Menu":
        """Parse the presets and look into the folder; nothing is checked or measured yet."""
        lineage, machine = read_lineage(folder), machines.remembered() or unmeasured()
        menu = cls([_read(path) for path in files], folder, tokens_per_run, lineage, None, Throughput({}, {}))
        menu.set_machine(machine)
        return menu

    @property
    def files(self) -> list[Path]:
        return [entry.path for entry in self.entries]

    @property
    def in_use(self) -> bool:
        """Whether another process trains in the folder now; then Enter watches that run, where `can_watch`."""
        return storage.locked_by(self.folder) is not None

    @property
    def is_measured(self) -> bool:
        return self.machine is not None and bool(self.machine.flops)

    def set_machine(self, machine: Machine | None) -> None:
        """Take this machine to be `machine`, and read how fast runs have been on it."""
        self.runs = measured(self.folder, self.lineage, machine and machine.description)
        measured_here = machine is not None and machine.flops
        self.machine = machines.with_reached(machine, self.runs.flops) if machine and measured_here else machine

    def add(self, path: Path) -> MenuEntry:
        """Take a new preset in; nothing of it is checked yet."""
        entry = _read(path)
        self.entries = sorted([*self.entries, entry], key=lambda one: one.path)
        return entry

    @property
    def default(self) -> int:
        """The entry that Enter takes: the preset that the checkpoint folder was trained with; without one the first
        that can be trained, and the first of all where none can. What is still being checked may be."""
        if (lineage := self.lineage_entry) is not None:
            return lineage
        parsed = [index for index, entry in enumerate(self.entries) if entry.preset is not None]
        reachable = (index for index in parsed if not self.entries[index].problem)
        return next(reachable, parsed[0] if parsed else 0)

    @property
    def lineage_entry(self) -> int | None:
        """The entry of the preset that the checkpoint folder was trained with; None where there is none."""
        if self.lineage is None:
            return None
        names = [entry.preset.name if entry.preset else None for entry in self.entries]
        return names.index(self.lineage.preset) if self.lineage.preset in names else None


def unmeasured() -> Machine | None:
    """What is known of this machine before it is measured; None where there may be a GPU."""
    if speed.has_gpu():
        return None
    threads = int(os.environ.get("OMP_NUM_THREADS") or host.usable_cores())
    memory = host.total_memory()
    words = f"CPU, {threads} thread{'s' if threads > 1 else ''}, {memory / 2**30:.0f} GiB"
    return Machine("cpu", words, memory, bf16=False, flops={})


def _read(path: Path) -> MenuEntry:
    try:
        return MenuEntry(path, load_preset(path))
    except PresetError as error:
        return MenuEntry(path, None, str(error))
