"""Reading from a hub over real connections that fail: every row is read once, or the source is refused."""

import hashlib
import json
import sysconfig
from pathlib import Path

import pytest

from tests.helpers.hub_server import SHA, Fault, HubServer, json_gz, parquet, run_worker

NUM_FILES = 17  # too many to be split by row group
CLIENT_TRIES = 2  # of the hub's client where a connection drops, before it gives up
ALWAYS = 10**6
RESUMED = [("parquet large", 1), ("lines 503", 2), ("folder", 0)]  # late in this shard
LARGE = "data/train-00001-of-00017.parquet"


def hashed(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()[:12]


def texts_of(found: dict) -> list[str]:
    return [text for shard in found["shards"] for text, _ in shard]


@pytest.fixture(scope="module")
def pieces(texts) -> list[str]:
    return [text[start : start + 300] for text in texts[:40] for start in range(0, min(len(text), 3000), 300)]


@pytest.fixture(scope="module")
def sources() -> list[str]:
    """The standard library, in pieces: some 15 MB."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*/*.py")) * 2
    whole = "".join(path.read_text(encoding="utf-8", errors="replace") for path in files)[:15_000_000]
    return [f"{start}\n{whole[start : start + 5000]}" for start in range(0, len(whole), 5000)]


@pytest.fixture(scope="module")
def story(tmp_path_factory, pieces, sources):
    """Two processes, one after the other; between them every repository moves on to another commit."""
    tmp_path = tmp_path_factory.mktemp("faults")
    rows = [{"id": number, "text": text} for number, text in enumerate(pieces)]
    large = [{"text": text, "beginning": text[:2500]} for text in sources]
    files = {f"data/train-{n:05}-of-00017.parquet": parquet(rows[n::NUM_FILES]) for n in range(NUM_FILES)}
    lines = {f"train-{n:05}-of-00003.json.gz": json_gz(rows[n::3]) for n in range(3)}
    one, of_lines = "data/train-00003-of-00017.parquet", "train-00001-of-00003.json.gz"
    cut, cut_lines = files[one][: len(files[one]) // 2], lines[of_lines][: len(lines[of_lines]) // 2]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.parquet").write_bytes(parquet(rows))
    plain_large = parquet(large, row_group_size=200, compression="none")
    with HubServer() as hub:
        hub.repositories = {
            **{f"parquet/{name}": files for name in ("dropped", "stalled", "busy", "500", "503", "504")},
            **{f"parquet/{name}": files for name in ("401", "403", "404", "opening", "opening_down")},
            **{f"lines/{name}": lines for name in ("dropped", "stalled", "busy", "503", "404")},
            "parquet/cut": {**files, one: cut},
            "lines/cut": {**lines, of_lines: cut_lines},
            "parquet/large": {**files, LARGE: plain_large},
            "lines/large": {"train.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in large)},
        }
        for kind, path in (("parquet", one), ("lines", of_lines)):
            hub.faults += [
                Fault(f"{kind}/dropped/resolve/{SHA}/{path}", drop_after=50),
                Fault(f"{kind}/stalled/resolve/{SHA}/{path}", stall=1.5),
                Fault(f"{kind}/busy/resolve/{SHA}/{path}", status=429, headers={"Retry-After": "0"}),
                Fault(f"{kind}/503/resolve/{SHA}/{path}", status=503, times=2),
                Fault(f"{kind}/404/resolve/{SHA}/{path}", status=404, times=ALWAYS),
            ]
        hub.faults += [
            Fault(f"parquet/500/resolve/{SHA}/{one}", status=500),
            Fault(f"parquet/504/resolve/{SHA}/{one}", status=504, times=3),
            Fault(f"parquet/401/resolve/{SHA}/{one}", status=401, times=ALWAYS),
            Fault(f"parquet/403/resolve/{SHA}/{one}", status=403, times=ALWAYS),
            Fault("parquet/opening/revision", status=429),
            Fault("parquet/opening/revision", status=503),
            Fault("parquet/opening_down", status=503, times=ALWAYS),
            # Two tries fail after rows have been given: the footer and the first data pass.
            Fault(f"parquet/large/resolve/{SHA}/{LARGE}", after=2, drop_after=1000, times=2 * CLIENT_TRIES),
            Fault(f"lines/large/resolve/{SHA}/train", after=2, drop_after=1000, times=CLIENT_TRIES),
        ]
        names = {name: name.replace("/", " ") for name in hub.repositories}
        first = run_worker(
            tmp_path,
            hub.url,
            worker="hub_faults.py",
            environment={"HF_HUB_DOWNLOAD_TIMEOUT": "1"},
            open={
                "folder": {"spec": {"dataset": "./folder"}},
                **{name: {"spec": {"dataset": repository}} for repository, name in names.items()},
            },
        )
        unused = [fault for fault in hub.faults if 0 < fault.times < ALWAYS // 2 or fault.times == ALWAYS]
        for name in hub.repositories:
            hub.push(name, {"data/train-00000-of-00001.parquet": parquet([{"text": "something else"}])})
        hub.ranges.clear()
        late = {name: {"shard": shard, "cursor": first[name]["shards"][shard][-20][1]} for name, shard in RESUMED}
        second = run_worker(tmp_path, hub.url, worker="hub_faults.py", unpickle=late)
        ranges = list(hub.ranges)
        (folder / "train.parquet").touch()
        again = run_worker(
            tmp_path,
            hub.url,
            worker="hub_faults.py",
            open={
                "folder": {"spec": {"dataset": "./folder"}, "pin": first["folder"]["pin"]},
                "pinned": {"spec": {"dataset": "lines/503"}, "pin": first["lines 503"]["pin"]},
                "newest": {"spec": {"dataset": "lines/503"}},
            },
        )
    return {"first": first, "second": second, "again": again, "ranges": ranges, "unused": unused, "large": plain_large}


@pytest.mark.parametrize("kind", ["parquet", "lines"])
@pytest.mark.parametrize("fault", ["dropped", "stalled"])
def test_short_failures_are_handled_by_the_hub_client(story, pieces, kind, fault):
    found = story["first"][f"{kind} {fault}"]
    assert sorted(texts_of(found)) == sorted(map(hashed, pieces))
    assert found["failures"] == []


@pytest.mark.parametrize(
    "name, failures",
    [
        ("parquet busy", 1),
        ("lines busy", 1),
        ("parquet 500", 1),
        ("parquet 503", 2),
        ("parquet 504", 3),
        ("lines 503", 2),
    ],
)
def test_a_refusal_that_may_pass_is_told_at_once(story, pieces, name, failures):
    found = story["first"][name]
    assert sorted(texts_of(found)) == sorted(map(hashed, pieces))
    assert len(found["failures"]) == failures
    for reason, transient in found["failures"]:
        assert transient and f"error {name.split()[1].replace('busy', '429')}" in reason


@pytest.mark.parametrize("name, failures", [("parquet large", 2), ("lines large", 1)])
def test_a_failure_inside_a_file_loses_and_repeats_nothing(story, pieces, sources, name, failures):
    found = story["first"][name]
    expected = list(map(hashed, sources))
    if name == "parquet large":
        assert [text for text, _ in found["shards"][1]] == expected
    else:
        assert texts_of(found) == expected
    assert len(found["failures"]) == failures
    assert all(transient and "cannot be reached" in reason for reason, transient in found["failures"])


@pytest.mark.parametrize(
    "name, parts",
    [
        ("parquet 401", ["refuses a file of parquet/401 (error 401), although"]),
        ("parquet 403", ["refuses a file of parquet/403 (error 403), although"]),
        ("parquet 404", ["refuses a file of parquet/404 (error 404), although"]),
        ("lines 404", ["refuses a file of lines/404 (error 404), although"]),
    ],
)
def test_a_refusal_is_not_believed_for_some_time(story, pieces, name, parts):
    found = story["first"][name]
    assert len(found["failures"]) > 2
    for reason, transient in found["failures"]:
        assert transient and "\n" not in reason and len(reason) < 300
        assert all(part in reason for part in parts)
    assert_only_one_is_cut(found, name, pieces)


@pytest.mark.parametrize("name, file", [("parquet cut", LARGE.replace("00001", "00003", 1)), ("lines cut", "00001-of")])
def test_a_damaged_file_is_named_and_skipped_from_there_on(story, pieces, name, file):
    found = story["first"][name]
    assert found["failures"] == [] and found["counts"] == {"damaged files": 1}
    (notice,) = found["notices"]
    assert file in notice and "is damaged (" in notice and "what follows is skipped" in notice
    assert_only_one_is_cut(found, name, pieces)


def assert_only_one_is_cut(found: dict, name: str, pieces: list[str]) -> None:
    step, broken = (NUM_FILES, 3) if name.startswith("parquet") else (3, 1)
    whole = [list(map(hashed, pieces[n::step])) for n in range(step)]
    for number, shard in enumerate(found["shards"]):
        texts = [text for text, _ in shard]
        assert texts == (whole[number] if number != broken else whole[number][: len(texts)])


def test_opening_outlasts_a_busy_hub_but_not_one_that_is_down(story, pieces):
    found = story["first"]["parquet opening"]
    assert sorted(texts_of(found)) == sorted(map(hashed, pieces))
    assert len(found["opening"]) == 2
    assert "error 429" in found["opening"][0][0] and "error 503" in found["opening"][1][0]
    reason, transient = story["first"]["parquet opening_down"]["refused"]
    assert transient and "error 503" in reason


def test_every_fault_struck(story):
    assert not story["unused"]


def test_an_unpickled_source_resumes_at_the_pinned_commit(story):
    first, second = story["first"], story["second"]
    for name, shard in RESUMED:
        assert second[name]["documents"] == first[name]["shards"][shard][-19:]
        assert second[name]["failures"] == []
        assert second[name]["fingerprint"] == first[name]["fingerprint"]
    assert second["parquet large"]["library_retries"] is None, "parquet is read without the library"
    assert second["lines 503"]["library_retries"] == 1


def test_resuming_late_in_parquet_reads_only_the_end(story):
    size = len(story["large"])
    ranges = [(begin, end) for path, begin, end in story["ranges"] if path.endswith(LARGE)]
    assert ranges and min(begin for begin, _ in ranges) > 0.8 * size
    assert sum(end - begin for begin, end in ranges) < 0.2 * size


def test_a_folder_is_identified_by_its_files(story):
    before, after = story["first"]["folder"], story["again"]["folder"]
    assert texts_of(before) == texts_of(after)
    assert before["fingerprint"] != after["fingerprint"]
    assert after["notices"] == [], "no file has changed in size"


def test_a_pin_keeps_its_commit(story, pieces):
    first, pinned, newest = story["first"]["lines 503"], story["again"]["pinned"], story["again"]["newest"]
    assert sorted(texts_of(pinned)) == sorted(map(hashed, pieces))
    assert pinned["fingerprint"] == first["fingerprint"]
    assert texts_of(newest) == [hashed("something else")]
    assert newest["fingerprint"] != first["fingerprint"]
    assert newest["pin"]["commit"] == "b" * 40
