"""model/snapshot/tokenizer.py: what a tokenizer.json may do to a text."""

import json
import subprocess
import sys
import time

import pytest
from tokenizers import Tokenizer

from model import LanguageModel
from model.snapshot.tokenizer import TokenizerFailure, read_tokenizer, tokenizer_problem
from tests.helpers.text import REPOSITORY

BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def replace(pattern: str, content: str, kind: str = "String") -> dict:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(*steps: dict, key: str = "normalizers") -> dict:
    return {"type": "Sequence", key: list(steps)}


@pytest.fixture(scope="module")
def changed(tokenizer):
    """The fixture's tokenizer.json with other parts."""
    return lambda **parts: json.dumps(json.loads(tokenizer.to_str()) | parts)


GROWING = {
    "at once": {"normalizer": replace("a", "a" * 10**5)},
    "in a chain": {"normalizer": sequence(*[replace("a", "a" * 50)] * 6)},
    "a thousand times, four times": {"normalizer": sequence(*[replace("a", "a" * 1000)] * 4)},
    "of a rare word": {"normalizer": sequence(*[replace("zq", "zq" * 30)] * 4)},
    "in a sequence within another": {"normalizer": sequence(sequence(*[replace("b", "bbbbbbbb")] * 5))},
    "by a pattern": {"normalizer": sequence(*[replace(".", "abcd", "Regex")] * 6)},
    "a little each": {"normalizer": sequence(*[{"type": "Prepend", "prepend": "x" * 60}] * 200)},
    "bytes of bytes": {"pre_tokenizer": sequence(*[BYTES] * 20, key="pretokenizers")},
    "in both": {"normalizer": replace("\u4e2d", "\u4e2d" * 40), "pre_tokenizer": BYTES},
    "in decoding": {"decoder": sequence(*[replace("a", "a" * 50)] * 6, key="decoders")},
    "in too many steps": {"normalizer": sequence(*[replace("a", "b")] * 3000)},
}
CHECK = """
import resource, sys
from model.snapshot.tokenizer import read_tokenizer
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for line in sys.stdin:
    try:
        read_tokenizer(line)
        print("read")
    except ValueError as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_tokenizer_that_lengthens_texts_is_refused(changed):
    started = time.monotonic()
    lines = "".join(changed(**parts) + "\n" for parts in GROWING.values())
    printed = subprocess.run(
        [sys.executable, "-c", CHECK], input=lines, cwd=REPOSITORY, capture_output=True, text=True, timeout=100
    )
    *sentences, grown = printed.stdout.splitlines()
    assert printed.returncode == 0 and time.monotonic() - started < 60
    assert int(grown) < 100_000, f"{grown} kB"
    for what, sentence in zip(GROWING, sentences, strict=True):
        assert sentence.startswith("the tokenizer ") and sentence.endswith("was trained with."), (what, sentence)
        words = ("writes more than 64 characters", "makes texts more than 64 times", "has 3,001 steps of encoding")
        assert any(word in sentence for word in words), (what, sentence)
        assert ("in decoding" in sentence) == (what == "in decoding")


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"normalizer": sequence({"type": "NFKC"}, {"type": "Lowercase"}), "pre_tokenizer": BYTES},
        {"normalizer": sequence({"type": "Prepend", "prepend": "\u2581"}, replace(" ", "\u2581"))},
        {"normalizer": sequence(*[replace(mark, f" {mark} ") for mark in ".,;:!?()"])},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}},
        {"decoder": sequence(replace("\u2581", " "), {"type": "ByteFallback"}, {"type": "Fuse"}, key="decoders")},
    ],
)
def test_what_published_tokenizers_do_is_not(parts, changed):
    assert tokenizer_problem(changed(**parts)) is None


def test_a_panic_is_an_error(changed, trained):
    pattern = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    lm = LanguageModel(trained, changed(pre_tokenizer=pattern), 0)
    for call in (lm.encode, lm.generate, lm.score):
        with pytest.raises(TokenizerFailure, match=r"the tokenizer fails on this text \(.*retry-limit"):
            call("x" * 40 + " y")
    assert lm.encode("plain")


def test_a_tokenizer_that_fails_at_once_is_refused(changed):
    probed = replace("( + +)+y|a{20}", "x", "Regex")
    assert tokenizer_problem(changed(normalizer=probed)) is None  # nothing to fail on: no y
    failing = sequence(replace("\n", "x" * 40 + " y"), replace("(x+x+)+y", "x", "Regex"))
    assert "fails on a short text in encoding" in tokenizer_problem(changed(normalizer=failing))


def test_nothing_but_a_tokenizer_is_read(changed, tokenizer):
    for text in ("", "{}", "[" * 100_000):
        with pytest.raises(ValueError, match=r"cannot be read; give the contents of a tokenizer\.json"):
            read_tokenizer(text)
    described = json.loads(tokenizer.to_str())
    with pytest.raises(ValueError, match="the tokenizer has no ids"):
        read_tokenizer(changed(model=described["model"] | {"vocab": {}, "merges": []}, added_tokens=[]))
    found = Tokenizer.from_str(tokenizer.to_str())
    found.enable_truncation(3)
    found.enable_padding(length=9)
    text = "one two three four"
    assert read_tokenizer(found.to_str()).encode(text).ids == tokenizer.encode(text).ids
