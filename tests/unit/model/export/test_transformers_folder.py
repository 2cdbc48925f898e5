"""model/export/transformers_folder.py: transformers computes what the model computes, and encodes as it does."""

import errno
import json
import os
import resource
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from model import ExportError, from_transformers
from model.decoding.decoder import Weights
from model.decoding.generate import generate_tokens
from model.decoding.settings import GenerationSettings
from model.export import transformers_folder
from tests.helpers.exports import KINDS
from tests.helpers.processes import run_program

TOKENS = 1000
NAMES = {"config.json", "generation_config.json", "model.safetensors", "README.md"}
NAMES |= {"tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def transformers():
    import transformers

    transformers.logging.disable_progress_bar()
    return transformers


@pytest.fixture(scope="module")
def theirs(transformers, folder: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@torch.no_grad()
def test_logits_are_equal(kind, lm, theirs, token_ids):
    assert type(theirs).__name__.lower().startswith(kind.split()[0])
    assert theirs.dtype == torch.float32 and theirs.config.eos_token_id == 0
    ours = lm.model.logits(lm.model.hidden_states(token_ids[None, :1024]))
    assert ours.std() > 0.5, "the test would see nothing"
    found = theirs(token_ids[None, :1024]).logits
    assert found.shape == ours.shape, "no padding rows"
    torch.testing.assert_close(found, ours, rtol=0, atol=1e-4)


@torch.no_grad()
def test_greedy_text_is_equal(lm, theirs):
    """Each of 1,000 tokens is the likeliest one to transformers too, after those before it."""
    prompt = lm.encode("The")
    greedy, decoder = (
        GenerationSettings(max_new_tokens=TOKENS, temperature=0, stop_at_eos=False),
        Weights(lm.model, "fp32").decoder(1),
    )
    written = [token.id for token in generate_tokens(decoder, [prompt], greedy, 0, [0], set())]
    logits = theirs(torch.tensor([[0, *prompt, *written]])).logits[0]
    assert logits[len(prompt) : -1].argmax(-1).tolist() == written


@pytest.mark.slow
def test_transformers_writes_the_same_text(transformers, lm, folder, theirs):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for prompt in ("The", "", "An unusual one: "):
        ids = tokenizer(prompt, return_tensors="pt")
        found = theirs.generate(**ids, max_new_tokens=TOKENS, do_sample=False)[0]
        text = tokenizer.decode(found, skip_special_tokens=True)
        ours = prompt + lm.generate(prompt, max_new_tokens=TOKENS, temperature=0)
        assert text.rstrip("\N{REPLACEMENT CHARACTER}") == ours  # which ends with its last whole character


def test_the_tokenizer_is_the_models_own(transformers, make, text, tmp_path):
    lm = make()
    lm.export(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    tricky = [
        "",
        " ",
        "  leading",
        "<|endoftext|>",
        "a<|endoftext|>b",
        "naïve 漢字 🙂\u200d",
        "\n\n\t x",
        "don't 12,345",
    ]
    for piece in [*tricky, *text.split("\n\n")[:300]]:
        assert tokenizer(piece).input_ids == [0, *lm.encode(piece)], repr(piece)
        assert tokenizer.decode(lm.encode(piece)) == piece
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == 0 and tokenizer.model_max_length == 1024
    tokenizer.save_pretrained(tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again("once more").input_ids == tokenizer("once more").input_ids


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_are_rounded_once(transformers, make, tmp_path, dtype):
    lm = make(positions="rotary", norm="rms", qk_norm=True, mlp="squared_relu", bias=False)
    lm.export(tmp_path / "model", dtype=dtype)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert theirs.dtype == getattr(torch, dtype)
    ours = lm.model.blocks[0].mlp.down.weight.to(theirs.dtype)
    assert torch.equal(theirs.model.layers[0].mlp.down_proj.weight, ours)


def test_a_number_that_does_not_fit_into_float16_is_refused(make, tmp_path):
    lm = make()
    with torch.no_grad():
        lm.model.final_norm.weight[0] = 1e6
    with pytest.raises(ExportError, match=r"transformer\.ln_f\.weight does not fit into float16"):
        lm.export(tmp_path / "model", dtype="float16")
    assert not any(tmp_path.iterdir())


def test_large_models_are_divided(transformers, make, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers_folder, "SHARD_BYTES", 40_000)
    lm = make()
    lm.export(tmp_path / "model")
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    sizes = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                assert index["weight_map"][name] == file.name
                sizes[name] = opened.get_tensor(name).nbytes
    assert sizes.keys() == index["weight_map"].keys() and sum(sizes.values()) == index["metadata"]["total_size"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(theirs.transformer.wpe.weight, lm.model.positions.weight)


def test_the_folder_holds_no_code(folder):
    assert {path.name for path in folder.iterdir()} == NAMES
    for path in folder.glob("*.json"):
        assert "auto_map" not in path.read_text()


@pytest.mark.parametrize("limit", [3_000, 60_000])
def test_a_write_that_fails_leaves_nothing(make, tmp_path, limit):
    """RLIMIT_FSIZE cuts a write short, as a full disk does: a text of the folder's, or the weights."""
    make().save(tmp_path / "lm.pth")
    program = f"""
import resource, sys
from pathlib import Path
from model import ExportError, load
lm = load("{tmp_path}/lm.pth")
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    lm.export("{tmp_path}/model")
except ExportError as error:
    print(error)
"""
    status, output = run_program(program)
    assert status == 0 and output.startswith(f"{tmp_path}/model could not be written ("), output
    assert os.strerror(errno.EFBIG) in output
    assert [path.name for path in tmp_path.iterdir()] == ["lm.pth"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != limit


def test_without_safetensors_a_sentence_says_what_to_install(make, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ExportError, match=r"needs safetensors; pip install 'forethought\[export\]'"):
        make().export(tmp_path / "model")
    assert not any(tmp_path.iterdir())


def test_an_unknown_dtype_is_named(make, tmp_path):
    with pytest.raises(ExportError, match="dtype 'q8_0' is none of float32, bfloat16, float16"):
        make().export(tmp_path / "model", dtype="q8_0")


@pytest.mark.parametrize("scaling", ["linear", "ntk", "yarn"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@torch.no_grad()
def test_scaled_rotations_give_equal_logits(scaling: str, kind: str, make, token_ids, transformers, tmp_path: Path):
    factors = "attention" if kind == "llama" else "residual"
    lm = make(**KINDS[kind], rope_scaling=scaling, rope_original_length=128, layer_rescaling=factors)
    lm.export(tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = token_ids[None, :1024]
    ours = lm.model.logits(lm.model.hidden_states(ids))
    torch.testing.assert_close(theirs(ids).logits, ours, rtol=0, atol=3e-4)
    plain = make(**KINDS[kind], rope_original_length=128).model
    assert (plain.logits(plain.hidden_states(ids)) - ours).abs().max() > 0.1, "the test would see nothing"
    read = from_transformers(tmp_path / "model").model
    assert (read.config.rope_scaling, read.config.rope_original_length) == (scaling, 128)
    torch.testing.assert_close(read.logits(read.hidden_states(ids)), ours, rtol=0, atol=1e-4)
