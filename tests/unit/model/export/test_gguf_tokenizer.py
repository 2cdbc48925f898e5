"""model/export/gguf_tokenizer.py: a tokenizer made of the file's tokens and merges gives the same ids."""

import json

import pytest
from gguf import GGUFReader, TokenType
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from model import ExportError, LanguageModel

# What llama.cpp does for "gpt-2" (src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_GPT2); the rest of a text is cut off too.
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


@pytest.fixture(scope="module")
def fields(make, tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    make().export(path)
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def test_texts_get_the_same_ids(fields, make, text):
    lm = make()
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    vocabulary = {token: id for id, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    rebuilt = Tokenizer(models.BPE(vocabulary, merges))
    cut = pre_tokenizers.Split(Regex(GPT_2), "isolated")
    rebuilt.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    rebuilt.decoder = decoders.ByteLevel()
    for piece in ["", " ", "\n\n  \t x ", "<|endoftext|>", "naïve 漢字 🙂 don't 12", *text.split("\n\n")]:
        ids = lm.encode(piece)
        assert rebuilt.encode(piece).ids == ids and rebuilt.decode(ids) == piece


def test_tokens_have_their_kinds_and_texts_begin_with_the_end_token(fields):
    kinds = fields["tokenizer.ggml.token_type"]
    assert kinds[0] == TokenType.CONTROL and set(kinds[1:]) == {TokenType.NORMAL}
    assert fields["tokenizer.ggml.bos_token_id"] == fields["tokenizer.ggml.eos_token_id"] == 0
    assert fields["tokenizer.ggml.add_bos_token"] is True and fields["tokenizer.ggml.add_eos_token"] is False


def test_ids_without_a_token_are_unused(make, tokenizer, tmp_path):
    from model import ModelConfig, TransformerLM

    larger = TransformerLM(ModelConfig(num_layers=1, num_heads=2, hidden_size=32, seq_length=16), 510)
    LanguageModel(larger, tokenizer.to_str(), 0).export(tmp_path / "model.gguf")
    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.tokens"].contents()[-1] == "[PAD509]"
    assert fields["tokenizer.ggml.token_type"].contents()[-10:] == [TokenType.UNUSED] * 10


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
    ],
)
def test_a_tokenizer_that_cuts_otherwise_is_refused(make, tmp_path, change):
    lm = make()
    lm.tokenizer = Tokenizer.from_str(json.dumps(json.loads(lm.tokenizer.to_str()) | change))
    with pytest.raises(ExportError, match=r"llama\.cpp would cut texts differently from this tokenizer"):
        lm.export(tmp_path / "model.gguf")
    assert not any(tmp_path.iterdir())
    lm.export(tmp_path / "folder")


def test_another_kind_of_model_is_refused(make, tmp_path):
    lm = make()
    lm.tokenizer = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a"))
    lm.tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(ExportError, match="no byte-level BPE like GPT-2's"):
        lm.export(tmp_path / "model.gguf")
