"""Near-copies of some of Python's documentation topics are recognized, the other topics are not."""

import pickle
import random
import re
from pydoc_data.topics import topics

import pytest

from sources.rows.filters import ngram_hashes
from sources.rows.near_copies import COMMON, SHORT, NearCopies, condense, fold

OTHER_WORDS = ("altogether", "surely", "window", "therefore", "number", "seven")


@pytest.fixture(scope="module")
def pages() -> list[str]:
    """Pieces of the topics of some 2,500 characters, no two of which share 13 words in a row."""
    texts = [text for _, text in sorted(topics.items())]
    pieces, known = [], set()
    for piece in (text[start : start + 2500] for text in texts for start in range(0, len(text) - 1500, 2500)):
        ngrams = set(ngram_hashes(piece))
        pieces += [piece] if known.isdisjoint(ngrams) else []
        known |= ngrams
    return pieces


def other_words(text: str, every: int) -> str:
    generator = random.Random(len(text))
    words = re.split(r"(\s+)", text)
    for place in generator.sample(range(0, len(words), 2), max(1, len(words) // 2 // every)):
        words[place] = generator.choice(OTHER_WORDS)
    return "".join(words)


CHANGES = {
    "one word": lambda text, other: other_words(text, 10**9),
    "one word in twenty": lambda text, other: other_words(text, 20),
    "first words cut": lambda text, other: text[len(text) // 10 :],
    "last words cut": lambda text, other: text[: -len(text) // 10],
    "half of it": lambda text, other: text[: len(text) // 2],
    "quotes": lambda text, other: text.replace('"', "\N{LEFT DOUBLE QUOTATION MARK}").replace("'", "\u2019"),
    "no-break spaces": lambda text, other: text.replace(" ", "\N{NO-BREAK SPACE}"),
    "case": lambda text, other: text.upper(),
    "no punctuation": lambda text, other: re.sub(r"[^\w\s]", "", text),
    "a paragraph more": lambda text, other: f"{text[:700]}\n\n{other[:600]}\n\n{text[700:]}",
    "inside a larger text": lambda text, other: f"{other}\n\n{text}\n\n{other[::-1]}" * 2,
}


@pytest.mark.parametrize("change", CHANGES)
def test_near_copies_are_recognized_and_other_texts_are_not(pages: list[str], change: str):
    known, others = pages[::3], pages[1::3]
    near_copies = NearCopies.of(known)
    changed = [CHANGES[change](text, other) for text, other in zip(known, others, strict=False)]
    assert len(changed) >= 15 and all(text not in known for text in changed)
    assert sum(near_copies.recognize(condense(text)) for text in changed) >= 0.9 * len(changed)
    assert sum(near_copies.recognize(condense(text)) for text in others) == 0


def test_what_many_documents_share_is_no_copy(pages: list[str]):
    licence, few, many = pages[0], pages[1:COMMON], pages[1 : COMMON + 1]
    file = condense(f"{licence}\n{pages[10]}")
    assert NearCopies.of(f"{licence}\n{text}" for text in few).recognize(file)
    assert not NearCopies.of(f"{licence}\n{text}" for text in many).recognize(file)
    assert NearCopies.of([pages[3]] * 5).recognize(condense(pages[3]))  # copies are one document


def test_a_few_words_in_common_are_no_copy(pages: list[str]):
    near_copies = NearCopies.of(["Copyright of the Python Software Foundation; all rights are reserved."])
    assert not near_copies.recognize(condense(f"Copyright of the Python Software Foundation; all rights\n{pages[0]}"))
    assert not NearCopies().recognize(condense(pages[0])) and not NearCopies.of(["", " "]).recognize(b"")


def test_what_decides_has_a_digest_and_travels_to_workers(pages: list[str]):
    near_copies = NearCopies.of(pages[:3])
    copy = pickle.loads(pickle.dumps(near_copies))
    assert copy == near_copies and copy.digest() == near_copies.digest() != NearCopies.of(pages[:2]).digest()
    # Written down once: cached rows depend on it, in whichever process.
    assert (
        NearCopies.of(["Beautiful is better than ugly. Explicit is better than implicit."]).digest()
        == "c6b9a802f4b3312b99cb93fcad486701"
    )


def test_folding():
    assert fold("Plain ASCII\n`x`") == "plain ascii\n`x`"
    assert (
        fold("\ufb01ne \u201cquo\u2019te\u201d \u2013 STRASSE\u00a0Stra\u00dfe\u200b")
        == 'fine "quo\'te" - strasse strasse'
    )
    assert fold("E\u0301\ne\u0301") == "\xe9\n\xe9"
    lone = "\ud800 half a pair"  # JSON can hold one
    assert fold(lone) == lone and not NearCopies.of([lone]).recognize(condense(lone))


LETTERS = {
    "Latin, as in Romance languages": "abcdefghilmnopqrstuv",
    "Greek": map(chr, range(0x3B1, 0x3CA)),
    "Cyrillic": map(chr, range(0x430, 0x450)),
    "Hebrew": map(chr, range(0x5D0, 0x5EB)),  # all begin with the same byte
    "Arabic": map(chr, range(0x627, 0x64B)),
    "Devanagari": map(chr, range(0x902, 0x94E)),
    "Thai": map(chr, range(0xE01, 0xE2F)),
    "Hiragana": map(chr, range(0x3042, 0x3094)),
    "Han": map(chr, range(0x4E00, 0x5200)),
    "Hangul": map(chr, range(0xAC00, 0xB000)),
}


@pytest.mark.parametrize("script", LETTERS)
def test_near_copies_in_every_script(script: str):
    generator, letters = random.Random(7), list(LETTERS[script])
    text, other, longer = ("".join(generator.choices(letters, k=size)) for size in (900, 900, SHORT))
    near_copies = NearCopies.of([text])
    copy = f"{text[:300]}{other[:40]}{text[340:800]}"
    for whole in (copy, f"{longer}{copy}{longer}"):
        assert near_copies.recognize(condense(whole))
    assert not near_copies.recognize(condense(other)) and not near_copies.recognize(condense(longer))
