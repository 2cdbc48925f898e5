import json
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shard_cache import NotACache, ShardCache
from shard_cache.space import entries
from tests.helpers.shard_chain import fill, held
from tests.helpers.text import REPOSITORY

FINGERPRINT = {"name": "owner/Data Set", "tokenizer": "abc"}
DESCRIPTION = {"type": "hf", "dataset": "owner/Data Set", "fields": ["question", "answer"]}


def test_the_folder_can_be_read_by_a_person(folder: Path):
    cache = ShardCache(folder, 1)
    source = cache.source(FINGERPRINT, DESCRIPTION, {"revision": "f00"})
    fill(source.lane(3), 3, 2)
    (there,) = (path for path in folder.iterdir() if path.is_dir())
    assert (folder / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
    assert there == source.folder
    assert there.name.startswith("owner-Data-Set-") and len(there.name) == len("owner-Data-Set-") + 16
    assert sorted(path.relative_to(there).as_posix() for path in there.rglob("*")) == [
        "lane-0003", "lane-0003/000000.json", "lane-0003/000000.tar", "source.json", "used",
    ]  # fmt: skip
    about = json.loads((there / "source.json").read_text())
    assert (about["fingerprint"], about["description"], about["pin"]) == (FINGERPRINT, DESCRIPTION, {"revision": "f00"})
    assert about["created"].startswith("20")
    sidecar = json.loads((there / "lane-0003" / "000000.json").read_text())
    assert {"format", "shard", "size", "sha256", "first", "blocks", "before", "begins"} <= set(sidecar)


def test_the_pins_of_a_description_come_newest_first(folder: Path):
    cache = ShardCache(folder, 1)
    assert cache.pins(DESCRIPTION) == []
    for revision in ("old", "new"):
        cache.source({**FINGERPRINT, "source": revision}, DESCRIPTION, {"revision": revision})
    cache.source({**FINGERPRINT, "source": "old"}, DESCRIPTION, {"revision": "old"})  # used again, made before
    cache.source({"name": "other"}, "other", {"revision": "other"})
    again = ShardCache(folder, 1)
    assert again.pins(DESCRIPTION) == [{"revision": "new"}, {"revision": "old"}]
    assert again.pins(dict(reversed(DESCRIPTION.items())))[0] == {"revision": "new"}
    assert again.pins("other") == [{"revision": "other"}]
    assert again.pins({**DESCRIPTION, "fields": ["answer"]}) == []
    assert not again.notices


def test_a_changed_pin_takes_the_place_of_the_older_one(folder: Path):
    cache = ShardCache(folder, 1)
    for number in (1, 2):
        cache.source(FINGERPRINT, DESCRIPTION, {"number": number})
    assert cache.pins(DESCRIPTION) == [{"number": 2}]
    assert len(list(entries(folder))) == 1


def test_fingerprints_are_kept_apart(folder: Path):
    cache = ShardCache(folder, 1)
    one, other = (cache.source({**FINGERPRINT, "tokenizer": name}, DESCRIPTION, {}) for name in "ab")
    fill(one.lane(0), 0, 16)
    assert held(other.lane(0), 0, 16) == []
    for path in one.lane(0).folder.iterdir():  # even when somebody copies one's blocks to the other
        other.lane(0).folder.mkdir(exist_ok=True)
        (other.lane(0).folder / path.name).write_bytes(path.read_bytes())
    assert held(other.lane(0), 0, 16) == []
    assert held(one.lane(0), 0, 16) == list(range(16))
    assert "another shard's" in cache.notices[0]


@pytest.mark.parametrize("name", ["../../escape", "/tmp/escape", "..", "", None, 7, "a\nb"])
def test_names_do_not_leave_the_folder(folder: Path, name: object):
    cache = ShardCache(folder, 1)
    source = cache.source({"name": name}, name, {})
    kept = cache.remember(str(name))
    assert source.folder.parent.resolve() == kept.parent.parent.resolve() == folder.resolve()
    kept.write_bytes(b"")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_any_fingerprint_will_do(folder: Path):
    assert ShardCache(folder, 1).source(["x", 1], None, None).folder.name.startswith("source-")


@pytest.mark.parametrize("text", ["", "{}", "null", '{"check": 0, "description": "x"}'])
def test_a_damaged_source_json_is_written_again(folder: Path, text: str):
    source = ShardCache(folder, 1).source(FINGERPRINT, DESCRIPTION, {"revision": 1})
    fill(source.lane(0), 0, 16)
    (source.folder / "source.json").write_text(text)
    cache = ShardCache(folder, 1)
    assert cache.pins(DESCRIPTION) == []
    assert cache.notices[0].startswith(f"{source.folder / 'source.json'} is damaged (")
    again = cache.source(FINGERPRINT, DESCRIPTION, {"revision": 1})
    assert held(again.lane(0), 0, 16) == list(range(16))
    assert cache.pins(DESCRIPTION) == [{"revision": 1}]


def test_small_files_are_remembered(folder: Path):
    path = ShardCache(folder, 1).remember("held-out-0123.pt")
    path.write_bytes(b"rows")
    cache = ShardCache(folder, 1)
    assert cache.remember("held-out-0123.pt").read_bytes() == b"rows"
    assert path.name == "held-out-0123.pt"
    other = cache.remember("held-out/0123.pt")
    assert other.name == "held-out-0123.pt" and not other.exists()
    assert cache.pins("held-out-0123.pt") == []


def test_links_in_place_of_a_remembered_file_are_removed(folder: Path, tmp_path: Path):
    path = ShardCache(folder, 1).remember("key")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "key").write_bytes(b"theirs")
    path.symlink_to(outside / "key")
    ShardCache(folder, 1).remember("key").write_bytes(b"ours")
    path.unlink()
    (path.parent / "used").unlink()
    path.parent.rmdir()
    path.parent.symlink_to(outside)
    ShardCache(folder, 1).remember("key").write_bytes(b"ours")
    assert [(file.name, file.read_bytes()) for file in outside.iterdir()] == [("key", b"theirs")]


def test_everything_can_be_sent_to_another_process(folder: Path):
    cache = ShardCache(folder, 1)
    source = cache.source(FINGERPRINT, DESCRIPTION, {"revision": 1})
    path = cache.remember("key")
    cache.notices.append("announced by whoever holds the original")
    opened = pickle.loads(pickle.dumps((cache, source, source.lane(0))))
    assert not opened[0].notices
    assert opened[0].notices is opened[1].notices
    assert opened[0].remember("key") == path
    code = (
        "import pickle, sys; from tests.helpers.shard_chain import fill\n"
        "cache, source, lane = pickle.load(sys.stdin.buffer); fill(lane, 0, 20); print(cache.pins(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "x"], input=pickle.dumps(opened), cwd=REPOSITORY, capture_output=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert held(source.lane(0), 0, 20) == list(range(20))


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    cache = ShardCache(tmp_path / "file" / "store", 1)
    source = cache.source(FINGERPRINT, DESCRIPTION, {})
    lane = source.lane(0)
    fill(lane, 0, 20)
    assert held(lane, 0, 20) == []
    assert lane.skip(0) is None
    assert cache.pins(DESCRIPTION) == []
    cache.remember("key")
    assert len(cache.notices) == 1
    assert "cannot be written (Not a directory); nothing more is cached in this run" in cache.notices[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_may_only_be_read_is_read(folder: Path):
    source = ShardCache(folder, 1).source(FINGERPRINT, DESCRIPTION, {"revision": 1})
    fill(source.lane(0), 0, 16)
    for path in [*folder.rglob("*"), folder]:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)
    cache = ShardCache(folder, 1)
    assert cache.pins(DESCRIPTION) == [{"revision": 1}]
    lane = cache.source(FINGERPRINT, DESCRIPTION, {"revision": 1}).lane(0)
    assert held(lane, 0, 16) == list(range(16))
    assert not cache.notices
    fill(lane, 0, 20)
    assert len(cache.notices) == 1


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("place", ["root", "home", "project", "link", "files", "tag of another"])
def test_a_folder_that_is_no_cache_is_refused_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str):
    home, project, files, tagged = (tmp_path / name for name in ("home", "project", "files", "tagged"))
    for made in (home, project, files, tagged):
        made.mkdir()
    (files / "letter.txt").write_text("of somebody")
    (files / ".removed-0123456789abcdef").mkdir()
    (files / ".writing-1@elsewhere@0-letter.txt").write_text("of somebody")
    os.utime(files / ".writing-1@elsewhere@0-letter.txt", (0, 0))  # what a cache would sweep
    (tagged / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# of another program\n")
    (tmp_path / "link").symlink_to(home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(project)
    folders = {"root": "/", "home": home, "project": ".", "link": "../link", "files": files, "tag of another": tagged}
    there = everything(tmp_path)
    with pytest.raises(NotACache, match=r"cannot be a cache; name a folder of its own|holds other things than a cache"):
        ShardCache(folders[place], 1)
    assert everything(tmp_path) == there


def test_an_empty_folder_and_an_older_cache_are_taken(tmp_path: Path):
    disk = tmp_path / "disk"
    for name in ("lost+found", ".Trash"):  # a disk of its own is not quite empty
        (disk / name).mkdir(parents=True)
    for _ in range(2):
        source = ShardCache(disk, 1).source(FINGERPRINT, DESCRIPTION, {})
    fill(source.lane(0), 0, 2)
    (disk / "CACHEDIR.TAG").unlink()  # as earlier versions left it
    again = ShardCache(disk, 1).source(FINGERPRINT, DESCRIPTION, {})
    assert held(again.lane(0), 0, 2) == [0, 1]
    assert (disk / "CACHEDIR.TAG").exists()


def test_temporary_files_are_swept_in_own_folders_alone(folder: Path):
    source = ShardCache(folder, 1).source(FINGERPRINT, DESCRIPTION, {})
    (folder / "notes").mkdir()
    for place in (folder / "notes", source.folder):
        (place / ".writing-1@elsewhere@0-x").write_bytes(b"")
        os.utime(place / ".writing-1@elsewhere@0-x", (0, 0))
    ShardCache(folder, 1)
    assert [path.parent.name for path in folder.rglob(".writing-*")] == ["notes"]
