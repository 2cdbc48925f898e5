"""Tells text from what a font without a usable map to Unicode gives instead: symbols, or letters in place of others.

Such a page looks right and needs OCR; its "text" is a cipher. The test knows no words. Symbols, private-use and control
characters give most fonts away. Letters that were exchanged for others do by their frequencies: in all languages with
Latin letters the same few are common, and a page whose common letters are rare ones everywhere is in no language. What
cannot be told (too few letters, another script, numbers, sequences of four letters) counts as text.
"""

import math
import re
import unicodedata
from collections import Counter

FEWEST = 100  # characters, white space aside, that a page must have to be judged
MEANINGLESS = 0.25  # of the characters: private-use, control, unassigned, or the replacement character
READABLE = 0.25  # of the characters at least: letters, marks and digits; a page of formulas has more than half
ACCENTED = 0.6  # of the Latin letters; Vietnamese has a quarter
FEWEST_LETTERS = 300  # of the page's different words
LATIN = 0.8  # of the letters
# The chance that two letters are the same one: 0.038 where all are equally frequent, 0.058 to 0.104 in languages. It
# stays what it is when letters are exchanged for others.
LIKE_A_LANGUAGE = (0.05, 0.13)
# Correlation of a page's letter frequencies with COMMON. Of 32 languages Welsh and Somali have the least, 0.7; with the
# letters exchanged for others, nine pages of ten have less than this.
IN_A_LANGUAGE = 0.3
_RUN = re.compile(r"([^\w\s])(?:\s?\1)+")
_WORD = re.compile(r"[^\W\d_]+")
# Letters a to z per thousand, accents aside, on average of those languages.
COMMON = (123, 16, 24, 39, 110, 10, 23, 20, 86, 12, 28, 47, 32, 76, 63, 21, 2, 59, 60, 57, 38, 17, 9, 2, 16, 10)


def is_legible(page: str) -> bool:
    """Return whether a page's characters, as its fonts give them, are text as far as can be told."""
    # A line of dots or dashes is one mark, however long.
    counts = Counter("".join(_RUN.sub(r"\1", page).split()))
    kinds: Counter[str] = Counter()
    for character, count in counts.items():
        kinds[unicodedata.category(character) if character != "\ufffd" else "Cn"] += count
    total = kinds.total()
    if total < FEWEST:
        return True
    share = {group: sum(kinds[kind] for kind in kinds if kind[0] in group) / total for group in ("C", "LMN")}
    return share["C"] < MEANINGLESS and share["LMN"] >= READABLE and _may_be_a_language(page)


def _may_be_a_language(page: str) -> bool:
    # Each word once: a page of code may consist of one name.
    counts = Counter("".join(set(_WORD.findall(page.lower()))))
    latin = [0] * 26
    accented = 0
    for letter, count in counts.items():
        base = unicodedata.normalize("NFKD", letter)[0]
        if "a" <= base <= "z":
            latin[ord(base) - ord("a")] += count
            accented += count if letter > "\x7f" else 0
    total = sum(latin)
    if total < FEWEST_LETTERS or total < LATIN * counts.total():
        return True
    if accented > ACCENTED * total:
        return False
    repeats = sum((count / total) ** 2 for count in latin)
    return not LIKE_A_LANGUAGE[0] < repeats < LIKE_A_LANGUAGE[1] or _correlation(latin, COMMON) >= IN_A_LANGUAGE


def _correlation(ours: list[int], theirs: tuple[int, ...]) -> float:
    mean, other_mean = sum(ours) / len(ours), sum(theirs) / len(theirs)
    pairs = [(a - mean, b - other_mean) for a, b in zip(ours, theirs, strict=True)]
    spread = math.sqrt(sum(a * a for a, _ in pairs) * sum(b * b for _, b in pairs))
    return sum(a * b for a, b in pairs) / spread if spread else 1.0
