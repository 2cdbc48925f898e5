"""Documents in which no token comes twice: whatever becomes of each can be followed through rows."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sources.rows.tokenizer import TextTokenizer

EOS = 0


class NumberTokenizer(TextTokenizer):
    """Tells words such as "w000123" by their numbers."""

    def __init__(self) -> None:
        self.eos_id = self.pad_id = EOS
        self.vocab_size = 2**20

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array([int(word[1:]) for word in text.split()], dtype=np.uint32) for text in texts]

    def to_json(self) -> str:
        return "numbers"


def documents(lengths: Sequence[int]) -> list[str]:
    """Documents of so many words each, numbered from 1 through all of them."""
    ends = np.cumsum([1, *lengths]).tolist()
    return [" ".join(f"w{number:06}" for number in range(start, end)) for start, end in itertools.pairwise(ends)]


def words_of(texts: Sequence[str]) -> list[int]:
    return [int(word[1:]) for text in texts for word in text.split()]


@dataclass
class Followed:
    """What rows gave: each label that is no end of a text, and what stood before it."""

    labels: list[int] = field(default_factory=list)
    ends: int = 0

    def add(self, inputs: Sequence[int], labels: Sequence[int], first_words: set[int]) -> None:
        """A row; `first_words` are those that begin a document."""
        for before, label in zip(inputs, labels, strict=True):
            if label == EOS:
                self.ends += 1
            elif label > 0:
                assert before == (EOS if label in first_words else label - 1), "a token has lost what was before it"
                self.labels.append(label)
