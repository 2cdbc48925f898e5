"""The snapshots of a checkpoint folder, as a person names and opens them."""

from pathlib import Path

from engine.checkpoint.names import CURRENT, NAMES
from engine.errors import PresetError
from engine.formatting import count
from engine.screen.dialog import say
from model import LanguageModel, load


def names(folder: Path) -> list[str]:
    """The snapshots of `folder`, the newest checkpoint first."""
    known = [name for name in NAMES if (folder / name).exists()]
    return known + sorted(path.name for path in folder.glob("*.pth") if path.name not in known)


def require(folder: Path, name: str = CURRENT) -> Path:
    """The path of a snapshot. Raises PresetError where `folder` does not hold it."""
    there = names(folder)
    if name in there:
        return folder / name
    if not there:
        raise PresetError(f"{folder / name} does not exist yet: train a preset first.")
    raise PresetError(f"{folder} holds no {name}; there are {', '.join(there)}.")


def open_model(path: Path, device: str | None = None) -> LanguageModel:
    """Load a snapshot, and say its size. Raises PresetError for one that cannot be loaded."""
    try:
        lm = load(path, device)
    except ValueError as error:
        raise PresetError(str(error)) from None
    of_experts = (
        f", {count(lm.model.num_active_parameters())} of them read a token" if lm.model.config.num_experts else ""
    )
    say(f"{path}: {count(lm.model.num_parameters())} parameters{of_experts}.")
    return lm
