"""model/export/tokenizer_files.py: texts begin with the end-of-text token there, and the tokenizer comes back."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from model.export import ExportError
from model.export.tokenizer_files import end_of_text, exported_tokenizer, imported_tokenizer, tokenizer_config


def copy(tokenizer: Tokenizer) -> Tokenizer:
    return Tokenizer.from_str(tokenizer.to_str())


@pytest.mark.parametrize("own", [None, processors.ByteLevel(trim_offsets=False)])
def test_texts_begin_with_the_end_token_and_the_tokenizer_comes_back(tokenizer, own):
    ours = copy(tokenizer)
    if own is not None:
        ours.post_processor = own
    contents = exported_tokenizer(ours, 0)
    there = Tokenizer.from_str(json.dumps(contents))
    plain = ours.encode("some text", add_special_tokens=False).ids
    assert there.encode("some text").ids == [0, *plain]
    assert there.encode("some text", " and more").ids == [0, *ours.encode("some text", " and more").ids]
    assert there.encode("some text", add_special_tokens=False).ids == plain
    assert imported_tokenizer(contents, 0).to_str() == ours.to_str()


def test_what_adds_other_tokens_is_replaced(tokenizer):
    ours = copy(tokenizer)
    ours.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    there = Tokenizer.from_str(json.dumps(exported_tokenizer(ours, 0)))
    assert there.encode("text").ids == [0, *ours.encode("text", add_special_tokens=False).ids]


def test_an_end_token_of_odd_characters_is_kept():
    odd = "</s>:0 $A"
    ours = Tokenizer(models.BPE({"a": 0, odd: 1}, []))
    ours.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    contents = exported_tokenizer(ours, 1)
    assert Tokenizer.from_str(json.dumps(contents)).encode("aa").tokens == [odd, "a", "a"]
    assert imported_tokenizer(contents, 1).to_str() == ours.to_str()
    assert tokenizer_config(ours, 1, 64)["bos_token"] == odd


def test_others_post_processors_stay(tokenizer):
    theirs = exported_tokenizer(tokenizer, 5)  # another token at the beginning than the end of a text
    assert json.loads(imported_tokenizer(theirs, 0).to_str())["post_processor"] == theirs["post_processor"]


def test_an_id_without_a_token_is_refused(tokenizer):
    with pytest.raises(ExportError, match="the end-of-text id 505 is no token of the tokenizer"):
        end_of_text(tokenizer, 505)


@pytest.mark.parametrize("contents", [{}, {"model": {}}, {"post_processor": 3}])
def test_what_is_no_tokenizer_is_refused(contents):
    with pytest.raises(ExportError, match=r"tokenizer\.json cannot be read"):
        imported_tokenizer(contents, 0)
