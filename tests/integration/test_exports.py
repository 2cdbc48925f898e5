"""Exports in the programs that they are made for, as far as those are installed; no requirement names them.

benchmarks/exports.py measures the same of any snapshot, and runs llama.cpp too.
"""

import re
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks import exports
from model import LanguageModel, ModelConfig, TransformerLM
from tests.helpers.exports import KINDS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(exports.PARAGRAPHS, trainer)
    return tokenizer


def made(
    tokenizer: Tokenizer, kind: str, hidden_size: int = 64, seq_length: int = 256, init_std: float = 0.15
) -> LanguageModel:
    torch.manual_seed(0)
    options = {**KINDS[kind], "init_std": init_std}
    config = ModelConfig(num_layers=2, num_heads=2, hidden_size=hidden_size, seq_length=seq_length, **options)
    return LanguageModel(TransformerLM(config, 500).eval(), tokenizer.to_str(), 0)


def nats(figure: str) -> float:
    return float(re.search(r"within ([\d.e+-]+) nats", figure)[1])


def test_the_harness_scores_as_the_model_does(tokenizer, tmp_path: Path):
    pytest.importorskip("lm_eval")
    lm = made(tokenizer, "apertus")
    lm.export(tmp_path / "model")
    texts, choices = exports.in_harness(lm, tmp_path / "model", tmp_path / "harness")
    assert texts.startswith("100 texts") and nats(texts) < 1e-3
    there, here = re.search(r"([\d.]+) bits per byte there and ([\d.]+) here", texts).groups()
    assert there == here
    assert choices.startswith("100 choices") and nats(choices) < 1e-3
    there, here = re.search(r"(\d+) right there and (\d+) here", choices).groups()
    assert there == here


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "llama"])
def test_ctranslate2_writes_the_same_text(tokenizer, tmp_path: Path, kind: str):
    pytest.importorskip("ctranslate2")
    lm = made(tokenizer, kind)
    lm.export(tmp_path / "model")
    figure = exports.in_ctranslate2(exports.Written(lm, 300), tmp_path / "model", tmp_path / "converted")
    assert figure == "greedy text equal for 300 of 300 tokens"


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "llama"])
@torch.no_grad()
def test_transformers_computes_the_same_from_a_gguf_file(tokenizer, tmp_path: Path, kind: str):
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # It takes heads of 128 for granted in Qwen3, and 1,024 positions in GPT-2, whatever the file says.
    lm = made(tokenizer, kind, hidden_size=256, seq_length=1024, init_std=0.06)
    lm.export(tmp_path / "model.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    if kind == "gpt2":  # the file cannot say it: llama.cpp's own GELU is the approximation
        for block in theirs.transformer.h:
            block.mlp.act = torch.nn.GELU()
    ids = torch.tensor(exports.Written(lm, 0).rows)
    ours = lm.model.logits(lm.model.hidden_states(ids))
    torch.testing.assert_close(theirs(ids).logits, ours, rtol=0, atol=1e-4)
    encode = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in exports.PARAGRAPHS[:200]:
        assert encode(text, add_special_tokens=False).input_ids == lm.encode(text)
