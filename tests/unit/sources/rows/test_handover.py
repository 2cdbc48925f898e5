"""sources/rows/handover.py: rows of another format go on behind those that were delivered, to the token."""

import itertools
import json
import random
from collections import Counter

import numpy as np
import pytest

from shard_cache import ShardCache
from sources.config import DataConfig
from sources.loading.loader import BatchShape, Loader, LoaderOptions, merge_states
from sources.registry import open_sources
from sources.rows.filters import is_held_out
from sources.rows.handover import undelivered
from sources.rows.packing import Piece
from tests.helpers.numbered import EOS, Followed, NumberTokenizer, documents, words_of

TOKENIZER = NumberTokenizer()
ROWS = 16  # of a step: one of each lane


@pytest.fixture(params=["dealt", "shared"])
def dealing(request, monkeypatch) -> str:
    monkeypatch.setattr("sources.registry.SMALL_SOURCE", 0 if request.param == "dealt" else 10**9)
    monkeypatch.setattr("sources.rows.pipeline_config.BLOCK_ROWS", 32)  # for an epoch of several blocks
    return request.param


@pytest.fixture
def corpus(dealing, tmp_path, write_json_lines) -> tuple[list[str], dict]:
    """Documents of 8 to 400 tokens, a few of which are longer than what is encoded at once; and the source."""
    random_lengths = random.Random(5)
    lengths = [round(8 * 50 ** random_lengths.random()) for _ in range(600 if dealing == "dealt" else 120)]
    lengths[7::61] = [3000] * len(lengths[7::61])
    texts = documents(lengths)
    write_json_lines(tmp_path / "numbers", texts, 20)
    return texts, {"type": "files", "path": str(tmp_path / "numbers"), "name": "numbers"}


def leg(
    config: DataConfig, state: dict | None, length: int, steps: int, world_size: int = 1, windows: int = 1, **options
) -> tuple:
    """The rows (lane, epoch, inputs, labels) of so many steps with rows of `windows` times `length` labels, and the
    state behind."""
    rows, states = [], []
    for rank in range(world_size):
        shape = BatchShape(ROWS // world_size, 1, length, rank, world_size, windows)
        loader = Loader(open_sources(config), config, TOKENIZER, shape, LoaderOptions(seed=3, **options), state)
        batches = [batch for batch, _ in zip(loader, range(steps), strict=False)]
        loader.close()
        for batch in batches:
            lanes = batch.state["lanes"]
            own = range(rank, ROWS, world_size)
            for lane, inputs, labels in zip(own, batch.input_ids[0].tolist(), batch.labels[0].tolist(), strict=True):
                position = lanes[str(lane)]["streams"]["numbers"]["state"]
                rows.append((lane, position["pass"] if position else 0, inputs, labels))
        states.append(batches[-1].state)
    return rows, json.loads(json.dumps(merge_states(states)))


@pytest.mark.parametrize("packing", ["best_fit", "pad"])
def test_no_token_is_lost_or_comes_twice_where_rows_grow(packing, corpus, dealing):
    """In each epoch; rows grow twice and shrink once, on other ranks and from a cold start each time."""
    texts, source = corpus
    config = DataConfig(sources=[source], mix_strategy="sequential", packing=packing)
    state, rows = None, []
    longest = 75 if dealing == "dealt" else 20
    for length, steps, world_size in ((32, 19, 1), (64, 5, 2), (128, 4, 1), (128, 2, 4), (32, 7, 1), (256, longest, 1)):
        found, state = leg(config, state, length, steps, world_size)
        rows += found
    follow(texts, rows)


@pytest.mark.parametrize("packing", ["best_fit", "pad"])
def test_no_token_is_lost_where_windows_come_and_go(packing, corpus, dealing):
    texts, source = corpus
    config = DataConfig(sources=[source], mix_strategy="sequential", packing=packing)
    state, rows = None, []
    longest = 150 if dealing == "dealt" else 40
    legs = [(32, 1, 11, 1), (32, 2, 5, 2), (32, 4, 1, 1), (32, 1, 2, 4), (64, 2, 1, 1), (128, 1, longest, 1)]
    for length, windows, steps, world_size in legs:
        found, state = leg(config, state, length, steps, world_size, windows)
        rows += found
        assert state["rows"].get("windows", 1) == windows
    follow(texts, rows)


def follow(texts: list[str], rows: list[tuple]) -> None:
    """Every token of the first epoch is in one row, behind what stands before it in its document."""
    kept = [text for text in texts if not is_held_out(text)]
    first_words = {words_of([text.split()[0]])[0] for text in kept}
    epochs: dict[int, Followed] = {}
    for _, epoch, inputs, labels in rows:
        epochs.setdefault(epoch, Followed()).add(inputs, labels, first_words)
    assert len(epochs) > 1, "the first epoch is over"
    assert Counter(epochs[0].labels) == Counter(words_of(kept)) and epochs[0].ends == len(kept)


@pytest.mark.parametrize("windows", [1, 2])
def test_a_switch_is_the_same_wherever_the_run_starts_again(windows, corpus, tmp_path):
    """Before it, at it, and before and after the first step with longer rows; with a cache too."""
    _, source = corpus
    config = DataConfig(sources=[source])
    before, state = leg(config, None, 32, 19)
    whole, end = leg(config, state, 64, 40, windows=windows)
    _, half = leg(config, None, 32, 8)
    rest, again = leg(config, half, 32, 11)
    assert rest == before[8 * ROWS :] and again == state
    for cache in (None, ShardCache(tmp_path / "cache", 1.0), ShardCache(tmp_path / "cache", 1.0)):
        rows, position = [], state
        for steps in (1, 2, 30, 7):
            found, position = leg(config, position, 64, steps, windows=windows, cache=cache)
            rows += found
        assert rows == whole and position == end


def test_pieces_of_a_document_are_joined_in_longer_rows(corpus, dealing):
    _, source = corpus
    config = DataConfig(sources=[source])
    _, state = leg(config, None, 32, 1)
    rows, _ = leg(config, state, 128, 8)
    continued = sum(inputs[0] != EOS for *_, inputs, _ in rows)
    begun = [1 + sum(b != a + 1 for a, b in itertools.pairwise(labels)) for *_, labels in rows]
    assert continued < len(rows) * 0.8 and np.mean(begun) < 12, "rows of scraps"


def test_only_long_documents_are_read_where_rows_are_longest(corpus, dealing):
    texts, source = corpus
    config = DataConfig(sources=[source], long_text_length=8 * 60)
    _, state = leg(config, None, 32, 20)
    rows, after = leg(config, state, 128, 60, long_texts=True)
    assert after["rows"] == {"seq_length": 128, "packing": "best_fit", "long_text_length": 480}
    length_of = {word: len(text.split()) for text in texts for word in words_of([text])}

    def share_of_short(rows: list) -> float:
        words = [label for *_, labels in rows for label in labels if label > 0]
        return sum(length_of[word] < 60 for word in words) / len(words)

    assert share_of_short(rows) > 0, "what was packed is not lost"
    assert share_of_short(rows[-10 * ROWS :]) < 0.01, "pieces that wait for a row"
    back, position = leg(config, after, 32, 150)
    assert "long_text_length" not in position["rows"] and share_of_short(back[-20 * ROWS :]) > 0.02


def piece(document: int, *ids: int) -> Piece:
    return Piece(document, np.array(ids), ids[0] - 1)


def test_pieces_between_which_one_was_delivered_are_apart():
    first, second, third, other = piece(1, 1, 2), piece(1, 3, 4), piece(1, 5, 6), piece(2, 7)
    blocks = [[(0, first), (1, second), (1, other)], [(0, third)]]
    left = undelivered(blocks, [[False, True], [False]])
    assert [list(one.ids) for one in left] == [[1, 2], [5, 6]]
    assert left[0].document < 0 and left[1].document == 1
    assert [one.document for one in undelivered(blocks, [[False, False], [True]])] == [-1, -1, 2]
    assert undelivered(blocks, [[False, False], [False]]) == [first, second, other, third]


def test_pieces_of_windows_come_back_in_their_documents_order():
    """Whichever row they stand in, and the row behind which one they come."""
    first, second, third = piece(1, 1, 2), piece(1, 3, 4), piece(1, 5, 6)
    blocks = [[(2, first), (0, second), (1, third)]]
    assert undelivered(blocks, [[False, False, False]]) == [first, second, third]
    left = undelivered(blocks, [[True, False, False]])
    assert [list(one.ids) for one in left] == [[1, 2], [5, 6]] and left[0].document != left[1].document
