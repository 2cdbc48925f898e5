"""Draws docs/run.svg: the terminal of two real starts of main.py, the first one stopped by Ctrl-C.

    python docs/draw_run.py [--keep FOLDER]

It trains a small preset on this machine's Python sources in a scratch folder, behind a pseudo-terminal, and renders
what that terminal showed, unedited. `--keep` trains in FOLDER and leaves it there, with the terminal's text in run.txt.
"""

import argparse
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text

REPOSITORY = Path(__file__).resolve().parents[1]
COLUMNS = 116
DEADLINE_SECONDS = 900
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
        "eval_interval_tokens": 500_000,
        "compile": False,
    },
    "data": {"sources": [{"type": "python_packages"}], "tokenizer": {"train_bpe": 4096}},
}


def show(folder: Path, answer: str, may_stop: Callable[[str], bool]) -> str:
    """What the terminal shows of one start of main.py in `folder`: `answer` is typed, and Ctrl-C once `may_stop`."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    command = [sys.executable, str(REPOSITORY / "main.py")]
    process = subprocess.Popen(
        command, cwd=folder, stdin=child, stdout=child, stderr=child, env=environment, start_new_session=True
    )
    os.close(child)
    shown, deadline, answered, stopped = "", time.monotonic() + DEADLINE_SECONDS, False, False
    try:
        while time.monotonic() < deadline:
            if select.select([parent], [], [], 0.5)[0]:
                try:
                    received = os.read(parent, 65536)
                except OSError:  # the other side is closed
                    break
                if not received:
                    break
                shown += received.decode("utf-8", "replace")
                print(received.decode("utf-8", "replace"), end="", flush=True)
            if not answered and "Preset by number or name" in shown:
                os.write(parent, f"{answer}\n".encode())
                answered = True
            if not stopped and may_stop(shown):
                process.send_signal(signal.SIGINT)
                stopped = True
        process.wait(60)
    finally:
        process.kill()
        os.close(parent)
    return shown.replace("\r\n", "\n")


def draw(shown: str, target: Path) -> None:
    """Renders a terminal's text, colours included, as an SVG."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        for line in shown.rstrip().split("\n"):
            console.print(Text.from_ansi(line), highlight=False)
    svg = console.export_svg(title="python main.py", unique_id="run")
    # rich asks a server for its font, which no page shows that embeds the picture; any monospaced one does.
    target.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.keep or Path(scratch)
        (folder / "configs").mkdir(parents=True, exist_ok=True)
        (folder / "configs" / "05_small.json").write_text(json.dumps(PRESET, indent=1), encoding="utf-8")
        shutil.copy(REPOSITORY / "configs" / "02_offline_python.json", folder / "configs")
        first = show(folder, "05", lambda text: "bits per byte" in text and text.rfind("ETA") > text.rfind("sample:"))
        second = show(folder, "05", lambda text: "ETA" in text)
        transcript = f"$ python main.py\n{first.rstrip()}\n\n$ python main.py\n{second}"
        (folder / "run.txt").write_text(transcript, encoding="utf-8")
    draw(transcript, REPOSITORY / "docs" / "run.svg")


if __name__ == "__main__":
    main()
