"""model/decoding/text.py: whole characters, and stop strings that span tokens."""

import pytest

from model.decoding.text import TextStream


def pieces(stream: TextStream, ids: list[int]) -> list[str]:
    found = []
    for id in ids:
        found.append(stream.push(id))
        if stream.stopped:
            break
    return found


def test_a_character_of_several_tokens_comes_out_in_one_piece(tokenizer):
    ids = tokenizer.encode("a世🙂é").ids
    assert len(ids) > 4  # more tokens than characters
    assert [piece for piece in pieces(TextStream(tokenizer, []), ids) if piece] == ["a", "世", "🙂", "é"]
    assert "".join(pieces(TextStream(tokenizer, []), ids[:-1])) == "a世🙂"  # the last was not finished


@pytest.mark.parametrize("stop", [["fox"], ["quick brown fox j"], ["zebra", "ox ju"], ["x"], ["brown", "row"]])
def test_text_ends_before_the_stop_string_that_is_complete_first(tokenizer, stop):
    text = "the quick brown fox jumps"
    stream = TextStream(tokenizer, [], stop)
    found = "".join(pieces(stream, tokenizer.encode(text).ids))
    _, start = min((text.find(s) + len(s), text.find(s)) for s in stop if s in text)
    assert stream.stopped and found == text[:start]
    assert stream.end() == ""


def test_what_may_begin_a_stop_string_is_held_back(tokenizer):
    ids = tokenizer.encode("ab ab ab ac").ids
    stream = TextStream(tokenizer, [], ["ab ad", "ac."])
    shown = ""
    for id in ids:
        shown += stream.push(id)
        assert not shown.endswith("a")
    assert not stream.stopped and shown + stream.end() == "ab ab ab ac"


def test_a_prompt_that_ends_in_half_a_character_is_not_continued(tokenizer):
    half = tokenizer.encode("é").ids[:1]
    assert "".join(pieces(TextStream(tokenizer, half), tokenizer.encode("abc").ids)) == "abc"
