import contextlib
import errno
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from storage import (
    LOCK,
    Damaged,
    digest,
    exclusive,
    hard_link_or_copy,
    locked,
    locked_by,
    open_regular,
    os_error_reason,
    read_regular,
    refuse_links,
    refuse_special,
    replacing,
    seal,
    slug,
    sweep,
    temporary,
    unseal,
    write_atomic,
)
from tests.helpers.failing import FailingDisk, without_hard_links


def test_equal_values_have_equal_digests():
    assert digest({"a": 1, "b": [None, True, "ä"]}) == digest({"b": (None, True, "ä"), "a": 1})
    assert len({digest(value) for value in (None, 0, False, "", [], {}, 0.0, [0], {"a": 0}, "\ud800")}) == 10


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "..", ".", "", "a/../../b", "a\0b", "-rf", ".hidden", "ä" * 400, "x" * 400],
)
def test_a_slug_stays_in_its_folder(tmp_path: Path, name: str):
    path = tmp_path / slug(name)
    assert path.parent == tmp_path
    assert path.resolve().parent == tmp_path.resolve()
    assert not path.name.startswith((".", "-"))
    path.write_bytes(b"")


def test_a_sealed_record_comes_back_as_json_does():
    assert unseal(seal({"a": (1, 2), "b": {10: "x", 9: "y"}})) == {"a": [1, 2], "b": {"10": "x", "9": "y"}}


def test_the_bytes_of_a_sealed_record_stay():
    """Manifests and shards of earlier versions are read with the same digest."""
    assert seal({"b": [1, "ä"], "a": None}) == (
        b'{\n "check": "ed6dcdcfae8c436b0e7790a6a12ba4b9",\n "b": [\n  1,\n  "\\u00e4"\n ],\n "a": null\n}'
    )


def test_flipped_bits_in_a_sealed_record_are_noticed_or_harmless():
    record = {"size": 12345, "before": [digest(n) for n in range(16)], "begins": {"offset": 1.5, "carry": "ä\n"}}
    whole, choose = seal(record), random.Random(0)
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[choose.randrange(len(whole))] ^= 1 << choose.randrange(8)
        with contextlib.suppress(Damaged):
            assert unseal(bytes(damaged)) == record


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"null", b'{"check": 1}', b"[" * 100_000, b"\xff", b"1" * 10_000])
def test_any_other_text_is_damaged(text: bytes):
    with pytest.raises(Damaged):
        unseal(text)


def test_a_write_leaves_the_old_or_the_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_atomic(tmp_path / "x", b"old")
    for at in range(1, 5):
        with monkeypatch.context() as patch:
            failing = FailingDisk(patch, at)
            new = b"new %d" % at
            try:
                write_atomic(tmp_path / "x", new)
            except OSError:
                assert (tmp_path / "x").read_bytes() in (b"old", new)
            else:
                assert failing.count < at and (tmp_path / "x").read_bytes() == new
        assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path):
    (tmp_path / "there").mkdir()
    with pytest.raises(OSError):
        write_atomic(tmp_path / "there", b"data")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "x") as fresh:
        fresh.write_bytes(b"half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_only_regular_files_of_the_right_size_are_read(tmp_path: Path):
    path = tmp_path / "x"
    assert read_regular(path) is None
    path.write_bytes(b"four")
    assert read_regular(path) == read_regular(path, size=4) == b"four"
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    cases = ((path, 5), (tmp_path / "link", None), (tmp_path / "pipe", None), (tmp_path, None))
    reasons = []
    for refused, size in cases:
        with pytest.raises(Damaged) as caught:
            read_regular(refused, size)
        reasons.append(str(caught.value))
    assert reasons[:3] == ["its size is 4 bytes", "it is a symbolic link", "it is not a regular file"]


def test_a_pipe_or_a_device_is_not_opened(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"four")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"four"
    with pytest.raises(OSError, match="Too many levels"):
        open_regular(tmp_path / "link", follow=False)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path / "pipe", tmp_path / "zero", tmp_path):
        with pytest.raises(OSError, match="it is not a regular file"):
            open_regular(path)
    assert len(os.listdir("/proc/self/fd")) == before
    refuse_special([tmp_path, tmp_path / "x", tmp_path / "link", tmp_path / "none"])
    for path in (tmp_path / "pipe", tmp_path / "zero"):
        with pytest.raises(OSError, match="it is a pipe or a device"):
            refuse_special([tmp_path / "x", path])


def test_reasons_are_plain_words(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError) as caught:
        refuse_links(tmp_path, tmp_path / "link")
    assert os_error_reason(caught.value) == "it is a symbolic link"
    assert os_error_reason(OSError(errno.ENOSPC, "No space left on device")) == "the disk is full"
    assert os_error_reason(OSError(errno.EIO, "Input/output error")) == "Input/output error"
    assert os_error_reason(TimeoutError()) == "TimeoutError"


@pytest.mark.parametrize("links", [True, False])
def test_a_file_system_without_links_gets_copies(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if not links:
        without_hard_links(monkeypatch)
    (tmp_path / "first").write_text("one")
    (tmp_path / "second").write_text("two")
    hard_link_or_copy(tmp_path / "first", tmp_path / "second")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"first": "one", "second": "one"}
    assert (tmp_path / "first").samefile(tmp_path / "second") is links


def test_temporary_files_of_dead_writers_are_swept(tmp_path: Path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait(20)
    here = socket.gethostname()

    def leave(name: str, age: float = 0.0) -> Path:
        path = tmp_path / name
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
        return path

    own = temporary(tmp_path / "x").name
    stale = [
        leave(f".writing-{dead.pid}@{here}@x"),
        leave(own.replace(str(os.getpid()), str(dead.pid))),
        leave(f".writing-{os.getpid()}@{here}@x", age=4000),
        leave(".writing-1@elsewhere@x", age=4000),
        leave(".writing-0123456789abcdef-x", age=4000),  # as earlier versions named them
    ]
    alive = [
        leave(own),
        leave(f".writing-{os.getpid()}@{here}@y"),
        leave(f".writing-{dead.pid}@elsewhere@x"),
        leave(".writing-fedcba9876543210-x"),
    ]
    other = leave("x", age=4000)
    (tmp_path / ".writing-folder").mkdir()
    sweep(tmp_path, only_abandoned=True)
    assert [path.exists() for path in stale + alive] == [False] * len(stale) + [True] * len(alive)
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == [tmp_path / ".writing-folder", other]


def test_one_writer_at_a_time(tmp_path: Path):
    with exclusive(tmp_path) as first, exclusive(tmp_path) as second:
        assert (first, second) == (True, False)
    with exclusive(tmp_path) as third:
        assert third


def test_who_has_locked_a_folder_is_told_without_locking_it(tmp_path: Path):
    assert locked_by(tmp_path) is None and not (tmp_path / LOCK).exists()
    with locked(tmp_path, print) as holder:
        assert holder is None
        assert locked_by(tmp_path) == f"process {os.getpid()} on {socket.gethostname()}"
    assert locked_by(tmp_path) is None
    with locked(tmp_path, print) as holder:
        assert holder is None, "it was not held by whoever asked"
