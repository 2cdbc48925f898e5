"""Step 2 of a text's way: which documents are filtered out.

A document is dropped when it is too short, held out, a repeat, nearly the same as a validation document, or contains a
text that must not be trained on. Held-out texts and repeats are recognized by the hash of the folded text without white
space (near_copies.py). A repeat is a document whose hash is among the last RECENT ones of the lane's epoch (in a shared
shard, the documents of all lanes count). Those hashes belong to the lane's state, so a resumed run drops the same
documents.
"""

import base64
import hashlib
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from sources.rows.near_copies import NearCopies, condense, fold

HELD_OUT_SHARE = 1 / 50
RECENT = 2048  # documents; eight bytes each in the state
NGRAM = 13  # words; GPT-3's measure of contamination (arXiv 2005.14165, appendix C)

ONE_IN = round(1 / HELD_OUT_SHARE)
_WORDS = re.compile(r"\w+")


def text_hash(text: str) -> int:
    """Return 64 bits that are equal for texts which differ only in case, white space and the form of characters."""
    return condensed_hash(condense(text))


def condensed_hash(condensed: bytes) -> int:
    """Return a text's `text_hash`, of what `condense` made of it."""
    return int.from_bytes(hashlib.blake2b(condensed, digest_size=8).digest(), "little")


def older_condense(text: str) -> bytes:
    """Return what version 0.2.0 hashed in place of what `condense` returns; the same for ASCII texts."""
    return text.lower().encode("utf-8", "surrogatepass").translate(None, b" \t\n\r\v\f")


def is_held_out(text: str) -> bool:
    """Whether a text belongs to the held-out share; its hash alone decides."""
    return text_hash(text) % ONE_IN == 0


def ngram_hashes(text: str) -> list[int]:
    """Return the hashes of all runs of NGRAM words; a shorter text is one run."""
    words = [_hash_word(word) for word in _WORDS.findall(fold(text))]
    last_start = max(0, len(words) - NGRAM) if words else -1
    # The built-in hash of a tuple of integers is the same in every process.
    return [hash(tuple(words[start : start + NGRAM])) for start in range(last_start + 1)]


@lru_cache(maxsize=2**18)
def _hash_word(word: str) -> int:
    """Return a hash that is the same in every process (the built-in hash of a string is salted)."""
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Filters:
    """The filters that look at one document alone, and whether repeats are dropped too."""

    min_text_length: int  # characters
    deduplicate: bool = True
    forbidden: frozenset[int] = frozenset()  # ngram_hashes of texts that must not be trained on
    near_copies: NearCopies = field(default_factory=NearCopies)  # of the validation documents
    long_text_length: int = 0  # characters; while rows are made of long documents

    def reject(self, text: str, digest: int) -> str | None:
        """Return why a text is filtered out, or None; `digest` is its text_hash. Near-copies are another question."""
        length = len(text.strip())
        if length < self.min_text_length or not length:
            return "shorter than min_text_length" if length else "empty"
        if length < self.long_text_length:
            return "shorter than long_text_length"
        if digest % ONE_IN == 0:
            return "held out for evaluation"
        if self.forbidden and not self.forbidden.isdisjoint(ngram_hashes(text)):
            return "containing a text of data.decontaminate"
        return None


class RecentHashes:
    """The last RECENT hashes that were added, oldest first."""

    def __init__(self, hashes: Iterable[int] = ()):
        self._order: deque[int] = deque()
        self._known: set[int] = set()
        for digest in hashes:
            self.add(digest)

    def __contains__(self, digest: int) -> bool:
        return digest in self._known

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)

    def add(self, digest: int) -> None:
        self._order.append(digest)
        self._known.add(digest)
        if len(self._order) > RECENT:
            self._known.discard(self._order.popleft())

    def encode(self) -> str:
        """Return the hashes as a string for a JSON state."""
        return base64.b64encode(np.array(self._order, dtype="<u8").tobytes()).decode()

    @classmethod
    def decode(cls, text: str) -> "RecentHashes":
        """Read what `encode` returned."""
        return cls(np.frombuffer(base64.b64decode(text), dtype="<u8").tolist())
