"""model/language_model.py: one file in, text and scores out."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model import LanguageModel, TransformerLM, load
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


def test_known_text_scores_better_than_its_words_shuffled(language_model, text):
    known = text[100:400]
    shuffled = " ".join(sorted(known.split()))
    assert language_model.score(known).mean_nll < language_model.score(shuffled).mean_nll - 1.0


def test_the_stream_is_the_text_in_whole_characters(language_model):
    arguments = {"max_new_tokens": 300, "temperature": 5.0, "top_p": 1.0, "seed": 11, "stop_at_eos": False}
    pieces = list(language_model.stream("Grüße, 世界", **arguments))
    assert "".join(pieces) == language_model.generate("Grüße, 世界", **arguments)
    assert len(pieces) > 100 and all(pieces)


def test_a_seed_decides_and_global_randomness_is_untouched(language_model):
    state = torch.get_rng_state()
    first = language_model.generate("The", seed=1)
    assert language_model.generate("The", seed=1) == first
    assert language_model.generate("The", seed=2) != first
    assert language_model.generate("The") != language_model.generate("The")
    assert torch.equal(torch.get_rng_state(), state)


def test_empty_and_very_long_prompts(language_model, text):
    assert language_model.generate("", max_new_tokens=20, seed=0)
    long = text[:2000]
    assert language_model.generate(long, max_new_tokens=20, temperature=0)
    # only the last seq_length tokens of it are read
    tail = language_model.tokenizer.decode(language_model.encode(long)[-32:])
    assert language_model.generate(long, 20, temperature=0) == language_model.generate(tail, 20, temperature=0)


@pytest.mark.parametrize("end", ["\ufffd", "\ud800"])  # half a surrogate pair is read as the former
def test_a_prompt_that_ends_in_half_a_character(language_model, end):
    alone, after = (language_model.generate(f"The {end}", 8, temperature=0) for _ in range(2))
    assert alone == after and not alone.startswith("The")
    assert language_model.encode(f"The {end}") == language_model.encode("The \ufffd")
    assert language_model.score(f"The {end}").mean_nll > 0


def test_bad_arguments_are_refused_at_the_call(language_model):
    with pytest.raises(ValueError, match="top_p is 0; give a number above 0 and up to 1"):
        language_model.stream("x", top_p=0)  # before the first piece is asked for
    with pytest.raises(ValueError, match="the text to score is empty"):
        language_model.score("")


def test_settings_in_the_tokenizer_file_have_no_effect(trained, tokenizer, language_model, text):
    settings = json.loads(tokenizer.to_str())
    settings["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    settings["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    lm = LanguageModel(trained, json.dumps(settings), EOS)
    assert lm.encode(text[:100]) == language_model.encode(text[:100])
    assert lm.generate(text[:100], seed=0) == language_model.generate(text[:100], seed=0)
    assert EOS not in lm.encode("a <|endoftext|> b")  # text, not a command


def test_scores_equal_torchs_cross_entropy(language_model, trained, text):
    tokens = language_model.encode(text[300:360])
    assert 10 < len(tokens) < 32
    score = language_model.score(text[300:360])
    with torch.no_grad():
        logits = trained.logits(trained.hidden_states(torch.tensor([[EOS, *tokens[:-1]]])))[0]
    expected = F.cross_entropy(logits, torch.tensor(tokens), reduction="none")
    torch.testing.assert_close(score.token_nll, expected, atol=1e-5, rtol=1e-4)
    assert score.tokens == tokens and score.mean_nll == pytest.approx(expected.mean().item(), rel=1e-5)


def test_long_texts_are_scored_with_half_a_window_of_context(language_model, trained, text):
    long = text[:900]
    tokens = language_model.encode(long)
    score = language_model.score(long)
    assert len(score.token_nll) == len(tokens) > 200
    sequence = torch.tensor([EOS, *tokens])
    with torch.no_grad():
        for index in (0, 31, 32, 47, 48, 100, len(tokens) - 1):
            start = 0 if index < 32 else (index - 32) // 16 * 16 + 16
            logits = trained.logits(trained.hidden_states(sequence[None, start : index + 1]))[0, -1]
            expected = F.cross_entropy(logits, sequence[index + 1])
            torch.testing.assert_close(score.token_nll[index], expected, atol=1e-4, rtol=1e-3)


def test_a_model_in_training_stays_in_training(config, tokenizer):
    torch.manual_seed(0)
    model = TransformerLM(config.model_copy(update={"dropout": 0.5}), tokenizer.get_vocab_size()).train()
    lm = LanguageModel(model, tokenizer.to_str(), EOS)
    assert lm.generate("The", temperature=0) == lm.generate("The", temperature=0)  # no dropout while it speaks
    assert lm.score("The topics").mean_nll == lm.score("The topics").mean_nll
    next(lm.stream("The", seed=0))
    assert model.training and torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


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
