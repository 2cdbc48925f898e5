"""model/export/transformers_reader.py: what was exported comes back to the bit; what is hostile is refused unread."""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import ExportError, from_transformers, load
from model.export import transformers_folder

VOCABULARY = ("tokens.weight", "lm_head.weight")


def same(lm, back) -> bool:
    """Whether both are one model to the bit, but for rows that pad the vocabulary."""
    ours, theirs = lm.model.state_dict(), back.model.state_dict()
    size = lm.model.vocab_size
    return (
        ours.keys() == theirs.keys()
        and lm.model.config == back.model.config
        and (size, lm.eos_token_id) == (back.model.vocab_size, back.eos_token_id)
        and lm.tokenizer.to_str() == back.tokenizer.to_str()
        and all(
            torch.equal(rows[:size], theirs[name][:size]) if name in VOCABULARY else torch.equal(rows, theirs[name])
            for name, rows in ours.items()
        )
    )


def test_an_export_comes_back_to_the_bit(lm, folder, tmp_path):
    back = from_transformers(folder, device="cpu")
    assert same(lm, back) and not back.model.training
    assert not back.model.tokens.weight[lm.model.vocab_size :].any(), "padding is zero, whatever it was"
    back.save(tmp_path / "lm.pth")
    assert same(lm, load(tmp_path / "lm.pth", device="cpu"))
    assert back.generate("The", max_new_tokens=20, seed=1) == lm.generate("The", max_new_tokens=20, seed=1)


def test_what_transformers_saves_comes_back_to_the_bit(lm, folder, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert same(lm, from_transformers(tmp_path, device="cpu"))


def test_files_in_parts_and_links_come_back(make, tmp_path, monkeypatch):
    lm = make()
    monkeypatch.setattr(transformers_folder, "SHARD_BYTES", 40_000)
    lm.export(tmp_path / "model")
    (tmp_path / "links").mkdir()
    for file in (tmp_path / "model").iterdir():  # as the hub's cache has them
        (tmp_path / "links" / file.name).symlink_to(file)
    assert same(lm, from_transformers(tmp_path / "links", device="cpu"))


def test_half_precision_comes_back_as_fp32(make, tmp_path):
    lm = make()
    lm.export(tmp_path / "model", dtype="bfloat16")
    back = from_transformers(tmp_path / "model", device="cpu")
    down = back.model.blocks[0].mlp.down.weight
    assert down.dtype == torch.float32 and torch.equal(down, lm.model.blocks[0].mlp.down.weight.bfloat16().float())


@pytest.fixture
def small(make, tmp_path) -> Path:
    make(seq_length=16).export(tmp_path / "model")
    return tmp_path / "model"


def refused(folder: Path) -> str:
    """The sentence with which a folder is refused."""
    with pytest.raises(ExportError) as caught:
        from_transformers(folder, device="cpu")
    message = str(caught.value)
    assert message.startswith(f"{folder}: ") and "\n" not in message and len(message) < 400
    return message


def change(**values) -> Callable[[Path], None]:
    """Changes config.json; None removes a key."""

    def changed(folder: Path) -> None:
        contents = json.loads((folder / "config.json").read_text()) | values
        contents = {key: value for key, value in contents.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(contents))

    return changed


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change(auto_map={"AutoModelForCausalLM": "model.Model"}), "auto_map"),
        (change(quantization_config={"quant_method": "awq"}), "quantization_config"),
        (change(rope_scaling={"rope_type": "linear", "factor": 2.0}), "rope_scaling"),
        (change(model_type="bloom"), "only gpt2, apertus, qwen3, dots1, arcee, llama can be read"),
        (change(model_type=["gpt2"]), "has model_type"),
        (change(activation_function="gelu_new"), 'has activation_function "gelu_new"'),
        (change(layer_norm_epsilon=...), "lacks layer_norm_epsilon"),
        (change(scale_attn_weights=1), "has scale_attn_weights 1"),
        (change(n_embd=33), "sizes that no model here has"),
        (change(n_embd="32"), "sizes that no model here has"),
        (change(n_layer=10**9), "sizes that no model here has"),
        (change(n_layer=3), "its weights lack"),
        (change(n_embd=2**20, n_inner=2**22), "config.json asks for floating-point numbers of"),
        (change(n_positions=2**20), "rows of 1048576 tokens"),
        (change(n_positions=2**14), "config.json asks for"),
        (change(vocab_size=2**30), "config.json asks for"),
        (change(vocab_size=10**30), "vocab_size"),
        (change(vocab_size=True), "vocab_size"),
        (change(eos_token_id=500), "eos_token_id"),
        (change(eos_token_id=[0]), "eos_token_id"),
        (change(tie_word_embeddings=False), "its weights lack lm_head.weight"),
    ],
)
def test_descriptions_of_other_models_are_refused(small, damage, said):
    damage(small)
    assert said in refused(small)


def tensors(**changed) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        whole = load_file(folder / "model.safetensors") | changed
        save_file({name: tensor for name, tensor in whole.items() if tensor is not None}, folder / "model.safetensors")

    return write


POSITIONS = "transformer.wpe.weight"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (tensors(**{POSITIONS: None}), f"lack {POSITIONS}"),
        (tensors(**{POSITIONS: torch.zeros(15, 32)}), "(15, 32)"),
        (tensors(**{POSITIONS: torch.zeros(16, 32, dtype=torch.int32)}), "I32"),
        (tensors(**{POSITIONS: torch.full((16, 32), torch.nan)}), "NaN"),
        (tensors(more=torch.zeros(2)), "holds more"),
    ],
)
def test_weights_of_other_models_are_refused(small, damage, said):
    damage(small)
    assert said in refused(small)


def header(**said) -> bytes:
    text = json.dumps(said).encode()
    return struct.pack("<Q", len(text)) + text


HUGE = {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"\x00" * 100,
        struct.pack("<Q", 2**62),
        header(**{POSITIONS: HUGE}) + bytes(64),
        header(**{POSITIONS: {**HUGE, "data_offsets": [0, 64]}}) + bytes(64),
        pickle.dumps({"weights": print}),
    ],
)
def test_files_that_are_no_safetensors_are_refused(small, contents):
    (small / "model.safetensors").write_bytes(contents)
    assert "cannot be read" in refused(small)


def test_a_truncated_file_is_refused(small):
    whole = (small / "model.safetensors").read_bytes()
    (small / "model.safetensors").write_bytes(whole[:-1])
    assert "cannot be read" in refused(small)


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_pickles_are_never_read(small, tmp_path):
    (small / "model.safetensors").unlink()
    (small / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "done")))
    assert "pickled weights are never read" in refused(small)
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize(
    "weight_map", [{"x": "../model/model.safetensors"}, {"x": "/dev/zero"}, {"x": "model.bin"}, {"x": 3}, {}, [], None]
)
def test_an_index_names_files_of_its_folder_alone(small, weight_map):
    (small / "model.safetensors").rename(small / "part.safetensors")
    (small / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "no list of .safetensors files" in refused(small)


def test_a_tensor_in_two_files_is_refused(small):
    (small / "model.safetensors").rename(small / "a.safetensors")
    shutil.copy(small / "a.safetensors", small / "b.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (small / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "is in another file too" in refused(small)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("what", ["gone", "device", "pipe", "folder", "nothing", "list", "deep"])
def test_files_that_are_none_are_refused(small, name, what):
    (small / name).unlink()
    if what == "device":
        (small / name).symlink_to("/dev/zero")
    elif what == "pipe":
        os.mkfifo(small / name)
    elif what == "folder":
        (small / name).mkdir()
    elif what != "gone":
        (small / name).write_text({"nothing": "", "list": "[1]", "deep": "[" * 100_000}[what])
    refused(small)


def test_a_tokenizer_that_is_none_is_refused(small):
    (small / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    assert "tokenizer.json cannot be read" in refused(small)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    assert "config.json cannot be opened" in refused(tmp_path / "nowhere")
