"""The mistakes that a newcomer makes, each made for real against main.py, with what it prints and its exit status.

    python -m benchmarks.mistakes [--only PART,PART]

Each has a folder of its own with a preset `notes` over 12 short texts. Where a mistake is none, and the run trains, it
is stopped after its first step line. Mistakes about disks need `unshare` to mount a small or a read-only one, and that
about Python's version an older Python; without them they are left out and named.
"""

import argparse
import contextlib
import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from tests.helpers.hub_server import HubServer
from tests.helpers.pdf_files import one_page

MAIN = Path(__file__).parents[1] / "main.py"
SECONDS = 300  # after which a run that neither ends nor trains is stopped
PRESET: dict[str, Any] = {
    "name": "notes",
    "model": {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "seq_length": 64},
    "train": {"per_gpu_batch_size": 16, "compile": False, "eval_tokens": 2000, "log_interval_seconds": 0.1},
    "data": {"sources": [{"type": "files", "path": "./notes", "glob": "**/*.txt"}], "tokenizer": {"train_bpe": 512}},
}
NO_DEEPSPEED = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Without())
"""


@dataclass
class Home:
    """The folder in which a mistake is made."""

    path: Path
    hub: str  # the address of a hub without datasets and tokenizers
    arguments: list[str] = field(default_factory=list)
    answer: str = "00"
    variables: dict[str, str] = field(default_factory=dict)
    python: str = sys.executable
    before: str = ""  # shell commands that are run first, in the same mount namespace

    def preset(self, name: str = "00_notes", **sections: Any) -> None:
        """Write a preset: PRESET with these keys in its sections."""
        values = copy.deepcopy(PRESET)
        for section, changes in sections.items():
            values[section] = {**values[section], **changes} if isinstance(changes, dict) else changes
        self.write(json.dumps(values, indent=2), name)

    def write(self, text: str, name: str = "00_notes") -> None:
        (self.path / "configs").mkdir(exist_ok=True)
        (self.path / "configs" / f"{name}.json").write_text(text)

    def texts(self, folder: str = "notes", kind: str = "txt", length: int = 3000, number: int = 12) -> Path:
        place = self.path / folder
        place.mkdir(exist_ok=True)
        for title, text in sorted(topics.items())[: 3 * number : 3]:
            (place / f"{title}.{kind}").write_text(text[:length])
        return place

    def without(self, *packages: str) -> None:
        """Make Python not find these packages."""
        (self.path / "hidden").mkdir()
        (self.path / "hidden" / "sitecustomize.py").write_text(NO_DEEPSPEED.format(names=set(packages)))
        self.variables["PYTHONPATH"] = str(self.path / "hidden")


MISTAKES: dict[str, Callable[[Home], str | None]] = {}


def mistake(sentence: str) -> Callable[[Callable[[Home], str | None]], Callable[[Home], str | None]]:
    """Register what makes a mistake in a Home; it returns why it cannot be made here, if it cannot."""

    def register(make: Callable[[Home], str | None]) -> Callable[[Home], str | None]:
        MISTAKES[sentence] = make
        return make

    return register


# Presets


@mistake("a typo in a key")
def _key(home: Home) -> None:
    home.preset(train={"learing_rate": 1e-3})


@mistake("a missing comma")
def _comma(home: Home) -> None:
    home.write('{\n  "name": "notes",\n  "model": {"hidden_size": 64}\n  "data": {"tokenizer": "gpt2"}\n}\n')


@mistake("a comment in the JSON")
def _comment(home: Home) -> None:
    home.write('{\n  "name": "notes", // mine\n  "model": {"hidden_size": 64}\n}\n')


@mistake("a number as a string")
def _string(home: Home) -> None:
    home.preset(train={"learning_rate": "0.001"})


@mistake("heads that do not divide the width")
def _heads(home: Home) -> None:
    home.preset(model={"num_heads": 3})


@mistake("a huge batch")
def _batch(home: Home) -> None:
    home.texts()
    home.preset(train={"per_gpu_batch_size": 1_000_000})


@mistake("a huge model")
def _model(home: Home) -> None:
    home.texts()
    home.preset(model={"hidden_size": 65536, "num_layers": 96})


@mistake("a tracker that is not installed")
def _tracker(home: Home) -> None:
    home.texts()
    home.preset(train={"log_to": ["wandb"]})
    home.without("wandb")


@mistake("another architecture than that of the checkpoints")
def _architecture(home: Home) -> None:
    home.texts()
    home.preset()
    run(home)
    home.preset(model={"hidden_size": 128})


# Text


@mistake("a wrong folder")
def _folder(home: Home) -> None:
    home.texts("nots")
    home.preset()


@mistake("an empty folder")
def _empty(home: Home) -> None:
    (home.path / "notes").mkdir()
    home.preset()


@mistake("files of another kind than the pattern's")
def _glob(home: Home) -> None:
    home.texts(kind="md")
    home.preset()


@mistake("only Word documents")
def _word(home: Home) -> None:
    for path in home.texts(kind="docx").iterdir():
        path.write_bytes(b"PK\x03\x04" + b"\0" * 2000)
    home.preset(data={"sources": [{"type": "files", "path": "./notes"}]})


@mistake("a PDF file that needs OCR")
def _scan(home: Home) -> None:
    (home.path / "papers").mkdir()
    (home.path / "papers" / "scan.pdf").write_bytes(one_page(b"10 10 100 100 re f"))
    home.preset(data={"sources": [{"type": "pdf", "path": "./papers"}]})


@mistake("JSON lines whose text has another name")
def _field(home: Home) -> None:
    (home.path / "notes").mkdir()
    rows = [{"body": text[:3000], "id": title} for title, text in sorted(topics.items())[:12]]
    (home.path / "notes" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    home.preset(data={"sources": [{"type": "files", "path": "./notes", "text_field": "txt"}]})


@mistake("only documents of ten tokens")
def _short(home: Home) -> None:
    home.texts(length=40)
    home.preset()


@mistake("one document")
def _one(home: Home) -> None:
    home.texts(number=1)
    home.preset()


@mistake("sequences longer than any document")
def _long(home: Home) -> None:
    home.texts(length=400)
    home.preset(model={"seq_length": 2048})


@mistake("a handful of notes")
def _few(home: Home) -> None:
    home.texts()
    home.preset()


@mistake("a typo in the tokenizer's name")
def _tokenizer(home: Home) -> None:
    home.texts()
    home.preset(data={"tokenizer": "gtp2"})


@mistake("a typo in a dataset's name")
def _dataset(home: Home) -> None:
    home.preset(data={"sources": [{"type": "hf", "dataset": "wikimedia/wikipdia"}]})


@mistake("a type of source that does not exist")
def _type(home: Home) -> None:
    home.preset(data={"sources": [{"type": "file", "path": "./notes"}]})


@mistake("no network")
def _network(home: Home) -> None:
    home.preset(data={"sources": ["wikipedia"], "tokenizer": "gpt2"})
    home.variables["HF_ENDPOINT"] = "http://127.0.0.1:9"


# Starting


@mistake("python main.py 02")
def _argument(home: Home) -> None:
    home.preset()
    home.arguments = ["02"]


@mistake("a preset that does not exist")
def _number(home: Home) -> None:
    home.preset()
    home.answer = "7"


@mistake("a preset's file name with spaces, which is none")
def _spaces(home: Home) -> None:
    home.texts()
    home.preset("my notes")
    home.answer = "my notes"


@mistake("a start in another folder")
def _elsewhere(home: Home) -> None:
    home.answer = ""


@mistake("two starts at once")
def _twice(home: Home) -> None:
    home.texts()
    home.preset()
    first = start(home)
    following(first, is_step)
    home.variables["FIRST"] = str(first.pid)


@mistake("g before anything is trained")
def _generate(home: Home) -> None:
    home.preset()
    home.answer = "g"


# The machine


@mistake("a disk without space")
def _space(home: Home) -> str | None:
    home.texts()
    home.preset(model={"hidden_size": 256})
    (home.path / "checkpoints").mkdir()
    return mount(home, "mount -t tmpfs -o size=4m none checkpoints")


@mistake("checkpoints that cannot be written")
def _read_only(home: Home) -> str | None:
    home.texts()
    home.preset()
    (home.path / "checkpoints").mkdir()
    return mount(home, "mount --bind checkpoints checkpoints && mount -o remount,ro,bind checkpoints")


@mistake("an old Python")
def _python(home: Home) -> str | None:
    home.preset()
    for version in range(8, 11):
        pattern = f".pyenv/versions/3.{version}.*/bin/python3.{version}"
        for python in [*filter(None, [shutil.which(f"python3.{version}")]), *map(str, Path.home().glob(pattern))]:
            if subprocess.run([python, "-c", ""], capture_output=True).returncode == 0:
                home.python = python
                return None
    return "there is no older Python here"


@mistake("DeepSpeed is not installed")
def _deepspeed(home: Home) -> None:
    home.preset()
    home.without("deepspeed")


@mistake("nothing is installed")
def _nothing(home: Home) -> None:
    home.preset()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home.path / "new")], check=True)
    home.python = str(home.path / "new" / "bin" / "python")


def mount(home: Home, command: str) -> str | None:
    """Let a mistake run behind a `mount` in a namespace of its own; says why that cannot be done."""
    tried = subprocess.run(["unshare", "-rm", "sh", "-c", command], cwd=home.path, capture_output=True, text=True)
    home.before = command
    return f"unshare: {tried.stderr.strip()}" if tried.returncode else None


# Running


def start(home: Home) -> subprocess.Popen[str]:
    """main.py in a Home, which has been given its answer."""
    command = [home.python, str(MAIN), *home.arguments]
    if home.before:
        command = ["unshare", "-rm", "sh", "-c", f'{home.before} && exec "$@"', "sh", *command]
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "HF_", "PYTHON"))}
    process = subprocess.Popen(
        command,
        cwd=home.path,
        env=variables | {"HF_ENDPOINT": home.hub, "HF_HOME": str(home.path / "hub"), **home.variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(home.answer + "\n")
        process.stdin.close()
    return process


def is_step(line: str) -> bool:
    """Whether a line is that of a step of training."""
    return re.search(r"\bstep +[\d,]+ ", line) is not None


def following(process: subprocess.Popen[str], is_last: Callable[[str], bool]) -> list[str]:
    """The lines up to the first that is the last one, or to the end."""
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if is_last(line):
            break
    return lines


def run(home: Home) -> tuple[list[str], str]:
    """What a Home's main.py prints, and how it ends."""
    process, stopped = start(home), False
    begin = time.monotonic()
    lines = following(process, lambda line: is_step(line) or time.monotonic() > begin + SECONDS)
    if process.poll() is None and lines and is_step(lines[-1]):
        process.send_signal(signal.SIGINT)
        stopped = True
    process.stdout.read()
    status = process.wait(60)
    return lines, f"exit status {status}" + (" (stopped here: it trains)" if stopped else "")


def shown(lines: list[str], home: Home) -> Iterator[str]:
    """Lines without what differs from one run to the next: places, times, numbers of processes, names of machines."""
    for line in lines:
        line = line.replace(str(home.path.resolve()), ".").replace(str(home.path), ".").replace(str(MAIN.parent), "...")
        line = line.replace(str(Path.home()), "~").replace(home.hub, "https://huggingface.co")
        line = re.sub(re.escape(sys.prefix) + r"[^\s)]*python[^\s)]*", "python", line)
        line = line.replace("http://127.0.0.1:9", "https://huggingface.co")
        line = re.sub(r"process \d+ on [^\s.]+", "process 12345 on this-machine", line)
        yield re.sub(r"^[\d-]{10} [\d:]{8}  ", "", line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="parts of sentences, separated by commas; empty: all")
    wanted = [part for part in parser.parse_args().only.split(",") if part]
    print(f"$ python -m benchmarks.mistakes{' --only ' + ','.join(wanted) if wanted else ''}")
    for sentence, make in MISTAKES.items():
        if wanted and not any(part in sentence for part in wanted):
            continue
        with tempfile.TemporaryDirectory(prefix="mistake-") as folder, HubServer() as hub:
            home = Home(Path(folder), hub.url)
            print(f"\n## {sentence}", flush=True)
            if problem := make(home):
                print(f"left out: {problem}")
                continue
            lines, ending = run(home)
            print("\n".join([*shown(lines, home), f"[{ending}]"]), flush=True)
            if first := home.variables.get("FIRST"):
                os.kill(int(first), signal.SIGKILL)


if __name__ == "__main__":
    main()
