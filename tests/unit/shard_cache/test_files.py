import contextlib
import os
import random
import socket
import time
from pathlib import Path

import pytest

from shard_cache.files import Damaged, digest, seal, slug, sweep, unseal, write_whole, writing_in


def test_equal_values_have_equal_digests():
    assert digest({"a": 1, "b": [None, True, "ä"]}) == digest({"b": (None, True, "ä"), "a": 1})
    assert len({digest(value) for value in (None, 0, False, "", [], {}, 0.0, [0], {"a": 0}, "\ud800")}) == 10


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "..", ".", "", "a/../../b", "a\0b", "-rf", ".hidden", "ä" * 400, "x" * 400],
)
def test_a_name_stays_in_its_folder(tmp_path: Path, name: str):
    path = tmp_path / slug(name)
    assert path.parent == tmp_path
    assert path.resolve().parent == tmp_path.resolve()
    assert not path.name.startswith((".", "-"))
    path.write_bytes(b"")


def test_what_is_sealed_comes_back_as_json_does():
    assert unseal(seal({"a": (1, 2), "b": {10: "x", 9: "y"}})) == {"a": [1, 2], "b": {"10": "x", "9": "y"}}


def test_flipped_bits_in_sealed_text_are_noticed_or_harmless():
    record = {"size": 12345, "before": [digest(n) for n in range(16)], "begins": {"offset": 1.5, "carry": "ä\n"}}
    whole, choose = seal(record), random.Random(0)
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[choose.randrange(len(whole))] ^= 1 << choose.randrange(8)
        with contextlib.suppress(Damaged):
            assert unseal(bytes(damaged)) == record


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"null", b'{"check": 1}', b"[" * 100_000, b"\xff", b"1" * 10_000])
def test_other_texts_are_damage(text: bytes):
    with pytest.raises(Damaged):
        unseal(text)


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path):
    (tmp_path / "there").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "there", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_temporary_files_of_dead_writers_are_swept(tmp_path: Path, start):
    dead = start(code="pass")
    dead.wait(20)
    here = socket.gethostname()
    (tmp_path / "lane").mkdir()

    def leave(pid: int, host: str, age: float) -> Path:
        path = tmp_path / "lane" / f".writing-{pid}@{host}@{age}.tar"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
        return path

    stale = [leave(dead.pid, here, 0), leave(os.getpid(), here, 4000), leave(1, "elsewhere", 4000)]
    alive = [leave(os.getpid(), here, 0), leave(dead.pid, "elsewhere", 0), tmp_path / "lane" / "000000.tar"]
    alive[-1].write_bytes(b"")
    sweep(tmp_path)
    assert [path.exists() for path in stale + alive] == [False] * 3 + [True] * 3


def test_one_writer_at_a_time(tmp_path: Path):
    with writing_in(tmp_path) as first, writing_in(tmp_path) as second:
        assert (first, second) == (True, False)
    with writing_in(tmp_path) as third:
        assert third
