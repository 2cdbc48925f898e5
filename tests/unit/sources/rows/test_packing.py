"""Packing: no id lost, repeated or out of order, padding only where asked, whatever the lengths; and the carry."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sources.rows.packing import IGNORE, MAX_WAIT, MAX_WASTE, SLACK_ROWS, Packer, RowBlock, gather, ids_dtype, pack_all

EOS = 0
documents = st.lists(st.integers(0, 70), min_size=1, max_size=60)


def make_documents(lengths: list[int]) -> list[np.ndarray]:
    """Documents of unmistakable ids: no id stands twice in all of them, and none is EOS."""
    ends = np.cumsum([1, *lengths])
    return [np.arange(start, start + length, dtype=np.uint32) for start, length in zip(ends, lengths, strict=False)]


def pieces_of(block: RowBlock) -> list[tuple[int, list[int]]]:
    """Every piece of a block in order: the input before its first label, and its labels, read from unpacked rows."""
    inputs, labels, segments = block.unpack()
    found = []
    for row in range(len(block)):
        for segment in range(segments[row].max() + 1):
            (places,) = np.nonzero(segments[row] == segment)
            assert (np.diff(places) == 1).all()
            assert (inputs[row, places[1:]] == labels[row, places[:-1]]).all()
            found.append((int(inputs[row, places[0]]), labels[row, places].tolist()))
        assert (labels[row][segments[row] == -1] == IGNORE).all()
        assert (labels[row][segments[row] >= 0] != IGNORE).all()
    return found


def unpack_documents(pieces: list[tuple[int, list[int]]]) -> list[list[int]]:
    """Join pieces to documents by what stands before each: EOS at a beginning, else the last id of the piece before."""
    finished, unfinished = [], {}
    for before, labels in pieces:
        ids = [*([] if before == EOS else unfinished.pop(before)), *labels]
        if ids[-1] == EOS:
            finished.append(ids[:-1])
        else:
            unfinished[ids[-1]] = ids
    assert not unfinished
    return finished


@settings(max_examples=200, deadline=None)
@given(documents, st.sampled_from([4, 16, 33]), st.sampled_from(["best_fit", "pad"]), st.integers(0, 2**32))
def test_every_document_comes_out_whole_and_in_order(lengths, seq_length, packing, seed):
    given_documents = make_documents(lengths)
    packer, rows, blocks = Packer(seq_length, EOS, np.uint32, packing), 5, []
    keys = np.random.default_rng(seed)
    for ids in given_documents:
        packer.add(ids)
        while packer.has_block(rows):
            blocks.append(packer.block(rows, keys.random(rows)))
            assert len(blocks[-1]) == rows
            carry = json.loads(json.dumps(packer.carry()))  # a restart in the middle changes nothing
            packer = Packer(seq_length, EOS, np.uint32, packing, carry)
    while len(block := packer.block(rows, keys.random(rows))):
        blocks.append(block)
    assert packer.carry() is None and packer.tokens == 0
    pieces = [piece for block in blocks for piece in pieces_of(block)]
    found = unpack_documents(pieces)
    assert sorted(map(tuple, found)) == sorted(tuple(ids.tolist()) for ids in given_documents)
    if packing == "pad":
        assert all(len(block.pieces) == len(block) for block in blocks)


@pytest.mark.parametrize("packing", ["best_fit", "pad"])
def test_without_keys_too_a_carry_changes_no_row(packing):
    """Rows then follow their documents' order, in which a carry does not hold them."""
    lengths = np.random.default_rng(0).integers(1, 60, 200).tolist()
    whole, resumed = Packer(16, EOS, np.uint32, packing), Packer(16, EOS, np.uint32, packing)
    compared = 0
    for ids in make_documents(lengths):
        whole.add(ids), resumed.add(ids)
        while whole.has_block(5):
            one, other = whole.block(5, None), resumed.block(5, None)
            assert np.array_equal(one.ids, other.ids) and np.array_equal(one.pieces, other.pieces)
            resumed = Packer(16, EOS, np.uint32, packing, json.loads(json.dumps(resumed.carry())))
            compared += 1
    assert compared > 20


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=400), st.sampled_from([16, 64]))
def test_best_fit_wastes_at_most_what_it_may(lengths, seq_length):
    packer, rows = Packer(seq_length, EOS, np.uint32), 8
    for ids in make_documents(lengths):
        packer.add(ids)
        while packer.has_block(rows):
            block = packer.block(rows, None)
            assert block.lengths.sum() >= (1 - MAX_WASTE) * rows * seq_length
            assert packer.tokens <= SLACK_ROWS * seq_length + MAX_WASTE * rows * seq_length + len(ids) + 1


def waits_of(lengths, packer: Packer, rows: int, blocks: int, part: int) -> tuple[list[int], float]:
    """How many blocks were packed without the end of each document, and the share of positions used."""
    unpacked, ended, waits, used, made = {}, {}, [], 0, 0
    for number, length in enumerate(lengths, start=1):
        unpacked[number] = length
        for start in range(0, length, part):
            end = min(start + part, length)
            packer.add(np.full(end - start, number, dtype=np.uint32), finished=end == length)
            if end == length:
                ended[number] = made
            while packer.has_block(rows):
                block, made = packer.block(rows, None), made + 1
                used += int(block.lengths.sum())
                counts = np.bincount(block.ids.flatten())
                for document in np.flatnonzero(counts[1:]) + 1:
                    unpacked[document] -= counts[document]
                    if document in ended and not unpacked[document]:
                        waits.append(made - 1 - ended[document])
                        del unpacked[document]
        if made >= blocks:
            break
    waits += [made - 1 - ended[document] for document in unpacked if document in ended]
    return waits, used / (made * rows * packer.seq_length)


WAITING = {
    "short": (lambda draw: draw.integers(15, 40), 64, 64),
    "of all lengths": (lambda draw: int(draw.lognormal(4, 1)) + 1, 128, 64),
    "long": (lambda draw: draw.integers(5_000, 20_000), 32, 256),
    "tiny": (lambda draw: draw.integers(1, 8), 128, 16),
}


@pytest.mark.parametrize("name", WAITING)
def test_a_document_waits_for_few_blocks(name):
    draw_length, seq_length, rows = WAITING[name]
    draw = np.random.default_rng(3)
    lengths = (int(draw_length(draw)) for _ in range(10**6))
    waits, used = waits_of(lengths, Packer(seq_length, EOS, np.uint32), rows, blocks=60, part=1000)
    # A piece that nothing is there to fill a row with may wait one block longer.
    assert max(waits) <= MAX_WAIT + (name == "long") and used >= 0.995


def test_padded_rows_of_long_documents_leave_no_short_one_waiting():
    """Each long document fills two blocks at once, so that short pieces never come up by themselves."""
    lengths = [length for _ in range(30) for length in (32 * 8 - 1, 3)]
    waits, _ = waits_of(lengths, Packer(8, EOS, np.uint32, "pad"), 16, blocks=50, part=1000)
    assert max(waits) <= MAX_WAIT


def test_a_carry_of_a_version_without_ages_goes_on():
    packer = Packer(16, EOS, np.uint16)
    for ids in make_documents([40, 3, 70, 31, 9, 5] * 4):
        packer.add(ids)
    packer.block(3, None)
    carry = json.loads(json.dumps(packer.carry()))
    assert set(carry["ages"]) == {1}
    del carry["ages"]
    older = Packer(16, EOS, np.uint16, carry=carry)
    assert older.tokens == packer.tokens and set(older.carry()["ages"]) == {0}
    ids = [Packer(16, EOS, np.uint16, carry=kept).block(3, None).ids for kept in (carry, packer.carry())]
    assert np.array_equal(*ids)  # nothing has waited for long


def test_a_document_in_parts_is_one_document():
    ids = make_documents([100])[0]
    whole, parts = Packer(16, EOS, np.uint16), Packer(16, EOS, np.uint16)
    whole.add(ids)
    for start in range(0, 100, 7):
        parts.add(ids[start : start + 7], finished=start + 7 >= 100)
        parts = Packer(16, EOS, np.uint16, carry=json.loads(json.dumps(parts.carry())))
    a, b = whole.block(20, None), parts.block(20, None)
    assert all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("ids", "lengths", "pieces"))


def test_a_carry_of_other_rows_loses_nothing():
    """A preset may ask for another seq_length than the one the carry was cut for."""
    before = Packer(32, EOS, np.uint16)
    for ids in make_documents([40, 3, 70, 31]):
        before.add(ids)
    for seq_length in (8, 50):
        after = Packer(seq_length, EOS, np.uint16, carry=before.carry())
        found = unpack_documents(pieces_of(after.block(100, None)))
        assert sorted(map(len, found)) == [3, 31, 40, 70]


def test_without_keys_documents_stay_in_order():
    given_documents = make_documents([5, 40, 2, 16, 9])
    block = pack_all(given_documents, 16, EOS, np.uint16, "pad")
    assert [d[0] for d in unpack_documents(pieces_of(block))] == [d[0] for d in given_documents]


def test_gathered_rows_are_the_blocks_rows():
    blocks = [pack_all(make_documents([5, 40, 2, 16, 9, 3, 3, 90][n:]), 16, EOS, np.uint16) for n in range(3)]
    spans = [(blocks[1], 1, 3), (blocks[0], 0, 4), (blocks[2], 2, len(blocks[2]))]
    for name, gathered in enumerate(gather(spans).unpack()):
        expected = np.concatenate([block.unpack()[name][first:last] for block, first, last in spans])
        assert np.array_equal(gathered, expected) and gathered.dtype == expected.dtype


@pytest.mark.parametrize(("vocab_size", "dtype"), [(50257, np.uint16), (65536, np.uint16), (65537, np.uint32)])
def test_ids_take_the_narrowest_type(vocab_size, dtype):
    assert ids_dtype(vocab_size) is dtype
    assert dtype(vocab_size - 1) == vocab_size - 1
