"""Which texts are passed over: too short, held out for evaluation, repeated, or containing what must not be learned.

Whether a text is held out, and whether it repeats, is told by the hash of its normalised form: lower case, without
white space. Repeats are told among the last RECENT documents of a lane's pass (of a shared shard: of all its
documents); that memory is part of the lane's state, so a resumed run passes over the same ones.
"""

import base64
import hashlib
import re
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

HELD_OUT_SHARE = 1 / 50
RECENT = 2048  # documents; eight bytes each in the state
NGRAM = 13  # words; GPT-3's measure of contamination (arXiv 2005.14165, appendix C)

_ONE_IN = round(1 / HELD_OUT_SHARE)
_WORDS = re.compile(r"\w+")


def text_hash(text: str) -> int:
    """Return 64 bits that are equal for texts which differ only in case and white space."""
    normalised = text.lower().encode("utf-8", "surrogatepass").translate(None, b" \t\n\r\v\f")
    return int.from_bytes(hashlib.blake2b(normalised, digest_size=8).digest(), "little")


def is_held_out(text: str) -> bool:
    """Tell whether a text belongs to the held-out share, by its hash alone."""
    return text_hash(text) % _ONE_IN == 0


def long_ngrams(texts: Iterable[str]) -> frozenset[int]:
    """Return the hashes of all runs of NGRAM words in `texts`; a shorter text counts as one run."""
    return frozenset(gram for text in texts for gram in _ngrams(text))


def _ngrams(text: str) -> Iterable[int]:
    words = [hash_word(word) for word in _WORDS.findall(text.lower())]
    if not words:
        return []
    if len(words) <= NGRAM:
        return [_combine(words)]
    return [_combine(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)]


@lru_cache(maxsize=2**18)
def hash_word(word: str) -> int:
    """Return a hash that is the same in every process (the built-in one is salted)."""
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _combine(hashes: list[int]) -> int:
    return hash(tuple(hashes))  # of integers: the same in every process


@dataclass(frozen=True)
class Filters:
    """What decides whether a document is used, apart from the documents before it."""

    min_text_length: int  # characters
    deduplicate: bool = True
    forbidden: frozenset[int] = frozenset()  # long_ngrams of texts that must not be trained on

    def reject(self, text: str, digest: int) -> str | None:
        """Return why a text is passed over, or None; `digest` is its text_hash."""
        length = len(text.strip())
        if length < self.min_text_length or not length:
            return "shorter than min_text_length" if length else "empty"
        if digest % _ONE_IN == 0:
            return "held out for evaluation"
        if self.forbidden and not self.forbidden.isdisjoint(_ngrams(text)):
            return "containing a text of data.decontaminate"
        return None


class Recent:
    """The hashes of the last RECENT documents."""

    def __init__(self, digests: Iterable[int] = ()):
        self._order: deque[int] = deque()
        self._known: set[int] = set()
        for digest in digests:
            self.add(digest)

    def __contains__(self, digest: int) -> bool:
        return digest in self._known

    def add(self, digest: int) -> None:
        """Remember a hash that is not known yet; the oldest is forgotten."""
        self._order.append(digest)
        self._known.add(digest)
        if len(self._order) > RECENT:
            self._known.discard(self._order.popleft())


def encode_hashes(digests: Collection[int]) -> str:
    """Write 64-bit hashes as a string for a JSON state."""
    return base64.b64encode(np.fromiter(digests, dtype="<u8", count=len(digests)).tobytes()).decode()


def decode_hashes(text: str) -> list[int]:
    """Read what `encode_hashes` wrote."""
    return np.frombuffer(base64.b64decode(text), dtype="<u8").tolist()
