"""tiktoken in the library's place: the same ids where a tokenizer's structure allows it, else not used."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers

from sources.rows.fast_encoder import EDGES, encoding_of
from sources.rows.tokenizer import FAST_CHARACTERS, TextTokenizer


def equal(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def copy_of(tokenizer: TextTokenizer) -> TextTokenizer:
    return TextTokenizer.from_json(tokenizer.to_json(), tokenizer.eos_id)


def test_a_byte_level_bpe_is_an_encoding(tokenizer, texts):
    encoding = encoding_of(tokenizer.tokenizer)
    assert encoding is not None
    for text in [*EDGES, *texts[:20]]:
        if text != EDGES[-2]:  # half a surrogate pair, which the tokenizer replaces first
            assert encoding.encode_ordinary(text) == tokenizer.tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("behavior", ["isolated", "removed"])
def test_a_pattern_of_its_own_is_taken_over(tokenizer, texts, behavior: str):
    """As GPT-4's family has it: a split by a pattern, which must lose nothing, then bytes."""
    split = copy_of(tokenizer)
    by_words = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}{1,3}|[^\p{L}\p{N}]+"), behavior)
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split.tokenizer.pre_tokenizer = pre_tokenizers.Sequence([by_words, bytes_alone])
    expected = split.encode_batch(texts[:20])
    assert (split.use_fast_encoder(texts[:20]) is not None) == (behavior == "isolated")
    assert equal(split.encode_batch(texts[:20]), expected)


def test_tiktoken_gives_the_same_ids(tokenizer, texts):
    fast = copy_of(tokenizer)
    announced = fast.use_fast_encoder(texts[:40])
    proved = sum(len(text) <= FAST_CHARACTERS for text in texts[:40])
    assert fast.is_fast and announced.startswith(f"tiktoken encodes here, proved equal on {proved} texts (0.1 MB)")
    # Also what the proof has not seen, what is longer than tiktoken is given, and what the end mark would be.
    unseen = [*texts[40:], "\n\n".join(texts)[:50_000], "one <|endoftext|> two", "a\ud800b", ""]
    assert equal(fast.encode_batch(unseen), tokenizer.encode_batch(unseen))
    assert fast.eos_id not in np.concatenate(fast.encode_batch(unseen))


def test_a_tokenizer_unlike_tiktoken_stays_with_its_library(tokenizer, texts):
    def altered(change) -> TextTokenizer:
        described = json.loads(tokenizer.to_json())
        change(described)
        return TextTokenizer.from_json(json.dumps(described), tokenizer.eos_id)

    def other_order(described: dict) -> None:
        described["model"]["merges"].reverse()

    def no_byte(described: dict) -> None:
        described["model"]["vocab"]["<other>"] = described["model"]["vocab"].pop("\u0100")

    def with_prefix_space(described: dict) -> None:
        described["pre_tokenizer"]["add_prefix_space"] = True

    tokenizers = [altered(change) for change in (other_order, no_byte, with_prefix_space)]
    normalizing, adding, splitting = (copy_of(tokenizer) for _ in range(3))
    normalizing.tokenizer.normalizer = normalizers.NFKC()
    adding.tokenizer.add_tokens([AddedToken("documentation", special=False)])
    splitting.tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for one in [*tokenizers, normalizing, adding, splitting]:
        before = one.encode_batch(texts[:20])
        assert one.use_fast_encoder(texts[:20]) is None and not one.is_fast
        assert equal(one.encode_batch(texts[:20]), before)


def test_a_tokenizer_that_looks_right_but_differs_is_found_out(tokenizer, texts):
    described = json.loads(tokenizer.to_json())
    space_t = next(pair for pair in described["model"]["merges"] if "".join(pair) == "\u0120t")
    # The token stays and its ids still rise, but no merge makes it: only tiktoken would not know.
    described["model"]["ignore_merges"] = True
    described["model"]["merges"].remove(space_t)
    found = TextTokenizer.from_json(json.dumps(described), tokenizer.eos_id)
    assert encoding_of(found.tokenizer) is not None
    assert found.use_fast_encoder(texts[:20]) is None and not found.is_fast
    assert found.use_fast_encoder([]) is None, "nothing is proved by nothing"
