"""What each filter drops, and hashes that no machine, process or version may change: states and caches hold them."""

import json

import pytest

from sources.rows.filters import (
    HELD_OUT_SHARE,
    NGRAM,
    RECENT,
    Filters,
    RecentHashes,
    is_held_out,
    ngram_hashes,
    text_hash,
)

ZEN = "Beautiful is better than ugly. Explicit is better than implicit. Simple is better than complex."


def reason(text: str, **options) -> str | None:
    return Filters(**{"min_text_length": 20} | options).reject(text, text_hash(text))


def test_share_and_stability(texts):
    pieces = {text[start : start + 100] for text in texts for start in range(0, len(text) - 100, 100)}
    held = [piece for piece in pieces if is_held_out(piece)]
    assert len(pieces) > 3000
    assert abs(len(held) / len(pieces) - HELD_OUT_SHARE) < 0.01
    assert all(is_held_out(f"\n {piece}\n") for piece in held)


def test_hashes_are_the_same_everywhere():
    """Written down once: which documents are held out, and which repeats a saved state knows, depends on them."""
    assert text_hash("The Zen of Python") == text_hash(" the zen\tOF\n python\r\f\v") == 8615164356141537686
    assert text_hash("The Zen of Python") != text_hash("The Zen of Python.")
    assert text_hash("half a pair: \ud800") >= 0  # JSON can hold one


@pytest.mark.parametrize(
    "copy",
    [
        "\u201cDon\u2019t panic\u201d - find it",  # quotes
        '"Don\'t\u00a0panic" \u2013\u2028find\u200b\x1fit',  # no-break space, dash, line separator, no width
        '"DON\'T PANIC" - \ufb01nd\u3000\uff49t\u00ad',  # ligature, ideographic space, full width, soft hyphen
    ],
)
def test_the_form_of_characters_does_not_count(copy: str):
    assert text_hash(copy) == text_hash('"Don\'t panic" - find it')
    assert set(ngram_hashes(copy)) == set(ngram_hashes('"Don\'t panic" - find it'))


def test_each_document_is_rejected_with_its_reason(texts):
    held = next(text for text in texts if is_held_out(text))
    kept = next(text for text in texts if not is_held_out(text))
    assert reason(kept) is None and reason(held) == "held out for evaluation"
    assert reason("  \n") == reason("", min_text_length=0) == "empty"
    assert reason(" twelve chars ") == "shorter than min_text_length"
    assert reason("0123456789" * 2) is None and reason(" " + "0123456789" * 2, min_text_length=21) is not None


def test_thirteen_words_in_a_row_contaminate_a_document():
    words = ZEN.split()
    forbidden = {"forbidden": frozenset(ngram_hashes(ZEN))}
    contained = "containing a text of data.decontaminate"
    assert reason(f"He said: {' '.join(words[1 : 1 + NGRAM]).upper()}!", **forbidden) == contained
    assert reason(f"He said: {' '.join(words[1:NGRAM])}!", **forbidden) is None
    assert len(ngram_hashes(ZEN)) == len(words) - NGRAM + 1


def test_a_text_of_fewer_words_is_one_run():
    assert len(ngram_hashes("Now is better than never.")) == 1 and ngram_hashes(" ...") == []
    forbidden = frozenset(ngram_hashes("Now is better than never."))
    assert reason("now is BETTER, than never", forbidden=forbidden) is not None
    assert reason("now is better than never, ever", forbidden=forbidden) is None


def test_the_oldest_hashes_are_forgotten():
    recent = RecentHashes(range(RECENT + 3))
    assert list(recent) == list(range(3, RECENT + 3))
    assert 2 not in recent and 3 in recent and RECENT + 2 in recent


@pytest.mark.parametrize("hashes", [[], [0, 2**64 - 1, 5], list(range(RECENT))])
def test_recent_hashes_survive_a_json_state(hashes: list[int]):
    saved = json.loads(json.dumps(RecentHashes(hashes).encode()))
    assert list(RecentHashes.decode(saved)) == hashes
    assert RecentHashes([1, 2**64 - 1]).encode() == "AQAAAAAAAAD//////////w=="
