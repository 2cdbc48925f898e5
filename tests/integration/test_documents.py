"""What README, docs/ and examples/ show is tried: every JSON example parses, every block of Python runs, and so does
each command that does not take long."""

import contextlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

import model
from engine import train
from engine.config import parse_preset
from engine.errors import PresetError
from tests.helpers.jobs import STEP_LINE, Job
from tests.helpers.text import REPOSITORY
from tests.helpers.training import TOKENS_PER_STEP, start_main, tiny_values

PAGES = [REPOSITORY / "README.md", REPOSITORY / "examples" / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
TEXTS = {page.relative_to(REPOSITORY).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


def blocks(text: str, language: str) -> list[str]:
    """What stands in fences of a language; of none where it is empty."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


def inline(text: str) -> list[str]:
    """What stands between backticks in running text."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [re.sub(r"\s+", " ", found) for found in re.findall(r"`([^`]+)`", text)]


# JSON


def examples() -> Iterator[Any]:
    for name, text in TEXTS.items():
        for example in [*blocks(text, "json"), *inline(text)]:
            if re.match(r'\s*(\{\s*"|"\w+": )', example):
                yield pytest.param(example, id=f"{name}-{' '.join(example.split())[:40]}")


def places(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The presets that an example may be a part of."""
    dataset = {"type": "hf", "dataset": "owner/name"}
    yield values
    yield from ({section: values} for section in ("model", "train", "data", "auxiliary"))
    for source in ({}, dataset, {"type": "files", "path": "."}):
        yield {"data": {"sources": [{**source, **values}]}}
    yield {"data": {"sources": [{**dataset, "fields": values, "format": " ".join(f"{{{key}}}" for key in values)}]}}
    yield {"data": {"tokenizer": values}}


@pytest.mark.parametrize("example", list(examples()))
def test_every_json_example_belongs_into_a_preset(example: str):
    values = json.loads(example if example.lstrip().startswith("{") else f"{{{example}}}")
    problems = []
    for preset in places(values):
        try:
            parse_preset({"name": "example", **preset})
            return
        except PresetError as error:
            problems.append(str(error))
    raise AssertionError("\n".join(problems))


# Python


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, topics_folder: Path) -> Path:
    """A folder with the checkpoints of a model that has all that the examples ask for."""
    parts = ("policy", "dynamics", "value", "draft")
    auxiliary = {f"enable_{part}": True for part in parts} | {"value_horizons": [4, 16]}
    folder = tmp_path_factory.mktemp("trained")
    preset = parse_preset(tiny_values(topics_folder, auxiliary=auxiliary))
    train(preset, token_budget=8 * TOKENS_PER_STEP, checkpoint_dir=folder / "checkpoints")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name, text in TEXTS.items() if blocks(text, "python")])
def test_the_python_on_a_page_runs_from_top_to_bottom(page: str, trained: Path, tmp_path: Path, monkeypatch):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "forethought", model)  # as which it is installed
    texts = [text for text in sorted(topics.values()) if len(text) > 500][:40]
    names: dict[str, Any] = {"lm": model.load("checkpoints/lm_current.pth"), "load": model.load, "texts": texts}
    printed = io.StringIO()
    for block in blocks(TEXTS[page], "python"):
        with contextlib.redirect_stdout(printed):
            exec(compile(block, page, "exec"), names)
    assert "print(" not in "".join(blocks(TEXTS[page], "python")) or printed.getvalue().strip()


# Commands


WORDS = r"(?:python|printf|torchrun|deepspeed|cp \S+|pip|lm_eval|tensorboard|trackio|wandb) \S|export [A-Z]"
# The tests that run a command.
RUN = {
    "python main.py": "test_main.py",
    "python main.py | tee log": "test_main.py",  # into a pipe
    "deepspeed main.py": "test_processes.py",
    "torchrun --nproc_per_node=8 main.py": "test_processes.py",  # with two
    "printf '02\\n' | python main.py": "test_documents.py",
    "cp examples/notes.json configs/10_notes.json": "test_documents.py",
    "printf 'e\\n' | python main.py": "test_documents.py",
    "printf 'e\\n\\nmodel.gguf\\nq8_0\\n' | python main.py": "test_documents.py",
    "python -m pip install .": "test_package.py",
}
# Those that no test runs, by how they begin, with the reason.
LONG = {
    "python -m benchmarks.": "takes minutes; test_benchmarks.py runs the shorter ones as small as they go",
    "python -m pip install": "downloads; .ci/run does it",
    "pip install": "downloads",
    "lm_eval": "downloads its tasks and takes hours; python -m benchmarks.exports runs it",
    "torchrun --nnodes": "several machines; test_hosts.py makes some of network namespaces",
    "deepspeed --hostfile": "several machines; test_hosts.py makes some of network namespaces",
    "printf '05\\n' | torchrun --nnodes": "several machines; test_hosts.py makes some of network namespaces",
    "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1": "a variable of the line after it",
    "tensorboard --logdir": "a server that goes on until it is stopped",
    "trackio show": "a server that goes on until it is stopped",
    "wandb sync": "uploads to an account",
    "wandb login": "asks for an account's key",
}


def commands() -> set[str]:
    found: set[str] = set()
    for text in TEXTS.values():
        fenced = "\n".join(blocks(text, "")).replace("\\\n", " ").splitlines()
        for line in [*fenced, *inline(text)]:
            line = re.sub(r"\s+", " ", line.split("  #")[0]).strip()
            if re.match(WORDS, line) and not line.startswith("python -m benchmarks"):
                found.add(line)
    return found


def test_each_command_is_run_by_a_test_or_takes_long():
    found = commands()
    assert len(found) > 10
    unknown = {line for line in found if line not in RUN and not line.startswith(tuple(LONG))}
    assert not unknown
    assert RUN.keys() <= found, "no page has it any more"
    for name in set(RUN.values()):
        assert (REPOSITORY / "tests" / "integration" / name).is_file()


@pytest.mark.slow
def test_the_commands_of_examples_train_the_notes(tmp_path: Path):
    """And the sentence that the notes are read very often."""
    shutil.copytree(REPOSITORY / "examples", tmp_path / "examples")
    (tmp_path / "configs").mkdir()
    subprocess.run(["cp", "examples/notes.json", "configs/10_notes.json"], cwd=tmp_path, check=True)
    job = Job(tmp_path, start_main(tmp_path))
    try:
        job.answer("10\n")
        job.until(STEP_LINE)
        job.signal(signal.SIGTERM)
        assert re.search(r"advice +A run reads notes \(about \S+ tokens\) [\d,]+ times", job.output)
        assert job.process.wait(60) == 143
    finally:
        job.kill()


@pytest.mark.slow
def test_the_offline_preset_trains_without_a_network(tmp_path: Path):
    """README's command for a machine without one, up to the first step."""
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    job = Job(tmp_path, start_main(tmp_path, HF_HUB_OFFLINE="1"))
    try:
        job.answer("02\n")
        job.until(STEP_LINE)
        job.signal(signal.SIGTERM)
        assert job.process.wait(60) == 143
    finally:
        job.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answers", "written"), [("e\\n", "exports/tiny/config.json"), ("e\\n\\nmodel.gguf\\nq8_0\\n", "model.gguf")]
)
def test_the_commands_of_export_write_what_they_say(home: Path, trained: Path, answers: str, written: str):
    shutil.copytree(trained / "checkpoints", home / "checkpoints")
    command = f"printf '{answers}' | {sys.executable} {REPOSITORY / 'main.py'}"
    done = subprocess.run(["sh", "-c", command], cwd=home, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (home / written).is_file()
