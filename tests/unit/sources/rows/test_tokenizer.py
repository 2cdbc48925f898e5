"""Tokenizers: lossless, special tokens in texts are texts, nothing is cut or padded."""

import json
import os
import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import constants
from tokenizers import Tokenizer, models, pre_tokenizers

from sources.config import TrainBPE
from sources.rows.tokenizer import (
    RememberingEncoder,
    TextTokenizer,
    TokenizerError,
    load_tokenizer,
    tokenizer_available,
    train_bpe,
)
from sources.source import SourceError


def equal(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def test_trained_bpe_is_lossless_and_small_enough(tokenizer, texts):
    assert tokenizer.vocab_size == 512
    strange = "naïve \u00e9\u0301 \U0001f600 \x00 tabs\t\r\n"
    for text in [*texts[:20], strange]:
        (ids,) = tokenizer.encode_batch([text])
        assert tokenizer.decode(ids) == text
        assert ids.dtype == np.uint32 and max(ids) < tokenizer.vocab_size


def test_texts_that_come_again_are_encoded_once(tokenizer, texts):
    calls: list[str] = []
    counting = SimpleNamespace(encode_batch=lambda texts: calls.extend(texts) or tokenizer.encode_batch(texts))
    encoder = RememberingEncoder(counting)
    for some in (texts[:6], [*texts[3:9], *texts[:3], texts[8]], []):
        assert equal(encoder.encode_batch(some), tokenizer.encode_batch(some))
    assert calls == texts[:9]


def test_little_text_gives_a_small_vocabulary():
    small = train_bpe(iter(["abab"]), 1000)
    assert 257 <= small.vocab_size < 300
    with pytest.raises(TokenizerError, match="no text"):
        train_bpe(iter([]), 1000)


def test_end_of_text_in_a_text_is_text(tokenizer):
    (ids,) = tokenizer.encode_batch(["one <|endoftext|> two"])
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == "one <|endoftext|> two"
    assert tokenizer.decode([tokenizer.eos_id]) == "<|endoftext|>"


def test_json_round_trip(tokenizer, texts):
    again = TextTokenizer.from_json(tokenizer.to_json(), tokenizer.eos_id, tokenizer.pad_id)
    assert equal(again.encode_batch(texts[:5]), tokenizer.encode_batch(texts[:5]))
    assert (again.vocab_size, again.eos_id, again.pad_id) == (512, tokenizer.eos_id, tokenizer.pad_id)
    (ids,) = again.encode_batch(["<|endoftext|>"])
    assert again.eos_id not in ids
    with pytest.raises(TokenizerError):
        TextTokenizer.from_json("{}", 0)


def test_truncation_and_padding_of_a_found_file_are_switched_off(tokenizer, texts):
    found = Tokenizer.from_str(tokenizer.to_json())
    found.enable_truncation(50)
    found.enable_padding(length=60)
    long = max(texts, key=len)
    assert equal(TextTokenizer(found, tokenizer.eos_id).encode_batch([long, "a"]), tokenizer.encode_batch([long, "a"]))


def test_folder_without_declared_end_token(tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    loaded = load_tokenizer(str(tmp_path))
    assert (loaded.vocab_size, loaded.eos_id, loaded.pad_id) == (512, tokenizer.eos_id, tokenizer.eos_id)


def test_end_token_is_added_where_there_is_none(tokenizer, tmp_path):
    description = json.loads(tokenizer.to_json())
    description["added_tokens"] = []
    del description["model"]["vocab"]["<|endoftext|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.decode([loaded.eos_id]) == "<|endoftext|>"
    assert loaded.eos_id < loaded.vocab_size


@pytest.mark.parametrize("kind", [models.WordLevel, models.Unigram])
def test_a_tokenizer_without_unknown_token_is_refused(tmp_path, texts, kind):
    known = sorted({word for text in texts for word in text.split()})
    vocabulary = [(word, -1.0) for word in known] if kind is models.Unigram else {w: n for n, w in enumerate(known)}
    found = Tokenizer(kind(vocabulary))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    problem = load_tokenizer(str(tmp_path)).problem()
    assert re.search(r"(?i)^cannot encode every text \(.*unk.*\); use one with an unknown token", problem)


def test_a_tokenizer_without_ids_is_refused(tokenizer, tmp_path):
    description = json.loads(tokenizer.to_json())
    description["model"] |= {"vocab": {}, "merges": []}
    with pytest.raises(TokenizerError, match="it has no ids"):
        TextTokenizer.from_json(json.dumps({**description, "added_tokens": []}), 0)
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    assert "gives no ids for any text" in load_tokenizer(str(tmp_path)).problem()
    assert tokenizer.problem() is None


NAMES = {
    "corpus/tokenizers/mine": "is not a repository name",
    "gpt2 ": "is not a repository name",
    "a/b/c": "is not a repository name",
    "https://example.com/a": "is not a repository name",
    "": "is not a repository name",
    "gone": "is neither in the cache nor a folder here",
    "./gone": "the folder ./gone does not exist",
    "./file": "./file is no folder",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_cannot_be_loaded_says_why(name, tmp_path, monkeypatch):
    """At the menu's line, and where it is chosen; what is meant to be a folder is not asked of a hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "file").touch()
    assert NAMES[name] in tokenizer_available(name)
    with pytest.raises(TokenizerError, match=rf'^data\.tokenizer: "{re.escape(name)}" cannot be loaded: ') as caught:
        load_tokenizer(name)
    assert NAMES[name] in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_is_no_reason_to_wait_or_to_fill_the_memory(tokenizer, tmp_path, monkeypatch):
    assert tokenizer_available(str(tmp_path)) is None
    with pytest.raises(TokenizerError, match=r"that folder holds no tokenizer\.json"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    monkeypatch.setattr("sources.rows.tokenizer.MOST_BYTES", 1000)
    assert "tokenizer.json has more than 0 MB" in tokenizer_available(str(tmp_path))
    monkeypatch.undo()
    os.mkfifo(tmp_path / "tokenizer_config.json")
    assert "tokenizer_config.json cannot be opened (it is a pipe or a device)" in tokenizer_available(str(tmp_path))
    with pytest.raises(TokenizerError, match="it is a pipe or a device"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer_config.json").symlink_to("/dev/zero")
    assert "it is a pipe or a device" in tokenizer_available(str(tmp_path))
    assert tokenizer_available(TrainBPE(train_bpe=300)) is None


def test_what_only_adds_special_tokens_is_no_difference(tokenizer, tmp_path):
    """transformers adds an empty post-processor to a tokenizer that was saved without one."""
    tokenizer.tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.to_json() != tokenizer.to_json() and loaded.encodes_as(tokenizer.to_json())
    assert not loaded.encodes_as(train_bpe(iter(["other text"] * 3), 300).to_json()) and not loaded.encodes_as("{}")


def blowing_up(tokenizer) -> TextTokenizer:
    """A tokenizer whose pattern takes forever for many x in a row, where the library panics."""
    description = json.loads(tokenizer.to_json())
    pattern = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    rest = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    description["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [pattern, rest]}
    return TextTokenizer.from_json(json.dumps(description), tokenizer.eos_id)


def test_a_panic_of_the_library_is_an_error_of_the_source(tokenizer, texts):
    panics = blowing_up(tokenizer)
    assert panics.problem() is None
    with pytest.raises(SourceError, match=r"the tokenizer fails on one of its texts \(.*retry-limit") as caught:
        panics.encode_batch(["x" * 40 + " y"])
    assert not caught.value.transient
    assert panics.use_fast_encoder([*texts[:3], "x" * 40 + " y"]) is None
    (ids,) = panics.encode_batch(["plain"])
    assert panics.decode(ids) == "plain"


def copy_of(tokenizer: TextTokenizer) -> TextTokenizer:
    return TextTokenizer.from_json(tokenizer.to_json(), tokenizer.eos_id)


def test_half_a_surrogate_pair_is_a_replacement_character(tokenizer):
    (ids,) = tokenizer.encode_batch(["a\ud800b"])
    assert tokenizer.decode(ids) == "a\N{REPLACEMENT CHARACTER}b"


def test_half_a_surrogate_pair_can_be_trained_on(texts):
    escaped = json.loads(r'"\ud800 and a whole one: \ud83d\ude00"')
    trained = train_bpe(iter([escaped, *texts[:5]]), 300)
    (ids,) = trained.encode_batch([escaped])
    assert trained.decode(ids) == "\N{REPLACEMENT CHARACTER} and a whole one: \U0001f600"


def test_a_worker_gets_the_same_encoder_without_a_check(tokenizer, texts):
    fast = copy_of(tokenizer)
    assert fast.use_fast_encoder(texts[:3]) is not None
    rebuilt = TextTokenizer.from_json(fast.to_json(), fast.eos_id, fast.pad_id, fast=fast.is_fast)
    for sent in (rebuilt, pickle.loads(pickle.dumps(fast))):
        assert sent.is_fast and (sent.eos_id, sent.pad_id) == (fast.eos_id, fast.pad_id)
        assert equal(sent.encode_batch(texts[:20]), fast.encode_batch(texts[:20]))
    assert not pickle.loads(pickle.dumps(copy_of(tokenizer))).is_fast
