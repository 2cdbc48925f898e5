"""Pictures of a run in a terminal, for README.md and docs/: docs/images/training-120x40.svg and others.

    python -m benchmarks.screens [--tokens 800000] [--keep FOLDER]

Trains a small model on this machine's Python sources and on docs/, in a scratch folder behind a pseudo-terminal, and
draws what that terminal showed, unedited: once while it starts, twice in the middle, where the terminal becomes
smaller, and at its end. `--keep` trains in FOLDER and leaves it there.
"""

import argparse
import json
import os
import re
import tempfile
from pathlib import Path

from rich.console import Console
from rich.style import Style
from rich.text import Text

from tests.helpers.terminal import Screen

REPOSITORY = Path(__file__).resolve().parents[1]
IMAGES = REPOSITORY / "docs" / "images"
LARGE, SMALL = (120, 40), (80, 24)
DEADLINE_SECONDS = 850
PRESET = {
    "name": "small",
    "model": {
        "hidden_size": 128,
        "num_layers": 2,
        "num_heads": 2,
        "seq_length": 128,
        "positions": "rotary",
        "norm": "rms",
        "qk_norm": True,
        "mlp": "squared_relu",
    },
    "train": {
        "optimizer": "muon",
        "learning_rate": 5e-3,
        "per_gpu_batch_size": 32,
        "warmup_fraction": 0.001,
        "eval_tokens": 50_000,
        "eval_interval_tokens": 60_000,
        "log_interval_seconds": 2,
        "save_interval_minutes": 1,
        "compile": False,
    },
    "data": {
        "sources": [
            {"type": "python_packages"},
            {"type": "files", "path": str(REPOSITORY / "docs"), "glob": "**/*.md", "name": "documentation"},
        ],
        "tokenizer": {"train_bpe": 4096},
    },
}
PROGRAM = """
import sys
from engine import load_preset, train
from engine.screen.streams import prepare_streams
prepare_streams()
train(load_preset("preset.json"), token_budget=int(sys.argv[1]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=800_000)
    parser.add_argument("--keep", type=Path)
    chosen = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "preset.json").write_text(json.dumps(PRESET, indent=1), encoding="utf-8")
        take_pictures(folder, chosen.tokens)


def take_pictures(folder: Path, tokens: int) -> None:
    variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))}
    screen = Screen(PROGRAM, str(tokens), cwd=folder, size=SMALL, variables=variables)
    screen.until(lambda text: re.search("preparing the tokenizer  [5-9] s", text), DEADLINE_SECONDS)
    draw(screen, "starting-80x24")
    screen.resize(*LARGE)
    screen.until(lambda text: re.search(r" (5[5-9]|[67]\d)\.\d%$", text, re.MULTILINE), DEADLINE_SECONDS)
    screen.until(lambda text: "evaluating" not in text, DEADLINE_SECONDS)
    draw(screen, "training-120x40")
    screen.resize(*SMALL)
    screen.until(lambda text: re.search(r"^── small.{60,70}──$", text, re.MULTILINE), DEADLINE_SECONDS)
    draw(screen, "training-80x24")
    screen.until("finished ──", DEADLINE_SECONDS)
    screen.rest()
    draw(screen, "finished-80x24")


def draw(screen: Screen, name: str) -> None:
    """Render what the terminal shows, colours included, as an SVG."""
    cells = screen.cells()
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=len(cells[0]), file=nowhere, force_terminal=True, highlight=False)
        for row in cells:
            console.print(Text.assemble(*((cell.data, style(cell)) for cell in row)), no_wrap=True, overflow="crop")
    svg = console.export_svg(title="Forethought", unique_id=name)
    # rich asks a server for its font, which no page shows that embeds the picture; any monospaced one does.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    (IMAGES / f"{name}.svg").write_text(svg, encoding="utf-8")
    print(f"docs/images/{name}.svg", flush=True)


def style(cell) -> Style:
    """The style of a character of pyte, for which `dim` is blinking (tests/helpers/terminal.py)."""
    colour = None if cell.fg == "default" else {"brown": "yellow"}.get(cell.fg, cell.fg)
    return Style(color=colour, bold=cell.bold, italic=cell.italics, dim=cell.blink)


if __name__ == "__main__":
    main()
