"""model/loading.py: one file in, a model out; or a sentence."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import ModelConfig, TransformerLM, load
from model.snapshot import SnapshotError, write
from tests.helpers.text import REPOSITORY

EOS = 0


@pytest.fixture
def path(tmp_path, snapshot) -> Path:
    write(tmp_path / "lm.pth", snapshot)
    return tmp_path / "lm.pth"


def test_a_loaded_model_equals_the_one_in_memory(path, language_model):
    loaded = load(path, device="cpu")
    arguments = {"max_new_tokens": 60, "seed": 4, "no_repeat_ngram": 3}
    assert loaded.generate("The import statement", **arguments) == language_model.generate(
        "The import statement", **arguments
    )
    assert loaded.score("The import statement").mean_nll == language_model.score("The import statement").mean_nll
    assert not loaded.model.training and loaded.model.tokens.weight.dtype == torch.float32


@pytest.mark.parametrize("change", [{}, {"positions": "rotary", "norm": "rms", "qk_norm": True}])
def test_loading_does_without_torchs_compiler(tmp_path, snapshot, change):
    """Importing it takes most of a second."""
    config = {**snapshot.config, **change}
    config.pop("eos_token_id")
    vocab_size = config.pop("vocab_size")
    model = TransformerLM(ModelConfig(**config), vocab_size)
    write(tmp_path / "lm.pth", replace(snapshot, config={**snapshot.config, **change}, model=model.state_dict()))
    code = "import sys, model; model.load(sys.argv[1], device='cpu'); assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "lm.pth")], cwd=REPOSITORY, check=True)


def test_files_that_hold_no_whole_model(tmp_path, snapshot, trained):
    path = tmp_path / "x.pth"
    torch.save(trained.state_dict(), path)
    with pytest.raises(SnapshotError, match="holds weights only, without configuration and tokenizer"):
        load(path)
    write(path, replace(snapshot, config={**snapshot.config, "hidden_size": 64}))
    with pytest.raises(SnapshotError, match=r"weights and configuration do not match\. Loaded"):
        load(path)
    write(path, replace(snapshot, config={**snapshot.config, "num_heads": 5}))
    with pytest.raises(SnapshotError, match="does not describe a model of this version"):
        load(path)
    write(path, replace(snapshot, tokenizer="{}"))
    with pytest.raises(SnapshotError, match=r"x\.pth: the tokenizer cannot be read"):
        load(path)
    write(path, replace(snapshot, config={**snapshot.config, "eos_token_id": 500}))
    with pytest.raises(SnapshotError, match="the end-of-text id 500 do not fit the model's vocabulary of 500"):
        load(path)
    with pytest.raises(SnapshotError, match="cannot be opened"):
        load(tmp_path / "absent.pth")


def test_the_package_stands_alone_under_another_name(tmp_path):
    """As it is installed: without the other rooms, and without libraries that only training needs."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "model", tmp_path / "forethought", ignore=ignored)
    code = "import sys; from forethought import load; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    imported = set(run.stdout.split())
    assert {"torch", "tokenizers", "pydantic", "forethought"} <= imported
    assert not imported & {"model", "engine", "sources", "deepspeed", "datasets", "transformers", "safetensors"}


def altered(path, snapshot, **config):
    """The snapshot's file with another configuration."""
    write(path, replace(snapshot, config={**snapshot.config, **config}))
    return path


LOAD = """
import resource, sys
from model import load
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        print(load(path, "cpu"))
    except ValueError as error:
        print(str(error).removeprefix(path))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_configuration_is_compared_before_anything_is_allocated(tmp_path, snapshot):
    asked = [
        {"vocab_size": 2 * 10**7},
        {"vocab_size": 10**8, "hidden_size": 10**6},
        {"hidden_size": 2**20},
        {"num_layers": 40},
        {"seq_length": 2**20},
        {"tie_embeddings": False, "vocab_size": 10**8},
        {"vocab_size": 10**30},
        {"vocab_size": 2**62},
    ]
    paths = [str(altered(tmp_path / f"{number}.pth", snapshot, **keys)) for number, keys in enumerate(asked)]
    printed = subprocess.run(
        [sys.executable, "-c", LOAD, *paths], cwd=REPOSITORY, capture_output=True, text=True, timeout=100
    )
    assert printed.returncode == 0, printed.stderr[-2000:]
    *sentences, grown = printed.stdout.splitlines()
    assert all("do not match" in sentence for sentence in sentences[:6]), sentences
    assert all("does not describe a model of this version" in sentence for sentence in sentences[6:]), sentences
    assert int(grown) < 150_000, f"{grown} kB"


def test_what_no_file_holds_is_bounded_by_the_machine(tmp_path, snapshot, config, tokenizer):
    """The causal mask of a million positions has a terabyte, and rotary positions are not in the weights."""
    rotary = TransformerLM(config.model_copy(update={"positions": "rotary"}), tokenizer.get_vocab_size())
    fits = replace(snapshot, model=rotary.state_dict())
    load(altered(tmp_path / "x.pth", fits, positions="rotary"), "cpu")
    with pytest.raises(SnapshotError, match=r"the model takes 1,1\d\d GB, more than this machine has\."):
        load(altered(tmp_path / "x.pth", fits, positions="rotary", seq_length=2**20), "cpu")
