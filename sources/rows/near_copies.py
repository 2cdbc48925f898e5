"""Which texts are nearly the same: folding, and near-copies of the validation documents.

A text is folded (compatibility characters, quotes, dashes, case), reduced to its letters and digits, and cut at g, w, 7
and, in other scripts, wherever one of a letter's further UTF-8 bytes ends in the hexadecimal digit 7. So the cuts move
with the text (content-defined chunking, as in LBFS, SOSP 2001), and a changed word spoils one chunk. A text is a
near-copy of a document when they share a good part of either one's chunks (Broder's containment, 1997), which tells a
copy inside a larger text too. Chunks that several documents share are licences, headers and templates; they count for
none of them. benchmarks/held_out.py measures this beside n-grams and MinHash.

Most texts share nothing, and most of the time would go into cutting them. So a text that is not short is first cut at
fewer places, b, v and 3 (languages with Latin letters have at least one of the two); without a long chunk of some
document it is no copy. Three calls of the standard library tell that, in 2 ns a character.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

CHUNK = 16  # bytes; shorter chunks are too common to tell anything
LONG_CHUNK = 24  # bytes; of those between fewer cuts
COMMON = 3  # documents; a chunk of so many is common text
EVIDENCE = 2  # chunks that must be shared at least
SHARE = 1 / 3  # of the chunks of either text
LEAST = 9  # chunks; a shorter document counts as one of so many, for one or two lines may stand in many texts
SHORT = 2000  # bytes; a shorter text has few long chunks, all of which a few changed words may spoil

# What NFKC leaves: quotes and primes, hyphens and dashes, white space, characters without a width.
_FOLDED = dict.fromkeys("\u2018\u2019\u201a\u201b\u2032", "'")
_FOLDED |= dict.fromkeys("\xab\xbb\u201c\u201d\u201e\u201f", '"')
_FOLDED |= dict.fromkeys("\u2010\u2012\u2013\u2014\u2015\u2212", "-")
_FOLDED |= dict.fromkeys("\x85\xad\u1680\u180e\u200b\u200c\u200d\u2028\u2029\u2060\ufeff", "")
_UNFOLDED = re.compile(f"[{''.join(_FOLDED)}]")

_WHITE_SPACE = b" \t\n\r\v\f\x1c\x1d\x1e\x1f"  # all that folding leaves
_LETTERS = {*b"0123456789abcdefghijklmnopqrstuvwxyz", *range(0x80, 0x100)}
_NO_LETTERS = bytes(set(range(0x100)) - _LETTERS)
_CUT = b"\n"  # no letter


def _cuts(letters: bytes, digit: int) -> bytes:
    """Return the table for bytes.translate that cuts at these letters and at others' bytes that end in this digit.

    Not at a letter's first byte, from 0xC0 on, which all letters of a script may have in common.
    """
    cuts = {*letters, *range(0x80 + digit, 0xC0, 0x10)}
    return bytes(ord(_CUT) if byte in cuts else byte for byte in range(0x100))


_CUTS = _cuts(b"7gw", 0x7)
_FEWER_CUTS = _cuts(b"3bv", 0xD)


def fold(text: str) -> str:
    """Return a text in lower case in which characters that mean the same are the same; ASCII only changes its case."""
    if text.isascii():
        return text.lower()
    # Nothing composes across a line's end, and most lines of most texts are ASCII.
    return "\n".join([line.lower() if line.isascii() else _fold_line(line) for line in text.split("\n")])


def _fold_line(line: str) -> str:
    return _UNFOLDED.sub(lambda match: _FOLDED[match[0]], unicodedata.normalize("NFKC", line).casefold())


def condense(text: str) -> bytes:
    """Return a folded text's UTF-8 without white space: what is equal for texts that are the same."""
    return fold(text).encode("utf-8", "surrogatepass").translate(None, _WHITE_SPACE)


def _pieces(condensed: bytes, cuts: bytes = _CUTS) -> list[bytes]:
    """Return the letters of a text between its cuts, chunks and shorter ones."""
    return condensed.translate(cuts, _NO_LETTERS).split(_CUT)


def _chunks(pieces: Iterable[bytes], least: int = CHUNK) -> frozenset[bytes]:
    return frozenset(piece for piece in pieces if len(piece) >= least)


@dataclass(frozen=True)
class NearCopies:
    """Recognizes near-copies of some documents. Can be pickled; empty, it recognizes none."""

    owners: dict[bytes, tuple[int, ...]] = field(default_factory=dict)  # chunk -> the documents that it is told by
    sizes: tuple[int, ...] = ()  # chunks that each document is told by
    long_chunks: frozenset[bytes] = frozenset()  # of all documents, between fewer cuts

    @classmethod
    def of(cls, texts: Iterable[str]) -> "NearCopies":
        # A copy is no second document.
        documents = {_chunks(_pieces(condensed)): condensed for condensed in map(condense, texts)}
        counts = Counter(chunk for chunks in documents for chunk in chunks)
        owners: dict[bytes, tuple[int, ...]] = {}
        sizes = []
        for number, chunks in enumerate(documents):
            telling = sorted(chunk for chunk in chunks if counts[chunk] < COMMON)
            alone = (number,)
            owners |= {chunk: owners[chunk] + alone if chunk in owners else alone for chunk in telling}
            sizes.append(len(telling))
        long = (_chunks(_pieces(text, _FEWER_CUTS), LONG_CHUNK) for text in documents.values())
        counts = Counter(chunk for chunks in long for chunk in chunks)
        return cls(owners, tuple(sizes), frozenset(chunk for chunk in counts if counts[chunk] < COMMON))

    def recognize(self, condensed: bytes) -> bool:
        """Whether a text, given as `condense` returned it, is a near-copy of one of the documents."""
        if not self.owners:
            return False
        if len(condensed) >= SHORT and self.long_chunks.isdisjoint(_pieces(condensed, _FEWER_CUTS)):
            return False
        if self.owners.keys().isdisjoint(pieces := _pieces(condensed)):
            return False
        found = self.owners.keys() & pieces
        if len(found) < EVIDENCE:
            return False
        own = len(_chunks(pieces))
        shared = Counter(number for chunk in found for number in self.owners[chunk])
        return any(
            count >= max(EVIDENCE, SHARE * min(own, max(LEAST, self.sizes[number]))) for number, count in shared.items()
        )

    def digest(self) -> str:
        """Return a hash of what decides, the same in every process."""
        digest = hashlib.blake2b(
            repr((CHUNK, LONG_CHUNK, COMMON, EVIDENCE, SHARE, LEAST, SHORT)).encode(), digest_size=16
        )
        for chunk in sorted(self.owners):
            digest.update(chunk + repr(self.owners[chunk]).encode())
        digest.update(_CUT.join(sorted(self.long_chunks)))
        return digest.hexdigest()
