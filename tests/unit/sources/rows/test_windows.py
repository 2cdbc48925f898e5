"""Rows of several windows: the same windows as without them, a document's one after the other, nothing lost."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sources.rows.packing import IGNORE, Packer, RowBlock, every, gather, pack_all
from sources.rows.windows import in_rows

EOS = 0


class Part:
    """A piece of a document, as far as in_rows looks at it."""

    def __init__(self, document: int, length: int):
        self.document, self.ids = document, [document] * length


def make_documents(lengths: list[int]) -> list[np.ndarray]:
    ends = np.cumsum([1, *lengths])
    return [np.arange(start, start + length, dtype=np.uint32) for start, length in zip(ends, lengths, strict=False)]


def windows_of(block: RowBlock, length: int, windows: int) -> list[list[int]]:
    """The labels of each window that are no padding."""
    _, labels, segments = block.unpack()
    assert ((segments == -1) == (labels == IGNORE)).all()
    return [[int(id) for id in part if id != IGNORE] for part in labels.reshape(-1, length)]


def test_a_documents_rest_comes_first_in_the_next_window():
    first, second, last = [Part(1, 4)], [Part(1, 4)], [Part(2, 2), Part(1, 1), Part(3, 1)]
    rows = in_rows([first, second, last], 4, 3)
    assert [[[p.document for p in window.pieces] for window in row] for row in rows] == [[[1], [1], [1, 2, 3]]]
    assert [window.continues for window in rows[0]] == [False, True, True]


def test_one_document_goes_on_in_a_window_and_rows_end_chains():
    rows = in_rows([[Part(1, 4)], [Part(2, 4)], [Part(1, 2), Part(2, 2)], [Part(3, 1)]], 4, 2)
    documents = [[[p.document for p in window.pieces] for window in row] for row in rows]
    assert documents == [[[1], [1, 2]], [[2], [3]]]
    assert [window.continues for row in rows for window in row] == [False, True, False, False]
    chain = in_rows([[Part(1, 4)]] * 3, 4, 2)
    assert [window.continues for row in chain for window in row] == [False, True, False, False]
    assert not chain[1][1].pieces  # an empty window fills the last row


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 70), min_size=1, max_size=60),
    st.sampled_from([4, 16]),
    st.sampled_from([2, 3, 4]),
    st.sampled_from(["best_fit", "pad"]),
    st.integers(0, 2**32),
)
def test_windows_hold_what_rows_would_and_no_id_is_lost(lengths, seq_length, windows, packing, seed):
    """Block by block, also where a carry is taken up in the middle."""
    plain = Packer(seq_length, EOS, np.uint32, packing)
    packer = Packer(seq_length, EOS, np.uint32, packing, windows=windows)
    rows, draw = 3, np.random.default_rng(seed)

    def compare(block: RowBlock, alone: RowBlock) -> None:
        there = [window for window in windows_of(block, seq_length, windows) if window]
        here = windows_of(alone, seq_length, 1)
        # A document that goes on comes first in its window; the others keep their order.
        assert sorted(map(sorted, there)) == sorted(map(sorted, here))
        assert block.lengths.sum() == alone.lengths.sum() and (block.lengths <= windows * seq_length).all()
        inputs, labels, segments = block.unpack()
        inner = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] >= 0)
        assert (inputs[:, 1:][inner] == labels[:, :-1][inner]).all() and (inputs >= 0).all()

    for ids in make_documents(lengths):
        plain.add(ids), packer.add(ids)
        while packer.has_block(rows):
            compare(packer.block(rows, draw.random(rows)), plain.block(rows * windows, None))
            carry = json.loads(json.dumps(packer.carry()))
            assert carry == plain.carry()
            packer = Packer(seq_length, EOS, np.uint32, packing, carry, windows)
            plain = Packer(seq_length, EOS, np.uint32, packing, carry)
    while len(block := packer.block(rows, draw.random(rows))):
        compare(block, plain.block(rows * windows, None))
    assert packer.tokens == plain.tokens == 0


def test_a_segment_spans_the_windows_of_a_document():
    """And its inputs are what stands before its labels, across the border of windows too."""
    (document, short) = make_documents([9, 1])
    block = pack_all([document, short], 4, EOS, np.uint32, windows=4)
    inputs, labels, segments = block.unpack()
    assert len(block) == 1
    ids = [*document.tolist(), EOS]
    assert labels[0, :10].tolist() == ids and inputs[0, :10].tolist() == [EOS, *ids[:-1]]
    assert (segments[0, :10] == 0).all()
    assert labels[0, 10:12].tolist() == [*short.tolist(), EOS] and (segments[0, 10:12] == 1).all()
    assert (labels[0, 12:] == IGNORE).all() and (segments[0, 12:] == -1).all() and block.lengths[0] == 12


def test_blocks_of_windows_are_gathered_and_dealt_as_others_are():
    block = pack_all(make_documents([40, 3, 9, 70, 2, 2, 5]), 8, EOS, np.uint32, windows=2)
    parts = [every(block, first, 2) for first in (0, 1)]
    for name in range(3):
        whole = block.unpack()[name]
        assert np.array_equal(parts[0].unpack()[name], whole[::2])
        assert np.array_equal(gather([(block, 2, 4), (block, 0, 1)]).unpack()[name], whole[[2, 3, 0]])


@pytest.mark.parametrize("windows", [2, 4])
def test_most_windows_stand_behind_the_one_before_in_a_row(windows):
    lengths = np.random.default_rng(0).integers(100, 1000, 300).tolist()
    packer, joined, possible = Packer(32, EOS, np.uint32, windows=windows), 0, 0
    for ids in make_documents(lengths):
        packer.add(ids)
    while packer.has_block(32):
        _, _, segments = packer.block(32, None).unpack()
        parts = segments.reshape(-1, windows, 32)
        goes_on = (parts[:, 1:, 0] == parts[:, :-1, -1]) & (parts[:, 1:, 0] >= 0)
        joined, possible = joined + goes_on.sum(), possible + goes_on.size
    assert joined > 0.8 * possible
