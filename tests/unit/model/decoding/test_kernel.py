"""model/decoding/kernel.py: compiled once, kept where only the user writes, and done without where it cannot be had."""

import os
import stat
import subprocess
import sys

import pytest

from model.decoding import kernel
from model.snapshot import Snapshot, write
from tests.helpers.text import REPOSITORY


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel.library.cache_clear()
    yield tmp_path / "forethought"
    kernel.library.cache_clear()


def test_it_is_compiled_once_and_kept(fresh):
    assert kernel.library() is not None
    (path,) = fresh.iterdir()
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o700
    made = path.stat().st_mtime_ns
    kernel.library.cache_clear()
    assert kernel.library() is not None and path.stat().st_mtime_ns == made


def test_a_folder_that_others_can_write_is_not_used(fresh):
    fresh.mkdir()
    fresh.chmod(0o777)
    assert kernel.library() is None
    assert not list(fresh.iterdir())


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_there_is_no_kernel(fresh, monkeypatch, compiler):
    monkeypatch.setenv("CC", compiler)
    assert kernel.library() is None


def test_text_is_written_without_a_compiler(tmp_path, language_model, trained, tokenizer):
    """In a process of its own, by torch: the same greedy text."""
    config = {**trained.config.model_dump(), "vocab_size": trained.vocab_size, "eos_token_id": 0}
    write(tmp_path / "lm.pth", Snapshot(trained.state_dict(), config, tokenizer.to_str(), {"name": "small"}, {}))
    code = "import sys; from model import load; print(load(sys.argv[1]).generate('The', 30, temperature=0), end='')"
    environment = {**os.environ, "CC": "no-such-compiler", "CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "lm.pth")],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == language_model.generate("The", 30, temperature=0)
