"""What a newcomer copies: the presets of examples/, the notebook, and the Dockerfile."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest

from engine import load_preset, train
from engine.config import parse_preset
from sources.config import TrainBPE
from sources.registry import open_sources
from tests.helpers.text import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
PRESETS = sorted(EXAMPLES.glob("*.json"))
NOTEBOOK = EXAMPLES / "use_a_model.ipynb"
DOCKERFILE = REPOSITORY / "Dockerfile"


# Presets


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_example_presets_read_their_texts(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY)  # where main.py is started
    preset = load_preset(path)
    opened = open_sources(preset.data)
    assert not opened.failures
    (amount,) = opened.amounts.values()
    assert 2_000 < amount.num_bytes < 20_000
    (source,) = opened.sources.values()
    texts = [text for shard in range(source.num_shards) for text, _ in source.read(shard, None)]
    assert len(texts) >= 10 and min(map(len, texts)) >= preset.data.min_text_length


def test_there_are_three_example_presets_that_need_no_network():
    assert [path.stem for path in PRESETS] == ["notes", "questions", "recipes"]
    assert all(isinstance(load_preset(path).data.tokenizer, TrainBPE) for path in PRESETS)


# The notebook


def cells() -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_kept_without_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook["cells"])


@pytest.mark.slow
def test_the_notebook_runs_on_a_model_of_the_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY)
    values = json.loads((EXAMPLES / "notes.json").read_text(encoding="utf-8"))
    values["train"] |= {"per_gpu_batch_size": 4, "compile": False}
    train(parse_preset(values), token_budget=20_000, checkpoint_dir=tmp_path / "checkpoints")
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    names: dict[str, object] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for cell in cells():
            exec(compile(cell, NOTEBOOK.name, "exec"), names)
    assert "nats per token over" in printed.getvalue() and "%)  {}" in printed.getvalue()
    assert (tmp_path / "examples" / "exported" / "config.json").exists()


# The Dockerfile


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines()) if word]


def arguments(word: str) -> list[str]:
    return [rest for found, rest in instructions() if found == word]


def test_the_image_has_a_pinned_base_of_a_version_that_runs_it():
    (base,) = arguments("FROM")
    name, tag = base.split(":")
    assert name == "python" and tag.startswith("3.11")  # which constraints.txt is for


def test_the_image_gets_every_file_that_a_run_needs():
    copied = {name for rest in arguments("COPY") for name in shlex.split(rest)[:-1]}
    assert all((REPOSITORY / name).exists() for name in copied)
    code = {"main.py", "storage.py", "engine", "model", "sources", "shard_cache", "configs", "requirements.txt"}
    assert code <= copied
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert not copied & set(ignored)


def test_the_image_runs_as_a_user_who_may_write_the_volume():
    order = [word for word, _ in instructions()]
    (user,), (volume,), (folder,) = arguments("USER"), arguments("VOLUME"), arguments("WORKDIR")
    assert user != "root" and order.index("USER") > max(i for i, word in enumerate(order) if word in ("RUN", "COPY"))
    assert volume == f"{folder}/checkpoints"
    assert any(f"chown -R {user} checkpoints" in run and f" {user} " in run for run in arguments("RUN"))


def test_the_image_is_small_and_has_exact_versions():
    for run in arguments("RUN"):
        if "apt-get install" in run:
            assert "--no-install-recommends" in run and "rm -rf /var/lib/apt/lists/*" in run
        if "requirements.txt" in run:
            assert "-c constraints.txt" in run and "--torch-backend=cpu" in run
    assert not arguments("ADD")


def test_the_images_command_is_readmes_and_needs_no_network():
    (command,) = arguments("CMD")
    shell, option, script = json.loads(command)
    assert (shell, option) == ("bash", "-c") and script.count("exec python main.py") == 2
    answer = re.search(r"printf '(\d+)\\n'", script)[1]
    assert f"printf '{answer}\\n' | python main.py" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (path,) = (REPOSITORY / "configs").glob(f"{answer}_*.json")
    data = load_preset(path).data
    assert isinstance(data.tokenizer, TrainBPE) and {spec.type for spec in data.sources} == {"python_packages"}
