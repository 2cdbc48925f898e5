"""Damaged files, hiccups of what serves a hub's files, and folders that go away: the rest of a source is read."""

import gzip
import hashlib
import json

import pytest

from sources.config import HubSpec
from sources.readers.hub.reader import HubSource
from tests.helpers.hub_server import SHA, Fault, HubServer, json_gz, parquet, run_worker, with_bad_page

FILES, GROUP_ROWS = 3, 30
MANY = 17  # too many to be split by row group
EMPTY = gzip.compress(b"")


@pytest.fixture(scope="module")
def pieces(texts) -> list[str]:
    return [text[start : start + 300] for text in texts[:30] for start in range(0, min(len(text), 3000), 300)]


def hashed(texts: list[str]) -> list[str]:
    return [hashlib.sha1(text.encode()).hexdigest()[:12] for text in texts]


def texts_of(found: dict) -> list[list[str]]:
    return [[text for text, _ in shard] for shard in found["shards"]]


def numbered(files: list[bytes], kind: str = "parquet") -> dict[str, bytes]:
    return {f"data/train-{n:05}-of-{len(files):05}.{kind}": data for n, data in enumerate(files)}


@pytest.fixture(scope="module")
def found(tmp_path_factory, pieces) -> dict:
    tmp_path = tmp_path_factory.mktemp("damage")
    rows = [{"text": text} for text in pieces]
    few = [parquet(rows[n::FILES], row_group_size=GROUP_ROWS) for n in range(FILES)]
    many = [parquet(rows[n::MANY], row_group_size=3) for n in range(MANY)]
    lines = [json_gz(rows[n::FILES]) for n in range(FILES)]
    bad_page = [few[0], with_bad_page(few[1], 1), few[2]]
    bad_lines = [lines[0], lines[1][: len(lines[1]) // 2], lines[2]]
    folder = tmp_path / "folder" / "data"
    folder.mkdir(parents=True)
    for name, data in numbered(bad_page).items():
        (tmp_path / "folder" / name).write_bytes(data)
    with HubServer() as hub:
        hub.repositories = {
            "few/page": numbered(bad_page),
            "few/footer": numbered([few[0][:-30], few[1], few[2]]),
            "many/page": numbered([many[0], with_bad_page(many[1], 1), *many[2:]]),
            "many/footer": numbered([many[0], many[1][:-30], *many[2:]]),
            "lines/cut": numbered(bad_lines, "json.gz"),
            "lines/first": numbered([b"no gzip at all", *lines[1:]], "json.gz"),
            **{f"many/{name}": numbered(many) for name in ("garbled", "signed", "elsewhere", "portal")},
            **{f"many/{status}": numbered(many) for status in (400, 401, 403, 404, 416)},
            "lines/garbled": numbered(lines, "json.gz"),
            "lines/empty": numbered([EMPTY, EMPTY], "json.gz"),
            "few/empty": numbered([parquet([{"text": "x"}], keep=0)]),
        }
        hub.signed = {"many/signed"}
        second = list(numbered(many))[1]
        hub.faults = [
            Fault(f"many/garbled/resolve/{SHA}/{second}", garbled=True),
            Fault(f"lines/garbled/resolve/{SHA}/data/train-00001", garbled=True),
            Fault(f"many/portal/resolve/{SHA}/{second}", status=200, times=2),
            Fault(
                f"many/elsewhere/resolve/{SHA}/{second}", status=302, headers={"Location": "http://127.0.0.1:9/signed"}
            ),
            *[Fault(f"many/{status}/resolve/{SHA}/{second}", status=status) for status in (400, 401, 403, 404, 416)],
        ]
        wanted = {name.replace("/", " "): {"spec": {"dataset": name}} for name in hub.repositories}
        wanted["folder"] = {"spec": {"dataset": "./folder"}}
        return run_worker(tmp_path, hub.url, worker="hub_faults.py", open=wanted) | {
            "unused": [fault for fault in hub.faults if fault.times]
        }


def test_every_fault_struck(found):
    assert not found["unused"]


@pytest.mark.parametrize("name", ["few page", "folder"])
def test_a_damaged_page_ends_its_row_group_and_nothing_else(found, pieces, name):
    source = found[name]
    assert source["failures"] == [] and source["counts"] == {"damaged files": 1}
    (notice,) = source["notices"]
    assert "train-00001-of-00003.parquet, row group 2: is damaged (" in notice
    read = {text for shard in texts_of(source) for text in shard}
    lost = [text for text in hashed(pieces) if text not in read]
    group = hashed(pieces[1::FILES][GROUP_ROWS : 2 * GROUP_ROWS])
    assert lost and set(lost) <= set(group)


def test_a_damaged_page_ends_its_file(found, pieces):
    source = found["many page"]
    assert source["failures"] == [] and source["counts"] == {"damaged files": 1}
    assert "train-00001-of-00017.parquet: is damaged (" in source["notices"][0]
    for number, shard in enumerate(texts_of(source)):
        whole = hashed(pieces[number::MANY])
        assert shard == (whole[:3] if number == 1 else whole)


@pytest.mark.parametrize("name, file", [("few footer", 0), ("many footer", 1), ("lines cut", 1), ("lines first", 0)])
def test_a_file_that_cannot_be_opened_is_left_out(found, pieces, name, file):
    source = found[name]
    assert source["failures"] == [] and source["counts"] == {"damaged files": 1}
    assert f"train-0000{file}-of" in source["notices"][0] and "is damaged (" in source["notices"][0]
    files = MANY if name.startswith("many") else FILES
    rest = [text for number in range(files) if number != file for text in hashed(pieces[number::files])]
    assert sorted(text for shard in texts_of(source) for text in shard) == sorted(rest)


@pytest.mark.parametrize("name", ["many garbled", "lines garbled", "many portal", "many signed"])
def test_what_is_whole_when_it_is_fetched_again_is_not_damaged(found, pieces, name):
    source = found[name]
    assert sorted(text for shard in texts_of(source) for text in shard) == sorted(hashed(pieces))
    assert source["counts"] == {} and source["notices"] == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 416])
def test_one_refusal_of_a_file_loses_nothing(found, pieces, status):
    source = found[f"many {status}"]
    assert texts_of(source) == [hashed(pieces[number::MANY]) for number in range(MANY)]
    ((reason, transient),) = source["failures"]
    assert transient and f"refuses a file of many/{status} (error {status}), although the repository" in reason


def test_a_dead_host_is_named_that_the_hub_sends_readers_to(found, pieces):
    source = found["many elsewhere"]
    assert texts_of(source) == [hashed(pieces[number::MANY]) for number in range(MANY)]
    if source["failures"]:
        assert "http://127.0.0.1:9, where" in source["failures"][0][0]


@pytest.mark.parametrize("name", ["few empty", "lines empty"])
def test_a_split_without_rows_is_refused(found, name):
    reason, transient = found[name]["refused"]
    dataset = name.replace(" ", "/")
    assert not transient and reason == f'the split "train" of {dataset} holds no rows; correct "split" or "config"'


def test_a_resume_from_any_document_skips_the_same(tmp_path, pieces, monkeypatch):
    """Of files that are shards, whose row groups before the damaged one are read."""
    monkeypatch.setattr("sources.readers.parquet.FEW_FILES", 1)
    rows = [{"text": text} for text in pieces]
    for name, data in numbered([with_bad_page(parquet(rows[:120]), 1), parquet(rows[120:])]).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    sources = [HubSource(HubSpec(type="hf", dataset=str(tmp_path))) for _ in range(2)]
    found = [list(sources[0].read(shard, None)) for shard in range(2)]
    assert [text for text, _ in found[0]] == pieces[:40] and [text for text, _ in found[1]] == pieces[120:]
    for shard, documents in enumerate(found):
        for number in range(0, len(documents), 7):
            cursor = json.loads(json.dumps(documents[number][1]))
            assert list(sources[1].read(shard, cursor)) == documents[number + 1 :]
    assert sources[0].counts == sources[1].counts == {"damaged files": 1}
