"""Rows hold every token exactly once as a label, in order."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sources.packing import IGNORE, Packer, pack_all

EOS = 0
documents = st.lists(st.lists(st.integers(1, 99), max_size=40), max_size=12)


@settings(max_examples=60, deadline=None)
@given(documents, st.integers(1, 17))
def test_no_token_is_lost_or_repeated(documents, seq_length):
    inputs, labels = pack_all(documents, seq_length, EOS)
    line = [token for document in documents for token in [*document, EOS]]
    assert inputs.shape == labels.shape == (-(-len(line) // seq_length), seq_length)
    kept = labels != IGNORE
    assert labels[kept].tolist() == line
    assert inputs[kept].tolist() == [EOS, *line][: len(line)]
    assert kept.ravel().tolist() == [True] * len(line) + [False] * (kept.size - len(line))


@settings(max_examples=60, deadline=None)
@given(documents.filter(lambda some: sum(len(d) + 1 for d in some) > 24), st.integers(1, 8), st.data())
def test_front_is_enough_to_go_on(documents, seq_length, data):
    def packer_from(first: int, skip: int) -> Packer:
        packer = Packer(seq_length, EOS)
        for number in range(first, len(documents)):
            packer.add(documents[number], number, skip if number == first else 0)
        return packer

    whole = packer_from(0, 0)
    rows = [whole.row() for _ in range(whole.queued // seq_length)]
    cut = data.draw(st.integers(0, len(rows) - 1))
    packer = packer_from(0, 0)
    for _ in range(cut):
        packer.row()
    resumed = packer_from(*packer.front)
    for expected in rows[cut:]:
        assert np.array_equal(resumed.row(), expected)


def test_nothing_gives_no_rows():
    inputs, labels = pack_all([], 8, EOS)
    assert inputs.shape == labels.shape == (0, 8)
