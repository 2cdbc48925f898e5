"""One source in one lane: every usable document once an epoch over all lanes, blocks that only their state decides."""

import itertools
import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from sources.config import FilesSpec
from sources.readers.files import FilesSource
from sources.rows.filters import RECENT, Filters, condensed_hash, is_held_out, ngram_hashes, older_condense
from sources.rows.near_copies import NearCopies
from sources.rows.pipeline import PipelineCallbacks, RowPipeline, split_text
from sources.rows.pipeline_config import PART_CHARACTERS, PipelineConfig
from sources.source import SourceError
from tests.helpers.sources import Flaky

T = 64


def open_files(path) -> FilesSource:
    return FilesSource(FilesSpec(type="files", path=str(path), name="files"))


@pytest.fixture
def config(tokenizer):
    def make(**options) -> PipelineConfig:
        kept = {
            "packing": "best_fit",
            "filters": Filters(20),
            "num_lanes": 16,
            "shuffle": True,
            "seed": 5,
            "retry_minutes": 0.0,
            "whole_epochs": True,
        }
        return PipelineConfig(tokenizer=tokenizer, seq_length=T, **(kept | options))

    return make


@pytest.fixture
def numbered(texts):
    """Real texts of all lengths, each beginning with a number of its own."""
    long = [text[start : start + 1500] for text in texts for start in range(0, len(text), 1500)]
    short = [text[start : start + 90] for text in texts[:25] for start in range(0, min(len(text), 1800), 90)]
    return [f"No. {number}: {text}" for number, text in enumerate([*long[:250], *short])]


def same(one, other) -> bool:
    """Whether two results hold the same rows and lead to the same state."""
    names = ("ids", "lengths", "pieces")
    equal = all(np.array_equal(getattr(one.block, name), getattr(other.block, name)) for name in names)
    return equal and one.after == other.after


def usable(texts: list[str]) -> set[int]:
    return {number_of(text) for text in texts if len(text.strip()) >= 20 and not is_held_out(text)}


def number_of(text: str) -> int:
    return int(re.match(r"No\. (\d+):", text)[1])


def documents_of(block, tokenizer) -> list[int]:
    """The numbers of the documents that begin in a block, in the rows' order."""
    inputs, labels, segments = block.unpack()
    found = []
    for row in range(len(block)):
        for segment in range(segments[row].max() + 1):
            places = segments[row] == segment
            if inputs[row, places][0] == tokenizer.eos_id:
                text = tokenizer.decode(labels[row, places].tolist())
                if "No. " in text[:4]:
                    found.append(text)
    return [int(match[1]) for text in found if (match := re.match(r"No\. (\d+):", text))]


def open_pipeline(source, lane, config, state=None) -> RowPipeline:
    return RowPipeline(source, lane, config, PipelineCallbacks(), state)


def epochs(source, config, lane, number=2, callbacks=None, counts=None) -> list[list]:
    """The blocks of a lane's first epochs; `counts` takes in what is filtered out."""
    pipeline = RowPipeline(source, lane, config, callbacks or PipelineCallbacks())
    found, at = [[] for _ in range(number)], 0
    while True:
        result = pipeline.next_block()
        if counts is not None:
            counts.update(result.filtered)
        if not len(result.block):
            return found
        found[at].append(result.block)
        at = result.after["pass"]
        if at >= number:
            return found


@pytest.mark.parametrize(
    ("packing", "num_files"),
    [
        ("best_fit", 3),
        ("pad", 40),
        pytest.param("best_fit", 40, marks=pytest.mark.slow),
        pytest.param("pad", 3, marks=pytest.mark.slow),
    ],
)
def test_every_document_exactly_once_an_epoch(
    num_files, packing, tmp_path, numbered, config, tokenizer, write_json_lines
):
    source = open_files(write_json_lines(tmp_path / "many", numbered, num_files))
    lanes = [epochs(source, config(packing=packing), lane) for lane in range(16)]
    orders = []
    for number in range(2):
        found = [[n for block in lane[number] for n in documents_of(block, tokenizer)] for lane in lanes]
        counts = Counter(n for lane in found for n in lane)
        # A head cut inside its number ("No. 1" of "No. 17:") is not recognized; packing's own tests see to it.
        assert set(counts.values()) == {1}
        assert set(counts) <= usable(numbered) and len(usable(numbered) - set(counts)) <= 0.02 * len(counts)
        labels = sum(int(block.lengths.sum()) for lane in lanes for block in lane[number])
        kept = [text for text in numbered if number_of(text) in usable(numbered)]
        assert labels == sum(len(ids) + 1 for ids in tokenizer.encode_batch(kept))
        orders.append(found)
    assert orders[0] != orders[1]


def test_a_block_depends_on_its_state_alone(tmp_path, numbered, config, write_json_lines):
    source = open_files(write_json_lines(tmp_path / "many", numbered, 5))
    pipeline, state = open_pipeline(source, 3, config()), None
    for _ in range(12):
        result = pipeline.next_block()
        again = open_pipeline(open_files(tmp_path / "many"), 3, config(), state).next_block()
        assert same(result, again)
        state = json.loads(json.dumps(result.after))
        assert state == result.after
    assert len(json.dumps(state)) < 60_000


def test_other_lanes_documents_are_remembered_in_a_long_one(tmp_path, texts, numbered, config, write_json_lines):
    """Each long document stands between texts of all lanes that share the shard and the same texts once more."""
    every = "\n".join(texts)
    documents = []
    for number in range(12):
        short = numbered[12 * number : 12 * (number + 1)]
        begin = 20_000 * number
        documents += [*short, f"No. {1000 + number}: {every[begin : begin + 4 * PART_CHARACTERS]}", *reversed(short)]
    source = open_files(write_json_lines(tmp_path / "long", documents, 1))
    inside = 0
    for lane in range(4):
        pipeline, state = open_pipeline(source, lane, config(num_lanes=4)), None
        while state is None or state["pass"] == 0:
            resumed = open_pipeline(source, lane, config(num_lanes=4), state)
            result = pipeline.next_block()
            assert same(result, resumed.next_block())
            inside += result.after["part"] > 0
            state = json.loads(json.dumps(result.after))
    assert inside > 4


def test_without_shuffling_documents_keep_their_order(tmp_path, numbered, config, tokenizer, write_json_lines):
    source = open_files(write_json_lines(tmp_path / "many", numbered, 1))
    found = [documents_of(block, tokenizer) for block in epochs(source, config(shuffle=False, packing="pad"), 2, 1)[0]]
    for block in found:
        assert block == sorted(block)
    assert [n for block in found for n in block] == sorted(n for block in found for n in block)


def test_long_documents_are_split_and_lose_nothing(tmp_path, texts, config, tokenizer, write_json_lines):
    long = "\n".join(texts)[: 5 * PART_CHARACTERS + 77]
    assert "".join(split_text(long)) == long and max(map(len, split_text(long))) <= PART_CHARACTERS
    source = open_files(write_json_lines(tmp_path / "long", [long], 1))
    options = {"num_lanes": 1, "filters": Filters(20), "shuffle": False}
    labels, state = [], None
    while not state or state["pass"] == 0:
        result = open_pipeline(source, 0, config(**options), state).next_block()
        rows = zip(result.block.ids, result.block.lengths, strict=True)
        labels += [token for row, length in rows for token in row[:length].tolist()]
        state = json.loads(json.dumps(result.after))
    if not is_held_out(long):
        assert tokenizer.decode(labels) == long + "<|endoftext|>"


@pytest.mark.parametrize("packing", ["best_fit", "pad"])
def test_a_resume_whose_carry_fills_the_next_block(packing, tmp_path, texts, config, write_json_lines):
    source = open_files(write_json_lines(tmp_path / "long", ["\n".join(texts)[: 2 * PART_CHARACTERS], *texts[:40]], 1))
    short_rows = replace(config(num_lanes=1, packing=packing), seq_length=8)
    pipeline, state, unread = open_pipeline(source, 0, short_rows), None, 0
    while state is None or state["pass"] == 0:
        result = pipeline.next_block()
        assert same(result, open_pipeline(source, 0, short_rows, state).next_block())
        unread += state is not None and all(result.after[name] == state[name] for name in ("cursor", "part"))
        state = result.after
    assert unread > 2


def test_another_document_in_a_long_ones_place_is_told_apart(
    tmp_path, texts, numbered, config, tokenizer, write_json_lines
):
    every = "\n".join(texts)
    long, longer = every[: 5 * PART_CHARACTERS], f"No. 9999: {every[7 : 3 * PART_CHARACTERS]}"
    held, following = next(filter(is_held_out, numbered)), [text for text in numbered if not is_held_out(text)][-60:]
    options = config(num_lanes=1)
    source = open_files(write_json_lines(tmp_path / "long", [long, *following], 1))
    state = open_pipeline(source, 0, options).next_block().after
    assert state["part"] > 0 and state["carry"]["open"]
    carried = sum(length for _, length, _ in state["carry"]["pieces"])
    for changed in ([held, *following], following, [longer, *following]):
        source = open_files(write_json_lines(tmp_path / "long", changed, 1))
        pipeline, after, labels, found = open_pipeline(source, 0, options, state), state, [], []
        while after["pass"] == 0:
            result = pipeline.next_block()
            after = result.after
            labels += result.block.unpack()[1].flatten().tolist()
            found += documents_of(result.block, tokenizer)
        expected = [text for text in changed if text != held]
        assert set(found) <= set(map(number_of, expected))
        # The first ends what is left of the one that is gone.
        assert labels.count(tokenizer.eos_id) == 1 + len(expected)
        ids = sum(map(len, tokenizer.encode_batch([part for text in expected for part in split_text(text)])))
        assert len(labels) - labels.count(-100) == carried + 1 + ids + len(expected)


def test_repeats_in_an_epoch_are_filtered_out_and_counted(tmp_path, numbered, config, tokenizer, write_json_lines):
    doubled = [text for text in numbered for _ in range(2)]
    doubled[1::20] = [text.upper().replace(" ", "  ") for text in doubled[1::20]]  # case and white space do not count
    source = open_files(write_json_lines(tmp_path / "twice", doubled, 1))
    counts: Counter[str] = Counter()
    lanes = [epochs(source, config(), lane, 1, counts=counts)[0] for lane in range(16)]
    found = [n for lane in lanes for block in lane for n in documents_of(block, tokenizer)]
    assert counts["repeated"] >= len(usable(numbered))
    assert set(Counter(found).values()) == {1}
    assert len(found) >= 0.95 * len(usable(numbered))
    kept = epochs(source, config(filters=Filters(20, deduplicate=False), num_lanes=1), 0, 1)[0]
    twice = Counter(n for block in kept for n in documents_of(block, tokenizer))
    assert sum(count == 2 for count in twice.values()) > 0.8 * len(twice)
    assert RECENT >= 1000


def test_filtered_documents_are_counted(tmp_path, numbered, config, write_json_lines):
    held = [text for text in numbered if is_held_out(text)]
    forbidden = numbered[7]
    source = open_files(write_json_lines(tmp_path / "mixed", ["too short", *numbered[:200]], 1))
    counts: Counter[str] = Counter()
    filters = Filters(20, forbidden=frozenset(ngram_hashes(forbidden.upper())))
    epochs(source, config(filters=filters, num_lanes=1), 0, 1, counts=counts)
    assert counts["shorter than min_text_length"] == sum(len(t.strip()) < 20 for t in ["too short", *numbered[:200]])
    assert counts["held out for evaluation"] == len([t for t in held if number_of(t) < 200])
    assert counts["containing a text of data.decontaminate"] >= 1


def test_packed_documents_are_counted(tmp_path, numbered, config, write_json_lines):
    source = open_files(write_json_lines(tmp_path / "some", ["too short", *numbered[:200]], 1))
    pipeline = open_pipeline(source, 0, config(num_lanes=1, whole_epochs=True))
    documents = epoch = 0
    while epoch == 0:
        result = pipeline.next_block()
        documents, epoch = documents + result.documents, result.after["pass"]
    assert documents == len(usable(numbered[:200]))


def changed(text: str) -> str:
    """Another document for the hash that decides what is held out, and the same to a reader."""
    return next(copy for word in ("in", "to", "at", "on", "of") if not is_held_out(copy := f"{text} {word} the end"))


@pytest.fixture
def copied(numbered, tmp_path, write_json_lines):
    """Documents of which every tenth has two changed copies in the same file; those of every tenth; the file."""
    documents = [text for text in numbered if len(text) > 1200 and not is_held_out(text)]
    known = documents[::10]
    lines = [*documents, *(f"{changed(text)}{end}" for text in known for end in ("", " here"))]
    return documents, known, open_files(write_json_lines(tmp_path / "copied", lines, 1))


@pytest.mark.parametrize("deduplicate", [True, False])
def test_near_copies_are_filtered_out_in_every_lane(copied, deduplicate, config, tokenizer):
    documents, known, source = copied
    counts: Counter[str] = Counter()
    options = config(filters=Filters(20, deduplicate, near_copies=NearCopies.of(known)))
    lanes = [epochs(source, options, lane, 1, counts=counts)[0] for lane in range(16)]
    found = {number for lane in lanes for block in lane for number in documents_of(block, tokenizer)}
    assert len(known) >= 10 and found.isdisjoint(map(number_of, known))
    assert len(found) >= 0.8 * (len(documents) - len(known))  # some topics repeat others
    assert counts["similar to a validation document"] >= 3 * len(known) - counts["held out for evaluation"]


def test_blocks_resume_behind_near_copies(copied, config):
    _, known, source = copied
    options = config(filters=Filters(20, near_copies=NearCopies.of(known)), num_lanes=2)
    pipeline, state = open_pipeline(source, 0, options), None
    for _ in range(6):
        result = pipeline.next_block()
        assert same(result, open_pipeline(source, 0, options, state).next_block())
        state = json.loads(json.dumps(result.after))


def test_a_lane_is_dry_if_all_texts_are_near_copies(dealing, tmp_path, texts, config, write_json_lines):
    known = [text[:3000] for text in texts if len(text) > 3000][:5]
    source = open_files(write_json_lines(tmp_path / "copies", [changed(text) for text in known for _ in range(5)], 1))
    filters = replace(dealing["filters"], near_copies=NearCopies.of(known))
    assert not any(first_blocks(source, config(**dealing | {"filters": filters})))


@pytest.mark.parametrize("shared", [frozenset(), frozenset({"files"})], ids=["dealt", "shared"])
def test_a_block_that_ends_with_its_epoch_is_the_last_of_it(shared, tmp_path, numbered, config, write_json_lines):
    """Else the next epoch's first block counts as this one's, and a sequential turn reads two."""
    exact = [text[:60] for text in numbered if len(text[:60].strip()) >= 20 and not is_held_out(text[:60])][:32]
    source = open_files(write_json_lines(tmp_path / "exact", exact, 1))
    options = config(num_lanes=1, packing="pad", shared=shared)
    rows = [len(block) for block in epochs(source, options, 0, 1)[0]]
    (documents,) = {len(exact)} & {sum(rows)}  # each fits into a row
    pipeline = open_pipeline(source, 0, replace(options, seq_length=64 * 256))  # blocks of 16 rows: two an epoch
    reached = [pipeline.next_block().after["pass"] for _ in range(4)]
    assert documents == 32 and reached == [0, 1, 1, 2]


def test_an_older_state_is_dealt_in_cycles_from_its_next_epoch_on(tmp_path, numbered, config, write_json_lines):
    source = open_files(write_json_lines(tmp_path / "many", numbered, 5))
    older = open_pipeline(source, 3, config()).next_block().after
    del older["cycle"]
    pipeline, cycles = open_pipeline(source, 3, config(), older), {}
    while len(cycles) < 3:
        after = pipeline.next_block().after
        cycles.setdefault(after["pass"], after["cycle"])
    assert set(cycles.values()) <= {1, 16} and list(cycles.values())[1:] == [16, 16]


def test_an_older_versions_block_is_dealt_to_its_end_as_it_was(tmp_path, numbered, config, write_json_lines):
    """It may hold many epochs, and some of its rows were trained on."""
    source = open_files(write_json_lines(tmp_path / "few", numbered[-90:], 20))
    options = config(whole_epochs=False)
    older = open_pipeline(source, 15, options).state
    assert older.pop("cycle") == 16
    result = open_pipeline(source, 15, options, older).next_block()
    assert result.after["pass"] > 2 and result.after["cycle"] == 1
    assert open_pipeline(source, 15, options, result.after).next_block().after["cycle"] == 16


def test_an_older_versions_block_holds_what_that_version_filtered(
    tmp_path, numbered, config, tokenizer, write_json_lines
):
    """Its hash knew no quotes and no-break spaces, and it trained on near-copies of validation documents."""
    documents = [text.replace(" the ", " the\N{NO-BREAK SPACE}") for text in numbered if len(text) > 1200]
    long = f"No. 1000: {'and so on, '.join(numbered)}".replace("'", "\N{RIGHT SINGLE QUOTATION MARK}")
    kept = {number_of(text) for text in [long, *documents] if condensed_hash(older_condense(text)) % 50}
    near_copies = NearCopies.of([*documents[::10], long])
    options = config(filters=Filters(20, False, near_copies=near_copies), num_lanes=1)
    assert kept != usable([long, *documents]) and 1000 in kept and len(long) > 9 * PART_CHARACTERS
    source = open_files(write_json_lines(tmp_path / "older", [*documents[:20], long, *documents[20:]], 1))

    older, begun, parts = open_pipeline(source, 0, options).state, [], []
    while older["pass"] == 0:
        older.pop("cycle")
        pipeline = open_pipeline(source, 0, options, older)
        result = pipeline.next_block()
        begun += documents_of(result.block, tokenizer)
        if result.after["part"]:  # within the long document, of which today's version knows another hash
            state = json.loads(json.dumps(result.after))
            following = pipeline.next_block()
            assert same(following, open_pipeline(source, 0, options, state).next_block())
            parts.append((result.after["part"], following.after["part"]))
        older = json.loads(json.dumps(result.after))
    assert Counter(begun) == dict.fromkeys(kept, 1)
    assert parts[0][0] < parts[0][1], "the rest of the long document is missing"


def first_blocks(source, config) -> list[int]:
    """How many rows each lane's first block has."""
    return [len(open_pipeline(source, lane, config).next_block().block) for lane in range(config.num_lanes)]


@pytest.fixture(params=itertools.product([True, False], repeat=2), ids=str)
def dealing(request):
    shuffle, deduplicate = request.param
    return {"shuffle": shuffle, "filters": Filters(20, deduplicate), "whole_epochs": False}


@pytest.mark.parametrize("num_files", [3, 31])
def test_every_lane_reaches_the_only_file_with_text(num_files, dealing, tmp_path, numbered, config, write_json_lines):
    write_json_lines(tmp_path / "one", numbered[-60:], 1)
    for number in range(1, num_files):
        (tmp_path / "one" / f"picture{number}.png").write_bytes(b"\x89PNG\r\n\0" * 20)
    source = open_files(tmp_path / "one")
    assert source.num_shards == num_files and all(first_blocks(source, config(**dealing)))


def test_every_lane_gets_text_if_every_second_is_too_short(dealing, tmp_path, numbered, config, write_json_lines):
    every_second = [text for long in numbered[-150:] for text in (long, "too short")]
    source = open_files(write_json_lines(tmp_path / "half", every_second, 1))
    assert all(first_blocks(source, config(**dealing)))
    for lane in range(16):
        result = open_pipeline(source, lane, config(**dealing | {"whole_epochs": True})).next_block()
        assert len(result.block) and result.after["pass"] <= 1  # in its first epoch already


def test_every_lane_gets_some_of_fewer_texts_than_lanes(dealing, tmp_path, texts, config, write_json_lines):
    some = [text for text in texts if not is_held_out(text)][:2]
    source = open_files(write_json_lines(tmp_path / "tiny", some, 1))
    assert all(first_blocks(source, config(**dealing)))
    assert all(first_blocks(source, config(**dealing, shared=frozenset({"files"}))))


def test_a_lane_is_dry_if_no_shard_holds_text(dealing, tmp_path, config, write_json_lines):
    for num_files in (1, 3, 20):
        source = open_files(write_json_lines(tmp_path / str(num_files), ["too short"] * 40, num_files))
        assert not any(first_blocks(source, config(**dealing)))


def test_a_transient_failure_is_announced_and_changes_no_row(tmp_path, numbered, config, write_json_lines, monkeypatch):
    monkeypatch.setattr("sources.retries.LONGEST_WAIT", 0.01)
    source = open_files(write_json_lines(tmp_path / "many", numbered, 2))
    events = []
    callbacks = PipelineCallbacks(announce=lambda *event: events.append(event))
    patient = config(retry_minutes=1.0)
    expected = epochs(source, patient, 4)
    found = epochs(Flaky(source, 37, 3), patient, 4, callbacks=callbacks)
    assert all(
        np.array_equal(a.ids, b.ids) for x, y in zip(expected, found, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert [what for _, what, _ in events] == ["retry"] * 3
    assert "hf_***" in events[0][2] and "retrying at row 37" in events[0][2]


def test_retrying_may_go_on_for_days(tmp_path, numbered, config, write_json_lines, monkeypatch):
    monkeypatch.setattr("sources.retries.LONGEST_WAIT", 0.0)
    flaky = Flaky(open_files(write_json_lines(tmp_path / "many", numbered, 2)), 10, 1100)
    result = open_pipeline(flaky, 0, config(retry_minutes=5000.0)).next_block()
    assert len(result.block) and flaky.times == 0


def test_a_lasting_failure_ends_at_the_deadline_or_at_once(tmp_path, numbered, config, write_json_lines, monkeypatch):
    monkeypatch.setattr("sources.retries.LONGEST_WAIT", 0.05)
    source = open_files(write_json_lines(tmp_path / "many", numbered, 2))
    flaky = Flaky(source, 10, 10**9)
    with pytest.raises(SourceError):
        open_pipeline(flaky, 0, config(retry_minutes=0.5 / 60)).next_block()
    assert 10**9 - flaky.times > 3
    lasting = Flaky(source, 10, 10**9, transient=False)
    with pytest.raises(SourceError):
        open_pipeline(lasting, 0, config(retry_minutes=10.0)).next_block()
    assert 10**9 - lasting.times == 1
