"""`pip install .` gives `forethought`: the model's room by itself, which loads a snapshot and writes text."""

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from model import ModelConfig, TransformerLM
from model.snapshot import file
from tests.helpers.text import REPOSITORY

ROOM = REPOSITORY / "model"
OWN = {"main", "storage", "engine", "model", "sources", "shard_cache", "tests", "benchmarks"}
COMES_WITH = {"triton": "torch"}
PEERS = {"lightning", "litgpt", "litdata", "ctranslate2", "llama_cpp"}  # what a benchmark runs where it is installed
NEEDS = {"torch>=2.11,<3", "tokenizers>=0.22,<1", "pydantic>=2.12,<3", "pydantic_core>=2,<3", "numpy>=2,<3"}
PROGRAM = """
import json, sys
import forethought
from forethought import load

lm = load(sys.argv[1], device="cpu")
text = lm.generate("The", max_new_tokens=8, seed=0, stop_at_eos=False)
print(json.dumps({"text": text, "from": forethought.__file__, "modules": sorted(sys.modules)}))
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """The output of a Python started in `cwd`, which sees nothing of this checkout."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves its own folders beside what it builds."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / name)
    shutil.copytree(ROOM, folder / "model", ignore=shutil.ignore_patterns("__pycache__"))
    run("-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-w", "dist", cwd=folder)
    (built,) = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, as training would save it."""
    path = tmp_path_factory.mktemp("snapshot") / "lm_current.pth"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet))
    config = ModelConfig(num_layers=1, num_heads=2, hidden_size=16, seq_length=16)
    torch.manual_seed(0)
    model = TransformerLM(config, tokenizer.get_vocab_size())
    described = {**config.model_dump(), "vocab_size": model.vocab_size, "eos_token_id": 0}
    file.write(path, file.Snapshot(model.state_dict(), described, tokenizer.to_str()))
    return path


def test_the_wheel_holds_the_model_room_alone(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (licence,) = (name for name in archive.namelist() if name.endswith("/LICENSE"))
        assert archive.read(licence) == (REPOSITORY / "LICENSE").read_bytes()
    room = {path.relative_to(ROOM).as_posix() for path in ROOM.rglob("*.py")}
    kernels = {"decoding/kernel.c", "decoding/sampling.c", "products/sgemm.c"}
    assert names == {f"forethought/{name}" for name in room | kernels | {"py.typed"}}


def test_the_metadata_says_what_it_needs(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = message_from_bytes(archive.read(name))
    requirements = [line.replace(" ", "") for line in metadata.get_all("Requires-Dist", [])]
    needs = {line for line in requirements if ";" not in line}
    assert {normal(line) for line in needs} == {normal(line) for line in NEEDS}
    extras = {normal(line.split(";")[0])[0] for line in requirements if 'extra=="export"' in line}
    assert extras == {"safetensors", "gguf"}
    assert (metadata["Name"], metadata["License-Expression"]) == ("forethought", "Apache-2.0")
    assert metadata["Requires-Python"] == ">=3.11"


def normal(requirement: str) -> tuple[str, frozenset[str]]:
    """A requirement's name and its bounds, in whichever order they stand."""
    name = requirement.split(">")[0].split("<")[0]
    return name, frozenset(requirement.removeprefix(name).split(","))


def test_the_installed_package_loads_and_generates(wheel: Path, snapshot: Path, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    site = tmp_path / "site"
    run("-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel, cwd=elsewhere)
    assert {path.name.split("-")[0] for path in site.iterdir()} == {"forethought"}
    output = run("-c", PROGRAM, snapshot, cwd=elsewhere, PYTHONPATH=str(site), OMP_NUM_THREADS="1")
    told = json.loads(output)
    assert told["text"]
    assert Path(told["from"]).is_relative_to(site)
    packages = {name.split(".")[0] for name in told["modules"]}
    assert "tokenizers" in packages
    assert packages.isdisjoint({"model", "engine", "sources", "shard_cache", "storage", "transformers", "deepspeed"})


def imported(*names: str) -> set[str]:
    """The packages that the files under these names import, as requirements call them."""
    found: set[str] = set()
    for name in names:
        path = REPOSITORY / name
        for source in [path] if path.is_file() else path.rglob("*.py"):
            for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    found.add(node.module.split(".")[0])
    return {COMES_WITH.get(name, name) for name in found - OWN - set(sys.stdlib_module_names)}


def declared(name: str) -> set[str]:
    lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
    return {re.split(r"[\[<>=]", line)[0] for line in lines if line and line[0] not in "#-"}


def test_dev_requirements_are_what_tests_import():
    """What the code imports is checked by tests/unit/test_structure.py."""
    tools = {"ruff", "pyright", "setuptools", "pytest-xdist", "trackio", "wandb"}  # the trackers are imported by name
    imports = imported("tests", "benchmarks", "docs") - PEERS
    assert declared("requirements-dev.txt") == imports - declared("requirements.txt") | tools


def test_constraints_hold_the_exact_version_of_every_requirement():
    exact = [
        line for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"
    ]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in exact)
    assert {line.split("==")[0] for line in exact} >= declared("requirements.txt") | declared("requirements-dev.txt")
