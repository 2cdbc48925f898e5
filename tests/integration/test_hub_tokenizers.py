"""Tokenizers of other families than GPT-2's, trained here and loaded from a hub over HTTP as anybody's would be."""

import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.helpers.hub_server import HubServer, run_worker

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
WORDPIECE_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def wordpiece(texts: list[str]) -> dict[str, bytes]:
    """Like BERT's: a template of [CLS] and [SEP], and a file that cuts at 50 ids and pads to 64."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=2000, special_tokens=WORDPIECE_SPECIAL, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(50)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=64)
    return repository(tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]")


def sentencepiece(texts: list[str]) -> dict[str, bytes]:
    """Like Llama-2's: spaces written as a letter, characters that were never seen as bytes."""
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=2000,
            special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
            limit_alphabet=80,
            show_progress=False,
        ),
    )
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return repository(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def byte_level_by_regex(texts: list[str]) -> dict[str, bytes]:
    """Like Llama-3's: a pattern of its own before byte-level BPE, and whole words that are tokens stay whole."""
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=3000,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    return repository(tokenizer, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")


def repository(tokenizer: Tokenizer, **special: str) -> dict[str, bytes]:
    configuration = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **special}
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(configuration).encode(),
        "config.json": b"{}",
    }


@pytest.fixture(scope="module")
def sample(texts) -> list[str]:
    return [text[:4000] for text in texts[:60]]


@pytest.fixture(scope="module")
def found(tmp_path_factory, texts, sample) -> dict:
    with HubServer() as hub:
        hub.repositories = {
            "models/test/wordpiece": wordpiece(texts),
            "models/test/sentencepiece": sentencepiece(texts),
            "models/test/by-regex": byte_level_by_regex(texts),
        }
        names = [name.removeprefix("models/") for name in hub.repositories]
        tmp_path = tmp_path_factory.mktemp("tokenizers")
        return run_worker(tmp_path, hub.url, worker="tokenizer.py", names=names, texts=sample)


@pytest.mark.parametrize("name", ["test/sentencepiece", "test/by-regex"])
def test_texts_come_back_whole(found, sample, name):
    assert found[name]["decoded"] == sample


def test_wordpiece_keeps_all_but_white_space(found, sample):
    for decoded, text in zip(found["test/wordpiece"]["decoded"], sample, strict=True):
        assert "".join(decoded.replace("[UNK]", "").split()) == "".join(text.split())


@pytest.mark.parametrize(
    "name, eos, pad",
    [
        ("test/wordpiece", "[SEP]", "[PAD]"),
        ("test/sentencepiece", "</s>", "</s>"),
        ("test/by-regex", "<|end_of_text|>", "<|end_of_text|>"),
    ],
)
def test_nothing_is_cut_padded_or_added(found, sample, name, eos, pad):
    tokenizer = found[name]
    assert (tokenizer["eos"], tokenizer["pad"]) == (eos, pad)
    assert not tokenizer["eos_in_texts"]
    assert tokenizer["below_vocab_size"] and tokenizer["same_ids"]
    assert max(tokenizer["lengths"]) > 500
    assert all(length > len(text) / 8 for length, text in zip(tokenizer["lengths"], sample, strict=True))


def test_tiktoken_encodes_only_what_it_can_prove(found):
    assert found["test/by-regex"]["announced"].startswith("tiktoken encodes here, proved equal on 60 texts (0.")
    assert found["test/by-regex"]["sent_is_fast"]
    for name in ("test/wordpiece", "test/sentencepiece"):
        assert found[name]["announced"] is None and not found[name]["sent_is_fast"]
